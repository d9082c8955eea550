"""What can be struck, and how. Each strike starts a run, strikes it once and waits for its end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline.footprint import IN_FLIGHT
from pipeline.settings import RunSettings
from tests.chaos.stage import ACTORS, BUDGET, SCENES, Place, Stage, ended, raylet_of, read_report

_TILES = 28
_LINES = 2 * (_TILES + len(SCENES))  # of an undisturbed run: a beginning and an end each
_WRITES = 16  # of the driver: run record, ledgers, documents of groups, quicklooks, catalogue
_PUBLISHING = 8  # of them, those that publish two scenes
_POLL = 0.005
_LULL = 0.3  # seconds, about as long as a tile
_GRACE = 20.0  # seconds after which a driver whose own node died is killed too
_MEMORY = Path("/sys/fs/cgroup/memory")
_MEMORY_LEFT = 64 << 10  # what an actor has already stays charged where it was
_MANY_ATTEMPTS = RunSettings.model_fields["max_attempts"].default


@dataclass
class Blow:
    """What a strike came to.

    Attributes:
        struck: whether it fell before the run had ended by itself.
        point: where, if that is known.
        faults: what the struck run should have done and did not.
    """

    struck: bool = False
    point: str = ""
    faults: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Kind:
    """A kind of strike.

    Attributes:
        strike: starts, strikes and awaits one run.
        most: pieces of work that may be begun again because of it.
        where: the place of a trial, by its name.
    """

    strike: Callable[[Stage, Place, random.Random], Blow]
    most: int
    where: Callable[[Stage, str], Place] = Stage.place


# --- the driver ---------------------------------------------------------------------------------


def driver_at_any_time(stage: Stage, place: Place, chance: random.Random) -> Blow:
    process = stage.start(place)
    process.join(chance.uniform(0.1, 0.95) * stage.typical)
    struck = process.is_alive()
    process.kill()
    process.join()
    return Blow(struck)


def driver_at(point: str, most: int) -> Callable[[Stage, Place, random.Random], Blow]:
    """The driver kills itself at a named point, at the n-th time that it gets there."""

    def strike(stage: Stage, place: Place, chance: random.Random) -> Blow:
        fate = {"point": point, "count": chance.randrange(most), "after": chance.random() < 0.5}
        ended(stage.start(place, fate))
        died = [" ".join(line[1:]) for line in place.lines() if line[0] == "died"]
        return Blow(bool(died), "".join(died))

    return strike


# --- what runs below it -------------------------------------------------------------------------


def actor(stage: Stage, place: Place, chance: random.Random) -> Blow:
    """One actor's process, once; the run goes on and ends by itself."""
    with _going_on(stage, place, chance) as (blow, pids):
        if pids:
            blow.struck = _kill([chance.choice(pids)])
    return blow


def memory(stage: Stage, place: Place, chance: random.Random) -> Blow:
    """One actor gets into a memory group that is full; the kernel kills it for that."""
    group = _MEMORY / f"sr-archive-chaos-{os.getpid()}"
    group.mkdir(exist_ok=True)
    try:
        (group / "memory.limit_in_bytes").write_text(str(_MEMORY_LEFT))
        with _going_on(stage, place, chance) as (blow, pids):
            if pids:
                with contextlib.suppress(ProcessLookupError):  # the run has just ended
                    (group / "cgroup.procs").write_text(str(chance.choice(pids)))
        kills = (group / "memory.oom_control").read_text().split()[-1]
        blow.struck = kills != "0"
    finally:
        _until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()
    return blow


def memory_groups() -> bool:
    return os.access(_MEMORY / "cgroup.procs", os.W_OK)


def node(stage: Stage, place: Place, chance: random.Random) -> Blow:
    """A node: its raylet, or all of its processes at once as of a machine that fails."""
    with _going_on(stage, place, chance) as (blow, _):
        chosen = chance.choice(stage.nodes)
        raylet = raylet_of(chosen)
        lost = [raylet]
        if chance.random() < 0.5:
            lost += [each.pid for each in psutil.Process(raylet).children(recursive=True)]
            lost += _actors(place, of_raylet=raylet)
        blow.struck, blow.point = _kill(lost), f"{len(lost)} processes"
    return blow


def raylet(stage: Stage, place: Place, chance: random.Random) -> Blow:
    """The node under a driver that has a Ray of its own."""
    process = stage.start(place, own_ray=True)
    _wait_for_lines(place, chance.randrange(_LINES), process)
    process.join(chance.uniform(0, _LULL))
    below = psutil.Process(process.pid).children(recursive=True) if process.is_alive() else []
    struck = _kill([each.pid for each in below if each.name() == "raylet"])
    process.join(_GRACE)
    process.kill()
    process.join()
    return Blow(struck)


@contextmanager
def _going_on(
    stage: Stage, place: Place, chance: random.Random
) -> Iterator[tuple[Blow, list[int]]]:
    """A run that is struck inside, at a random point, and has to finish by itself."""
    process = stage.start(place)
    try:
        _wait_for_lines(place, chance.randrange(1, _LINES), process)
        process.join(chance.uniform(0, _LULL))
        blow = Blow()
        yield blow, _actors(place) if process.is_alive() else []
    finally:
        ended(process)
    if any(row["status"] != "published" for row in read_report(place)["rows"]):
        blow.faults.append("the run did not go on to its end by itself")


# --- what it writes to --------------------------------------------------------------------------


def server(stage: Stage, place: Place, chance: random.Random) -> Blow:
    """The S3 server, killed and started again: soon, or after the run has given up."""
    process = stage.start(place)
    away = chance.uniform(0, BUDGET / 3) if chance.random() < 0.75 else 2 * BUDGET
    _wait_for_lines(place, chance.randrange(1, _LINES), process)
    process.join(chance.uniform(0, _LULL))
    blow = Blow(process.is_alive(), f"away for {away:.0f} s")
    stage.s3.kill()
    process.join(away)
    stage.s3.start()
    ended(process)
    for line in _reasons(read_report(place)):
        if "gave no answer" not in line or "\n" in line:
            blow.faults.append(line)
    return blow


def disk(stage: Stage, place: Place, chance: random.Random) -> Blow:
    """The output's disk is full at a random point, and the run must say so and end by itself."""
    assert stage.small is not None
    left = round(chance.uniform(0, 1.02) * stage.need)
    with _ballast(stage.small, left):
        ended(stage.start(place))
    lines = _reasons(read_report(place))
    blow = Blow(bool(lines), f"{left >> 10} KiB left")
    blow.faults += [line for line in lines if "No space left" not in line or "\n" in line]
    return blow


@contextmanager
def _ballast(folder: Path, left: int) -> Iterator[None]:
    """A file that leaves so many bytes free."""
    path = folder / "ballast"
    room = os.statvfs(folder)
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize - left)
        yield
    finally:
        path.unlink()


def _reasons(report: dict[str, Any]) -> list[str]:
    """Why scenes were not published, and what the run could not do beside them."""
    if "usage" in report:
        return [report["usage"]]
    return [row["reason"] for row in report["rows"] if row["reason"]] + report["notes"]


# --- processes ----------------------------------------------------------------------------------


def _wait_for_lines(place: Place, count: int, process: Any) -> None:
    while process.is_alive() and len(place.lines()) < count:
        process.join(_POLL)


def _actors(place: Place, of_raylet: int = 0) -> list[int]:
    """Actors that have begun work in this trial."""
    begun = [(int(line[3]), int(line[4])) for line in place.lines() if line[0] == "begin"]
    return sorted({pid for pid, raylet in begun if of_raylet in (0, raylet)})


def _kill(pids: list[int]) -> bool:
    """Whether there was one of them."""
    killed = False
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
            killed = True
        except ProcessLookupError:
            continue
    return killed


def _until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(_POLL)


_ALL = ACTORS * IN_FLIGHT
# A store that refuses fails what is in flight, each piece as often as it is tried.
_REFUSED = _ALL * _MANY_ATTEMPTS * len(SCENES)

KINDS: dict[str, Kind] = {
    "driver": Kind(driver_at_any_time, _ALL),
    "plan": Kind(driver_at("plan", 1), 0),
    "tile": Kind(driver_at("tile", _TILES), _ALL),
    "last-tile": Kind(driver_at("last-tile", 1), _ALL),
    "publish": Kind(driver_at("publish", _PUBLISHING), _ALL),
    "write": Kind(driver_at("write", _WRITES), _ALL),
    "actor": Kind(actor, IN_FLIGHT),
    "memory": Kind(memory, IN_FLIGHT),
    "node": Kind(node, 2 * IN_FLIGHT),
    "raylet": Kind(raylet, IN_FLIGHT * (os.cpu_count() or 1)),
    "server": Kind(server, _REFUSED, Stage.place_on_s3),
    "disk": Kind(disk, _REFUSED, lambda stage, name: stage.place(name, stage.small)),
}
