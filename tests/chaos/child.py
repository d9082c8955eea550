"""The driver of a trial, in a process that dies where its plan says."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import events, job, storage, store
from pipeline.settings import RunSettings
from pipeline.stac import catalogue, publication


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def drive(options: dict[str, Any], environment: dict[str, str], fate: dict[str, Any]) -> None:
    """Run the job; `fate` says at which write or event the process kills itself, if at all.

    The report, if there is one, goes to the file `fate["report"]`.
    """
    os.environ.update(environment)
    if "write" in fate:
        _die_at_write(int(fate["write"]), bool(fate["after"]))
    listeners: list[Callable[[events.Event], None]] = []
    if "tile" in fate:
        listeners.append(_DieAtTile(int(fate["tile"])))
    report = job.run(RunSettings.from_options(options), listeners)
    Path(fate["report"]).write_text(json.dumps(asdict(report)))


def _die_at_write(count: int, after: bool) -> None:
    """Die before or after the driver's n-th whole-object write, wherever that is."""
    left = [count]
    original = storage.write_atomic

    def write(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0 and not after:
            die()
        original(*arguments)
        if left[0] < 0:
            die()

    for module in (job, store, catalogue, publication):
        module.write_atomic = write  # type: ignore[attr-defined]


class _DieAtTile:
    """Dies when the driver hears of the n-th finished tile."""

    def __init__(self, count: int) -> None:
        self._left = count

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.TileFinished):
            self._left -= 1
            if self._left < 0:
                die()
