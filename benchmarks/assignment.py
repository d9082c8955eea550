"""Workers that stay with a scene, against workers that all share the scene in hand.

    python -m benchmarks.assignment [--scenes 16] [--side 6] [--workers 4] [--runs 3]

The real job from and to a SeaweedFS, scenes of side x side tiles, a small network as it would be on
a GPU, so that opening scenes counts as it would there. There are as many workers as are asked for,
on however many processors; the clock runs from the first tile's end to the last one's. The one side
gives a scene another worker for every 64 of its tiles, the other for every one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest import mock

import fsspec
import ray

import pipeline.job
from benchmarks.common import make_net, print_table, write_checkpoint
from benchmarks.counted import counted_runs
from benchmarks.scenes import job_settings, write_scene
from infra.local_s3 import LocalS3
from pipeline import events
from pipeline.assignment import TILES_PER_WORKER
from pipeline.dispatch import Dispatcher
from pipeline.job import run
from pipeline.ray_token import own_token
from pipeline.settings import RunSettings
from pipeline.traffic import Traffic

_TILE, _BANDS = 32, 32


def measure(settings: RunSettings, tiles_per_worker: int) -> tuple[float, Traffic]:
    """Seconds from the first tile to the last, and what the workers sent."""
    ends: list[float] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.TileFinished):
            ends.append(time.perf_counter())

    dispatcher = partial(Dispatcher, tiles_per_worker=tiles_per_worker)
    with counted_runs() as meters, mock.patch.object(pipeline.job, "Dispatcher", dispatcher):
        report = run(settings, [listen])
    assert report.count("published") == len(report.rows)
    return ends[-1] - ends[0], meters[0].traffic


def _put_archive(server: LocalS3, folder: Path, scenes: int, side: int) -> None:
    for number in range(scenes):
        write_scene(folder / "scenes" / f"s{number}.zarr", _BANDS, *2 * (side * _TILE,), chunk=64)
    fsspec.filesystem("s3").put(f"{folder}/scenes/", server.url("in"), recursive=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=16)
    parser.add_argument("--side", type=int, default=6, help="tiles along a side of each scene")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    sides = {"share every scene": 1, "stay with a scene": TILES_PER_WORKER}
    found: dict[str, list[tuple[float, Traffic]]] = {name: [] for name in sides}
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as place,
        LocalS3() as server,
        own_token(),
    ):
        os.environ.update(server.merged_environment())
        model = Path(place) / "net.safetensors"
        write_checkpoint(make_net(_BANDS, features=16, blocks=1), model)
        _put_archive(server, Path(place), given.scenes, given.side)
        ray.init(num_cpus=given.workers, log_to_driver=False, include_dashboard=False)
        for index in range(given.runs):
            for name, tiles_per_worker in sides.items():
                output = server.url(f"out-{index}-{tiles_per_worker}")
                options = {"tile": _TILE, "workers": given.workers}
                settings = job_settings(server.url("in"), model, output, **options)
                found[name].append(measure(settings, tiles_per_worker))
        ray.shutdown()
    tiles = given.scenes * given.side**2
    before = statistics.median(seconds for seconds, _ in found["share every scene"])
    rows = []
    for name, runs in found.items():
        seconds = statistics.median(each for each, _ in runs)
        sent = [each.of(kind) / tiles for kind in ("GET", "PUT") for _, each in runs[-1:]]
        received = runs[-1][1].received / tiles / 1e6
        rows.append([name, seconds, seconds / before, *sent, received])
    print_table(
        f"{given.scenes} scenes of {given.side**2} tiles, {given.workers} workers, median of "
        f"{given.runs} runs",
        ["workers", "s", "against shared", "GET a tile", "PUT a tile", "MB received a tile"],
        rows,
    )


if __name__ == "__main__":
    main()
