"""What a rehearsal measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline import traffic
from pipeline.estimate.metered import Phase
from pipeline.estimate.sample import Group, Load
from pipeline.ledger import TileRecord
from pipeline.ray_session import Share
from pipeline.traffic import Traffic


@dataclass(frozen=True)
class Step:
    """What the driver did for some items, one after the other."""

    items: int = 0
    seconds: float = 0.0
    traffic: Traffic = field(default_factory=Traffic)

    @classmethod
    def of(cls, work: Callable[[], object]) -> Step:
        """Do one item's work and look at clock and traffic."""
        before, began = traffic.so_far(), time.monotonic()
        work()
        return cls(1, time.monotonic() - began, traffic.so_far() - before)

    def __add__(self, other: Step) -> Step:
        items, seconds = self.items + other.items, self.seconds + other.seconds
        return Step(items, seconds, self.traffic + other.traffic)


@dataclass(frozen=True)
class Measured:
    """Of a group of scenes.

    Attributes:
        first_prepare, prepare: of the first scene, of the others together.
        opening, steady: tiles; their `ended` hold records only.
        opening_loads, steady_loads: of each of these tiles.
        driver: leases, publishing and quicklooks, without the requests that are one for each tile.
        publish_seconds: of it, publishing one scene.
    """

    group: Group
    first_prepare: Phase
    prepare: Phase
    opening: Phase
    steady: Phase
    opening_loads: tuple[Load, ...]
    steady_loads: tuple[Load, ...]
    driver: Step
    publish_seconds: float

    @property
    def loads(self) -> tuple[Load, ...]:
        """Of all tiles, in the order of `records`."""
        return self.opening_loads + self.steady_loads

    @property
    def records(self) -> list[TileRecord]:
        return [each.result for each in (*self.opening.ended, *self.steady.ended)]


@dataclass(frozen=True)
class Trial:
    """All of it.

    Attributes:
        share: of a run's workers.
        workers, threads: that were measured; fewer where there is no room for all now.
        groups: those that could be measured.
        starting, ending: seconds of Ray and its actors.
        leasing: what a run does once.
        catalogue: of the measured scenes, made and made again.
        other_bytes: stored beside what tiles wrote, for each scene.
        worker_peak, driver_peak: bytes of memory.
        notes: what could not be measured.
        seconds: that it took.
    """

    share: Share
    workers: int
    threads: int
    groups: tuple[Measured, ...]
    starting: float
    ending: float
    leasing: Step
    catalogue: tuple[Step, Step]
    other_bytes: float
    worker_peak: int
    driver_peak: int
    notes: tuple[str, ...]
    seconds: float
