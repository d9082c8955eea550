"""How busy the actors of a run are: the real job on an archive of scenes of very different sizes.

    python -m benchmarks.utilisation [--scenes 50] [--actors 2] [--runs 3]

Utilisation is the part of the time from the first tile's begin to the last one's end in which an
actor computes, on average over the actors: one of its computing threads runs the network on a tile,
or measures a scene's constants. The rest is divided by what the actor had in hand meanwhile. All
are shares of the same time, so other work on the machine, which makes everything slower, disturbs
them little.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.common import make_net, print_table, write_checkpoint
from benchmarks.scenes import job_settings, write_scene
from pipeline import job
from pipeline.actors import ActorPool, TileActor
from pipeline.grid import Tile
from pipeline.scene_job import SceneJob

Span = tuple[float, float]


def observed(folder: Path) -> type:
    """An actor that leaves a line for each piece of work and each use of its computing threads."""

    class Observed(TileActor):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self._log = folder / f"{os.getpid()}-{time.time_ns()}.jsonl"
            computer = self._worker._computer
            computer._pool = _Noted(computer._pool, self._note)

        def work(self, scene: SceneJob, tile: Tile | None) -> Any:
            begin = time.time()
            result = super().work(scene, tile)
            self._note("preparing" if tile is None else "tile", begin)
            return result

        def _note(self, what: str, begin: float) -> None:
            with self._log.open("a") as file:
                file.write(json.dumps([what, begin, time.time()]) + "\n")

    return Observed


class _Noted(ThreadPoolExecutor):
    """The worker's computing threads, with a note on each use."""

    def __init__(self, inner: ThreadPoolExecutor, note: Any) -> None:
        self._inner, self._tell = inner, note

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        def noted() -> Any:
            begin = time.time()
            try:
                return work(*args, **kwargs)
            finally:
                self._tell("computing", begin)

        return self._inner.submit(noted)


@dataclass(frozen=True)
class Use:
    """Parts of the actors' time, which together are 1."""

    computing: float
    with_tiles: float  # tiles are read or written, and none computed
    preparing: float  # nothing but the preparation of scenes is in hand
    nothing: float  # in hand
    last: float  # of `nothing`: after the last piece of work was begun anywhere
    seconds: float
    tiles: int


def use(logs: list[dict[str, list[Span]]]) -> Use:
    """Of what each actor did when."""
    tiles = [span for log in logs for span in log["tile"]]
    first, end = min(begin for begin, _ in tiles), max(end for _, end in tiles)
    begun = max(begin for log in logs for spans in log.values() for begin, _ in spans)

    def part(*kinds: str, since: float = first) -> float:
        """Of the time since then, how much the actors spend in some of these."""
        spent = sum(
            covered([span for kind in kinds for span in log[kind]], since, end) for log in logs
        )
        return spent / len(logs) / (end - first)

    computing, tiled = part("computing"), part("computing", "tile")
    held = part("computing", "tile", "preparing")
    last = (end - begun) / (end - first) - part("computing", "tile", "preparing", since=begun)
    return Use(computing, tiled - computing, held - tiled, 1 - held, last, end - first, len(tiles))


def covered(spans: list[Span], first: float, end: float) -> float:
    """Length of the union of spans, within bounds."""
    total, reached = 0.0, first
    for begin, over in sorted(spans):
        begin, over = max(begin, reached), min(over, end)
        if over > begin:
            total += over - begin
            reached = over
    return total


def read_logs(folder: Path) -> list[dict[str, list[Span]]]:
    logs = []
    for path in folder.glob("*.jsonl"):
        spans: dict[str, list[Span]] = defaultdict(list)
        for line in path.read_text().splitlines():
            what, begin, end = json.loads(line)
            spans[what].append((begin, end))
        logs.append(spans)
    return logs


def write_archive(folder: Path, scenes: int, bands: int, tile: int, largest: int) -> None:
    """Scenes of 1 to `largest` tiles along a side, small ones as often as large ones."""
    draw = random.Random(7)
    for number in range(scenes):
        rows, columns = (round(tile * largest ** draw.random()) for _ in "yx")
        write_scene(folder / f"scene{number:03d}.zarr", bands, rows, columns, tile)


def measure(folder: Path, given: argparse.Namespace) -> Use:
    logs = Path(tempfile.mkdtemp(dir=folder))
    options = {"tile": given.tile, "workers": given.actors, "devices": "cpu"}
    settings = job_settings(folder / "scenes", folder / "net.safetensors", logs / "out", **options)
    pool = functools.partial(ActorPool, actor=observed(logs))
    with mock.patch.object(job, "ActorPool", pool):
        report = job.run(settings)
    assert report.count("published") == given.scenes
    shutil.rmtree(logs / "out")
    return use(read_logs(logs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--tile", type=int, default=64, help="LR pixels along a side")
    parser.add_argument("--largest", type=int, default=4, help="tiles along a scene's side")
    parser.add_argument("--bands", type=int, default=32)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    write_archive(folder / "scenes", given.scenes, given.bands, given.tile, given.largest)
    write_checkpoint(make_net(given.bands, features=given.features), folder / "net.safetensors")
    runs = [measure(folder, given) for _ in range(given.runs)]
    shutil.rmtree(folder)
    names = list(Use.__dataclass_fields__)
    rows = [[name, *(getattr(each, name) for each in runs)] for name in names]
    for row in rows:
        row.append(statistics.median(row[1:]))
    header = ["part of the time", *(f"run {number + 1}" for number in range(given.runs)), "median"]
    print_table(f"{given.scenes} scenes, {given.actors} actors", header, rows)


if __name__ == "__main__":
    main()
