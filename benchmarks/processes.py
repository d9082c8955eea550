"""What the processes of a run hold: memory, file descriptors and threads."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields

import psutil


@dataclass(frozen=True)
class Usage:
    """What processes hold together; `megabytes` of their own, shared with no other (USS)."""

    megabytes: float = 0.0
    files: float = 0
    threads: float = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(mine + theirs for mine, theirs in zip(self.row, other.row, strict=True)))

    def __sub__(self, other: Usage) -> Usage:
        return Usage(*(mine - theirs for mine, theirs in zip(self.row, other.row, strict=True)))

    @property
    def row(self) -> tuple[float, float, float]:
        return self.megabytes, self.files, self.threads

    @classmethod
    def of(cls, process: psutil.Process) -> Usage:
        with process.oneshot():
            own = process.memory_full_info().uss / 1e6
            return cls(own, process.num_fds(), process.num_threads())

    @classmethod
    def median(cls, found: Sequence[Usage]) -> Usage:
        return cls(*(statistics.median(each) for each in zip(*(u.row for u in found), strict=True)))


@dataclass(frozen=True)
class Processes:
    """A driver, its actors together, and the processes of its Ray together."""

    driver: Usage
    actors: Usage
    ray: Usage

    NAMES = ("driver", "actors", "Ray")

    @property
    def parts(self) -> tuple[Usage, Usage, Usage]:
        return self.driver, self.actors, self.ray

    @classmethod
    def of(cls, driver: int | None = None) -> Processes:
        """Those of the driver with that process id, this process by default.

        Raises:
            psutil.NoSuchProcess: it has ended.
        """
        process = psutil.Process(os.getpid() if driver is None else driver)
        actors, others = Usage(), Usage()
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "Actor" in " ".join(child.cmdline()[:1]):
                    actors += Usage.of(child)
                else:
                    others += Usage.of(child)
        return cls(Usage.of(process), actors, others)

    def growth(self, before: Processes) -> list[Usage]:
        """By how much each part has grown since."""
        return [now - then for now, then in zip(self.parts, before.parts, strict=True)]

    @classmethod
    def median(cls, found: Sequence[Processes]) -> Processes:
        names = [each.name for each in fields(cls)]
        return cls(*(Usage.median([getattr(each, name) for each in found]) for name in names))
