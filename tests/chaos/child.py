"""What runs in the processes of a trial: a driver that dies where its fate says, and its actors."""

from __future__ import annotations

import functools
import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import UsageError, actors, events, job, storage, store
from pipeline.grid import Tile
from pipeline.scene_job import SceneJob
from pipeline.settings import RunSettings
from pipeline.stac import catalogue, publication


def drive(
    options: dict[str, Any],
    environment: dict[str, str],
    fate: dict[str, Any],
    log: str,
    report: str,
) -> None:
    """Run the job, with a line in `log` for each tile that an actor begins or ends.

    Args:
        options: of the run.
        environment: variables to add.
        fate: where the process kills itself, if at all: `point` (`plan`, `last-tile`, `publish`,
            `write`, `tile`), and for the latter three the `count` before it and whether `after`.
        log: of the trial.
        report: the file for what the run reports; an object with `usage` if it was refused.
    """
    os.environ.update(environment)
    watched = functools.partial(actors.ActorPool, actor=observed(log))
    job.ActorPool = watched  # type: ignore[misc, assignment]
    listeners = _prepare(fate, log)
    try:
        told = asdict(job.run(RunSettings.from_options(options), listeners))
    except UsageError as error:
        told = {"usage": str(error)}
    Path(report).write_text(json.dumps(told))


def observed(log: str) -> type:
    """An actor that leaves a line when it begins a piece of work and when it has done it."""

    class Observed(actors.TileActor):
        def work(self, scene: SceneJob, tile: Tile | None) -> Any:
            name = f"{scene.scene_id} {'preparation' if tile is None else tile.key}"
            note(log, f"begin {name} {os.getpid()} {os.environ.get('RAY_RAYLET_PID', '0')}")
            result = super().work(scene, tile)
            failed = isinstance(result, actors.Failure)
            note(log, f"{'fail' if failed else 'end'} {name}")
            return result

    return Observed


def note(log: str, line: str) -> None:
    """Add a line in one write, which no other process's can split."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def _prepare(fate: dict[str, Any], log: str) -> list[Callable[[events.Event], None]]:
    point = fate.get("point")
    if point == "plan":
        _die_instead_of(job, "make_plan", log)
    elif point == "last-tile":
        _die_instead_of(store.SceneStore, "publish", log)
    elif point == "write":
        _Writes(fate, log).count_all()
    elif point == "publish":
        _Writes(fate, log).count_while_publishing()
    elif point == "tile":
        return [_DieAtTile(fate["count"], log)]
    return []


def _die(log: str, point: str) -> None:
    note(log, f"died {point}")
    os.kill(os.getpid(), signal.SIGKILL)


def _die_instead_of(owner: Any, name: str, log: str) -> None:
    setattr(owner, name, lambda *_: _die(log, f"before {name}"))


class _Writes:
    """The driver's own whole-object writes; it dies before or after the n-th that counts."""

    def __init__(self, fate: dict[str, Any], log: str) -> None:
        self._left, self._after, self._log = fate["count"], fate["after"], log
        self._counting = False
        self._write = storage.write_atomic
        for module in (job, store, catalogue, publication):
            module.write_atomic = self  # type: ignore[attr-defined]

    def count_all(self) -> None:
        self._counting = True

    def count_while_publishing(self) -> None:
        publish = store.SceneStore.publish

        def counted(*arguments: Any) -> None:
            self._counting = True
            publish(*arguments)
            self._counting = False

        store.SceneStore.publish = counted  # type: ignore[method-assign]

    def __call__(self, filesystem: Any, path: str, data: bytes) -> None:
        self._left -= self._counting
        hit = self._left < 0
        if hit and not self._after:
            _die(self._log, f"before {_kind_of(path)}")
        self._write(filesystem, path, data)
        if hit:
            _die(self._log, f"after {_kind_of(path)}")


def _kind_of(path: str) -> str:
    """The end of an object's path that tells what it is."""
    parts = path.split("/")
    return "/".join(parts[-2:]) if "overviews" not in parts else "overviews/zarr.json"


class _DieAtTile:
    """Dies when the driver hears of the n-th finished tile."""

    def __init__(self, count: int, log: str) -> None:
        self._left, self._log = count, log

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.TileFinished):
            self._left -= 1
            if self._left < 0:
                _die(self._log, "after a tile")
