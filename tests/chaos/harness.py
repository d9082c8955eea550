"""One archive, one undisturbed output, and trials that must end in the same bytes."""

from __future__ import annotations

import json
import multiprocessing
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pipeline.footprint import IN_FLIGHT
from tests.archives import SCALE_FACTOR, array_bytes, counts, write_model
from tests.chaos.child import drive
from tests.scenes import write_geotiff, write_zarr

TILE = 16
SCENES = {"first": (64, 64), "second": (40, 56)}
LEASE = {"SR_ARCHIVE_LEASE_SECONDS": "3"}
_LONGEST = 180.0  # seconds for one run of a trial
_POLL = 0.01
_WRITES = 15  # of the driver: run record, ledgers, group documents, quicklooks, catalogue
_TILES = 28
_RAY_START = 4.0  # seconds that a driver takes longer with a Ray of its own
_GRACE = 20.0  # seconds after which a driver whose node died is killed too

Bytes = dict[str, dict[str, bytes]]


@dataclass
class Outcome:
    """What one trial came to.

    Attributes:
        kind: what was killed.
        struck: whether it was killed before the run had ended by itself.
        same: whether the output is that of the undisturbed run, to the byte.
        partial: scenes that a reader could see before they were whole.
        redone: tiles whose shards were there and that were computed again.
        runs: how many runs it took, the struck one included.
    """

    kind: str
    seed: int
    struck: bool = False
    same: bool = False
    partial: list[str] = field(default_factory=list)
    redone: int = 0
    runs: int = 0
    seconds: float = 0.0

    @property
    def good(self) -> bool:
        return self.same and not self.partial and self.redone <= IN_FLIGHT


class Stage:
    """The archive and what an undisturbed run makes of it."""

    def __init__(self, folder: Path, ray_address: str) -> None:
        self.folder, self.ray_address = folder, ray_address
        self.source = folder / "source"
        self.source.mkdir(parents=True)
        write_zarr(self.source / "first.zarr", counts(*SCENES["first"]), scale_factor=SCALE_FACTOR)
        second = counts(*SCENES["second"], seed=1)
        write_geotiff(self.source / "second.tif", second, scale=SCALE_FACTOR)
        self.model = write_model(folder)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.chaos.child", "pipeline.worker", "ray"])
        self.finish(folder / "reference")
        started = time.monotonic()  # of a second run: the first one warms Ray and the fork server
        self.finish(folder / "timed")
        self.typical = time.monotonic() - started
        self.reference = self.contents(folder / "reference")
        assert set(self.reference) == set(SCENES)

    def contents(self, output: Path) -> Bytes:
        return {
            name: array_bytes(output / f"{name}.zarr")
            for name in SCENES
            if (output / f"{name}.zarr" / "zarr.json").exists()
        }

    def start(
        self, output: Path, fate: dict[str, Any] | None = None, *, own_ray: bool = False
    ) -> Any:
        """A driver process on this output, on the common Ray or one that it starts itself."""
        options = {
            "source": str(self.source),
            "output": str(output),
            "model": str(self.model),
            "tile": TILE,
            "ray_address": None if own_ray else self.ray_address,
        }
        output.mkdir(parents=True, exist_ok=True)
        told = {**(fate or {}), "report": str(output / "report.json")}
        process = self._context.Process(target=drive, args=(options, LEASE, told))
        process.start()
        return process

    def some_time(self, chance: random.Random) -> float:
        """Seconds after the start, mostly before the end."""
        return chance.uniform(0.1, 0.95) * self.typical

    def finish(self, output: Path) -> tuple[dict[str, Any], int]:
        """Run until every scene is published; the last report and the number of runs."""
        deadline = time.monotonic() + _LONGEST
        runs = 0
        while time.monotonic() < deadline:
            runs += 1
            (output / "report.json").unlink(missing_ok=True)
            process = self.start(output)
            process.join(_LONGEST)
            report = json.loads((output / "report.json").read_text())
            there = {row["status"] for row in report["rows"]}
            if there == {"published"} or self.contents(output).keys() == set(SCENES):
                return report, runs
            time.sleep(0.5)  # a lease of the run that was killed has still to end
        raise TimeoutError(f"{output}: not finished within {_LONGEST:.0f} s")


class Reader(threading.Thread):
    """Someone who opens scenes all the time; remembers those that were visible and not whole."""

    def __init__(self, stage: Stage, output: Path) -> None:
        super().__init__(daemon=True)
        self._stage, self._output = stage, output
        self._ended = threading.Event()
        self.partial: set[str] = set()

    def run(self) -> None:
        whole: set[str] = set()
        while not self._ended.is_set():
            for name, objects in self._stage.reference.items():
                store = self._output / f"{name}.zarr"
                if name in whole or not (store / "zarr.json").exists():
                    continue
                if not all((store / key).is_file() for key in objects):
                    self.partial.add(name)
                whole.add(name)
            time.sleep(_POLL)

    def end(self) -> set[str]:
        self._ended.set()
        self.join()
        return self.partial


Strike = Callable[[Stage, Path, random.Random], bool]


def trial(stage: Stage, kind: str, strike: Strike, seed: int) -> Outcome:
    """Strike one run, finish the work, compare."""
    outcome = Outcome(kind, seed)
    output = stage.folder / f"{kind}-{seed}"
    started = time.monotonic()
    reader = Reader(stage, output)
    reader.start()
    outcome.struck = strike(stage, output, random.Random(seed))
    present = Counter(
        name for name in SCENES for _ in _shards(output / f"{name}.zarr" / "reflectance")
    )
    report, runs = stage.finish(output)
    outcome.runs = runs + 1
    for row in report["rows"]:
        if runs == 1 and row["status"] == "published":
            outcome.redone += max(0, present[row["scene_id"]] - row["tiles_kept"])
    outcome.partial = sorted(reader.end())
    outcome.same = stage.contents(output) == stage.reference
    outcome.seconds = round(time.monotonic() - started, 1)
    if outcome.good:
        shutil.rmtree(output)
    return outcome


def _shards(array: Path) -> list[Path]:
    return [path for path in (array / "c").rglob("*") if path.is_file()] if array.is_dir() else []


# --- what can be struck -------------------------------------------------------------------------


def driver_at_any_time(stage: Stage, output: Path, chance: random.Random) -> bool:
    process = stage.start(output)
    process.join(stage.some_time(chance))
    struck = process.is_alive()
    process.kill()
    process.join()
    return struck


def driver_at_a_write(stage: Stage, output: Path, chance: random.Random) -> bool:
    """Before or after one of the driver's own writes: run record, ledger, group documents."""
    fate = {"write": chance.randrange(_WRITES), "after": chance.random() < 0.5}
    return _killed_itself(stage, output, fate)


def driver_at_a_tile(stage: Stage, output: Path, chance: random.Random) -> bool:
    return _killed_itself(stage, output, {"tile": chance.randrange(_TILES)})


def _killed_itself(stage: Stage, output: Path, fate: dict[str, Any]) -> bool:
    process = stage.start(output, fate)
    process.join(_LONGEST)
    return bool(process.exitcode)


def actor(stage: Stage, output: Path, chance: random.Random) -> bool:
    """One actor's process, once; the run goes on and ends by itself."""
    process = stage.start(output)
    wanted = stage.some_time(chance)
    started, struck = time.monotonic(), False
    while process.is_alive():
        if not struck and time.monotonic() - started >= wanted:
            struck = _kill(_actors())
        process.join(_POLL)
    return struck


def raylet(stage: Stage, output: Path, chance: random.Random) -> bool:
    """The node under a driver that has a Ray of its own."""
    process = stage.start(output, own_ray=True)
    process.join(stage.some_time(chance) + _RAY_START * chance.random())
    struck = process.is_alive() and _kill(_below(process.pid, "raylet"))
    process.join(_GRACE)
    process.kill()
    process.join()
    return struck


def _below(pid: int, name: str) -> list[psutil.Process]:
    return [each for each in psutil.Process(pid).children(recursive=True) if each.name() == name]


def _actors() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if "TileActor" in " ".join(process.info["cmdline"] or [])
    ]


def _kill(processes: list[psutil.Process]) -> bool:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return bool(processes)


STRIKES: dict[str, Strike] = {
    "driver": driver_at_any_time,
    "write": driver_at_a_write,
    "tile": driver_at_a_tile,
    "actor": actor,
    "raylet": raylet,
}
