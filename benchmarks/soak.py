"""Thousands of small scenes in one run: what the driver, its actors and Ray hold on the way.

    python -m benchmarks.soak [--scenes 2000] [--size 24] [--bands 8] [--rows 10]

The run is `pipeline.job.run` in a process of its own, with a Ray of its own; another process looks
at it while it runs. Memory is what a process shares with no other (USS). A third of the scenes are
ENVI, a third GeoTIFF and a third Zarr. Growth is counted from a fifth of the scenes on, when all
caches have been filled.
"""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rasterio

from benchmarks.common import make_net, print_row, print_table, write_checkpoint
from benchmarks.processes import Processes
from benchmarks.scenes import SCALE_FACTOR, job_settings, write_scene
from pipeline import events
from pipeline.events import Event
from pipeline.job import run

_WARM = 5  # growth is counted from a fifth of the scenes on
_NEAR = 5  # samples that make one figure
_WHAT = ("MB", "files", "threads")


@dataclass(frozen=True)
class Sample:
    """The processes of a run after so many scenes, at a time in seconds."""

    scenes: int
    seconds: float
    held: Processes


@dataclass
class Soak:
    """What a run did: samples, and how long after its start things had happened, in seconds."""

    samples: list[Sample] = field(default_factory=list)
    planned: float = 0.0
    last_scene: float = 0.0
    ended: float = 0.0
    published: int = 0

    def at(self, scenes: int) -> Sample:
        """The median of the samples around that number of scenes."""
        near = sorted(self.samples, key=lambda sample: abs(sample.scenes - scenes))[:_NEAR]
        seconds = statistics.median(each.seconds for each in near)
        return Sample(scenes, seconds, Processes.median([each.held for each in near]))


def soak(
    folder: Path,
    scenes: int,
    size: int = 24,
    bands: int = 8,
    *,
    every: float = 1.0,
    looked: Callable[[Soak], None] = lambda found: None,
) -> Soak:
    """Run the job on that many scenes and look at its processes every so many seconds.

    `looked` is called with what is known so far, after each look.
    """
    write_archive(folder / "scenes", scenes, size, bands)
    write_checkpoint(make_net(bands, features=16, blocks=1), folder / "net.safetensors")
    context = multiprocessing.get_context("spawn")
    done, (ours, theirs) = context.Value("i", 0), context.Pipe(duplex=False)
    driver = context.Process(target=_drive, args=(folder, size, done, theirs))
    driver.start()
    theirs.close()
    found = Soak()
    while driver.is_alive():
        if 0 < done.value < scenes:  # the actors are there
            with suppress(psutil.NoSuchProcess):
                found.samples.append(
                    Sample(done.value, time.perf_counter(), Processes.of(driver.pid))
                )
                looked(found)
        driver.join(every)
    found.planned, found.last_scene, found.ended, found.published = ours.recv()
    return found


def _drive(folder: Path, size: int, done: Any, told: Any) -> None:
    started, at = time.perf_counter(), {}

    def listen(event: Event) -> None:
        at[type(event)] = time.perf_counter() - started
        if isinstance(event, events.SceneFinished):
            done.value += 1

    settings = job_settings(
        folder / "scenes", folder / "net.safetensors", folder / "out", tile=size
    )
    report = run(settings, [listen])
    kinds = (events.RunPlanned, events.SceneFinished, events.RunFinished)
    told.send((*(at[kind] for kind in kinds), report.count("published")))


def write_archive(folder: Path, scenes: int, size: int, bands: int) -> None:
    """Copies of one scene in three formats, by turns."""
    folder.mkdir(parents=True)
    first = folder.parent / "first"
    write_scene(first / "scene.zarr", bands, size, size)
    values = np.random.default_rng(0).integers(2000, 5000, (bands, size, size), dtype=np.int16)
    _write_envi(first / "scene", values)
    with rasterio.open(
        first / "scene.tif", "w", "GTiff", size, size, bands, dtype=values.dtype
    ) as file:
        file.write(values)
        file.scales = [SCALE_FACTOR] * bands
    for number in range(scenes):
        for suffix in ((".hdr", ".img"), (".tif",), (".zarr",))[number % 3]:
            copy: Callable[..., object] = shutil.copytree if suffix == ".zarr" else shutil.copyfile
            copy(first / f"scene{suffix}", folder / f"s{number:05d}{suffix}")


def _write_envi(path: Path, values: np.ndarray) -> None:
    bands, rows, columns = values.shape
    fields = {
        "samples": columns,
        "lines": rows,
        "bands": bands,
        "data type": 2,
        "interleave": "bsq",
        "byte order": 0,
        "header offset": 0,
        "reflectance scale factor": round(1 / SCALE_FACTOR),
    }
    lines = ["ENVI", *(f"{name} = {value}" for name, value in fields.items())]
    path.with_suffix(".hdr").write_text("\n".join(lines) + "\n")
    path.with_suffix(".img").write_bytes(values.tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--size", type=int, default=24, help="pixels along a scene's side")
    parser.add_argument("--bands", type=int, default=8)
    parser.add_argument("--rows", type=int, default=10, help="rows of the table")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    print_table(
        f"{given.scenes} scenes of {given.bands} x {given.size} x {given.size}",
        ["scenes", "s", *(f"{name} {what}" for name in Processes.NAMES for what in _WHAT)],
        [],
    )
    steps = deque(given.scenes * step // given.rows for step in range(1, given.rows))

    def looked(found: Soak) -> None:
        if steps and found.samples[-1].scenes >= steps[0]:
            print_row(row(found, steps.popleft()))

    found = soak(folder, given.scenes, given.size, given.bands, looked=looked)
    shutil.rmtree(folder)
    print_row(row(found, given.scenes))
    print(
        f"\n{found.published} published; planned after {found.planned:.1f} s, the last scene after "
        f"{found.last_scene:.1f} s, the end with the catalogue after {found.ended:.1f} s"
    )
    first, last = found.at(given.scenes // _WARM), found.at(given.scenes)
    print_table(
        f"growth from {first.scenes} scenes to {last.scenes}",
        ["", *_WHAT, "bytes per scene"],
        [
            [name, *grown.row, 1e6 * grown.megabytes / (last.scenes - first.scenes)]
            for name, grown in zip(Processes.NAMES, last.held.growth(first.held), strict=True)
        ],
    )


def row(found: Soak, scenes: int) -> list[object]:
    at = found.at(scenes)
    seconds = at.seconds - found.samples[0].seconds
    return [scenes, seconds, *(value for part in at.held.parts for value in part.row)]


if __name__ == "__main__":
    main()
