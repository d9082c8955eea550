"""The job with a network that does nothing, against writing the same values with Zarr alone.

    python -m benchmarks.identity [--tiles 6] [--tile 64] [--bands 128] [--runs 3]

The job reads, repeats every pixel, encodes and writes through one Ray actor; its clock runs from
the first tile to the last. The other side writes the same arrays (values, quality, overviews),
already in memory, with the same chunks, shards and codecs, shard by shard, to the same disk.
Processor time is that of the whole machine, on which nothing else should run.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import zarr

from benchmarks.common import make_net, print_table, write_checkpoint
from benchmarks.scenes import job_settings, write_scene
from model import AttentionStatistics, SSPSRConfig
from model.extent import Extent
from pipeline import RunSettings
from pipeline.actors import ActorPool, TileActor
from pipeline.arrays import is_of_tile
from pipeline.dispatch import Admission, Dispatcher, Handlers
from pipeline.job import load_model
from pipeline.ledger import TileRecord
from pipeline.plan import make_plan
from pipeline.ray_session import Share, ray_session
from pipeline.scene_job import SceneJob
from pipeline.worker import Prepared


class Repeat:
    """In the place of an engine: every LR pixel becomes scale x scale equal ones."""

    halo = 0
    precision = "fp32"

    def __init__(self, config: SSPSRConfig, device: Any, statistics: Any) -> None:
        self.config, self.device, self.statistics = config, device, statistics

    def with_statistics(self, statistics: Any) -> Repeat:
        return Repeat(self.config, self.device, statistics)

    def measure(self, samples: Any) -> AttentionStatistics:
        groups = len(self.config.group_starts)
        zeros = samples.new_zeros(groups, self.config.blocks, self.config.features)
        return AttentionStatistics(zeros, zeros[0].clone())

    def tile(self, x: Any, rows: Extent, columns: Extent) -> Any:
        scale = self.config.scale
        core = x[:, :, rows.start : rows.stop, columns.start : columns.stop]
        samples, bands, height, width = core.shape
        repeated = core[:, :, :, None, :, None].expand(-1, -1, -1, scale, -1, scale)
        return repeated.reshape(samples, bands, scale * height, scale * width)


class RepeatActor(TileActor):
    """A tile actor whose network is `Repeat`."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        engine = self._worker._engine
        self._worker._engine = Repeat(engine.config, engine.device, None)  # type: ignore[assignment]


@dataclass(frozen=True)
class Spent:
    """Seconds, of which the machine's processors are busy so many and idle so many."""

    seconds: float
    busy: float
    idle: float

    @classmethod
    def until_now(cls) -> Spent:
        """Since some moment of the past, always the same."""
        times = psutil.cpu_times()
        idle = times.idle + times.iowait
        counted = times.user + times.nice + times.system + times.irq + times.softirq
        return cls(time.perf_counter(), counted, idle)

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.seconds - other.seconds, self.busy - other.busy, self.idle - other.idle)


class Clock:
    """From the first tile that could start to the last that ended."""

    def __init__(self) -> None:
        self.started = self.ended = Spent.until_now()

    def prepared(self, job: SceneJob, prepared: Prepared) -> None:
        self.started = Spent.until_now()

    def tile(self, job: SceneJob, record: TileRecord) -> None:
        self.ended = Spent.until_now()

    def failed(self, job: SceneJob, code: str, message: str) -> None:
        raise RuntimeError(f"{code}: {message}")


def through_the_job(settings: RunSettings) -> Spent:
    model = load_model(settings)
    [scene] = make_plan(settings, model).work
    assert scene.job is not None
    clock = Clock()
    pool = ActorPool(model.data, Share("cpu", 1, 2.0, 0.0), actor=RepeatActor)
    handlers = Handlers(clock.prepared, clock.tile, lambda work, reason: None, clock.failed)
    dispatcher = Dispatcher(pool, handlers, 1, lambda job: Admission("go"))
    dispatcher.add(scene.job)
    dispatcher.run()
    pool.close()
    store = scene.job.store()
    store.publish({}, store.ledger())
    return clock.ended - clock.started


def with_zarr_alone(arrays: Mapping[str, Any], path: Path) -> Spent:
    """Write `name: (values, the array to be like)`."""
    copies = []
    for name, (values, like) in arrays.items():
        copy = zarr.create_array(
            path / name,
            shape=like.shape,
            dtype=like.dtype,
            chunks=like.chunks,
            shards=like.shards,
            compressors=like.compressors,
            config={"write_empty_chunks": True},
        )
        copies.append((copy, values, *(like.shards or like.chunks)[-2:]))

    started = Spent.until_now()
    for copy, values, height, width in copies:
        for top in range(0, copy.shape[-2], height):
            for left in range(0, copy.shape[-1], width):
                area = (..., slice(top, top + height), slice(left, left + width))
                copy[area] = values[area]
    return Spent.until_now() - started


def written_arrays(scene: Path) -> dict[str, Any]:
    """Values and array by path, of all that tiles wrote."""
    group = zarr.open_group(scene, mode="r")
    found = {path: node for path, node in group.members(max_depth=None) if is_of_tile(f"{path}/c")}
    return {path: (node[...], node) for path, node in found.items() if isinstance(node, zarr.Array)}


def median(runs: Sequence[Spent]) -> Spent:
    """The run that took the median of the time."""
    return sorted(runs, key=lambda run: run.seconds)[len(runs) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=6, help="tiles along a side of the scene")
    parser.add_argument("--tile", type=int, default=64)
    parser.add_argument("--bands", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    size = given.tiles * given.tile
    write_checkpoint(make_net(given.bands, features=16, blocks=1), folder / "net.safetensors")
    write_scene(folder / "scenes" / "scene.zarr", given.bands, size, size)
    job, alone = [], []
    with ray_session(None):
        for index in range(given.runs):
            output = folder / f"out{index}"
            model = folder / "net.safetensors"
            settings = job_settings(folder / "scenes", model, output, tile=given.tile)
            job.append(through_the_job(settings))
            arrays = written_arrays(output / "scene.zarr")
            alone.append(with_zarr_alone(arrays, folder / f"raw{index}"))
            megabytes = sum(values.nbytes for values, _ in arrays.values()) / 1e6
            shutil.rmtree(output)
    shutil.rmtree(folder)
    spent = {"job, identity network": median(job), "Zarr alone": median(alone)}
    print_table(
        f"{given.tiles**2} shards of {given.bands} x {4 * given.tile} x {4 * given.tile} int16 and "
        f"what goes with them, median of {given.runs} runs",
        ["", "s", "MB/s", "of Zarr alone", "processor ms a tile", "idle"],
        [
            [
                name,
                each.seconds,
                megabytes / each.seconds,
                spent["Zarr alone"].seconds / each.seconds,
                1e3 * each.busy / given.tiles**2,
                each.idle / (each.busy + each.idle),
            ]
            for name, each in spent.items()
        ],
    )


if __name__ == "__main__":
    main()
