"""Peak memory of a worker on scenes that are 1, 4 and 16 times as large.

    python -m benchmarks.memory [--size 512] [--tile 64] [--bands 64] [--features 64]

Every scene is prepared and processed, tile by tile and three at a time as in the actor, by a worker
in a process of its own; the figure is that process's peak resident set. Beside it stands what the
plan foretells.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.common import make_net, print_table, write_checkpoint
from benchmarks.scenes import job_settings, write_scene
from pipeline import RunSettings
from pipeline.footprint import IN_FLIGHT
from pipeline.job import load_model
from pipeline.plan import make_plan
from pipeline.worker import Worker


def peak_of_worker(settings: RunSettings) -> tuple[float, float, int]:
    """Megabytes that the worker takes at most, that the plan foretells, and the tiles."""
    model = load_model(settings)
    plan = make_plan(settings, model)
    [scene] = plan.work
    job = scene.job
    assert job is not None
    worker = Worker(model.data, "cpu", 2, settings.precision)
    worker.prepare(job)
    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        for _ in pool.map(lambda tile: worker.process(job, tile), job.grid):
            pass
    return peak_resident() / 1e6, plan.worker_bytes / 1e6, len(job.grid)


def peak_resident() -> int:
    """Bytes. Not `ru_maxrss`, which a new process takes over from the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="LR pixels a side of the smallest")
    parser.add_argument("--tile", type=int, default=64)
    parser.add_argument("--bands", type=int, default=64)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--precision", default="auto")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    model = folder / "net.safetensors"
    write_checkpoint(make_net(given.bands, features=given.features), model)
    rows, smallest = [], 0.0
    for factor in (1, 2, 4):
        size = factor * given.size
        write_scene(folder / f"{size}" / "scene.zarr", given.bands, size, size)
        options = {"tile": given.tile, "precision": given.precision}
        settings = job_settings(folder / f"{size}", model, folder / "out", **options)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peak, foretold, tiles = pool.submit(peak_of_worker, settings).result()
        smallest = smallest or peak
        rows.append([f"{factor**2} x", tiles, peak, peak / smallest, foretold])
        shutil.rmtree(folder / "out")
    shutil.rmtree(folder)
    print_table(
        f"{given.bands} bands, {given.features} features, tiles of {given.tile}",
        ["scene", "tiles", "peak MB", "x the smallest", "plan says MB"],
        rows,
    )


if __name__ == "__main__":
    main()
