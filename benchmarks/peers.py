"""The whole job against what a user would write with dask, and with Ray Data.

    python -m benchmarks.peers [--tiles 4] [--tile 64] [--runs 1] [--precision auto]

Both opponents run the published form of the same network on the same tiles with the same halo, and
write the same sharded array: dask by `overlap` and `map_blocks`, trimmed, to Zarr; Ray Data by
`map_batches` over the list of tiles, with an actor that reads and writes its tile. All wall times
run from opening the scene to the last shard; Ray runs already for both that need it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import ray
import torch
import xarray as xr
import zarr

from benchmarks.common import make_net, print_table, timed, write_checkpoint
from benchmarks.scenes import SCALE_FACTOR, job_settings, write_scene
from model import SSPSR, load_checkpoint
from model.degradation import upsample
from model.receptive_field import halo
from pipeline.arrays import COMPRESSORS
from pipeline.grid import TileGrid
from pipeline.job import run
from pipeline.ray_session import ray_session

Folder = Path


def create_output(path: Path, bands: int, size: int, shard: int) -> zarr.Array[Any]:
    return zarr.create_array(
        path,
        shape=(bands, size, size),
        dtype="int16",
        shards=(bands, shard, shard),
        chunks=(bands, min(shard, 128), min(shard, 128)),
        compressors=COMPRESSORS,
    )


def super_resolved(net: SSPSR, counts: np.ndarray) -> np.ndarray:
    """Counts of a window, through the plain network."""
    x = torch.from_numpy(counts.astype(np.float32) * np.float32(SCALE_FACTOR))[None]
    with torch.inference_mode():
        y = net(x, upsample(x, net.config.scale))[0].numpy()
    stored: np.ndarray = np.rint(y / SCALE_FACTOR).astype(np.int16)
    return stored


def with_dask(folder: Folder, tile: int, output: Path) -> None:
    net, _ = load_checkpoint(folder / "net.safetensors")
    scene = xr.open_zarr(folder / "scenes" / "scene.zarr", mask_and_scale=False)
    scale, margin = net.config.scale, halo(net.config)
    x = scene["reflectance"].data.rechunk((-1, tile, tile))
    around = {1: margin, 2: margin}
    padded = da.overlap.overlap(x, around, "reflect")  # type: ignore[no-untyped-call]

    def block(counts: np.ndarray) -> np.ndarray:
        cut = slice(scale * margin, -scale * margin)
        return super_resolved(net, counts)[:, cut, cut]

    chunks = (x.chunks[0], *(tuple(scale * size for size in axis) for axis in x.chunks[1:]))
    fine = padded.map_blocks(block, dtype=np.int16, chunks=chunks, meta=np.empty((0, 0, 0), "i2"))
    array = create_output(output, x.shape[0], scale * x.shape[1], scale * tile)
    da.store(fine, array, lock=False)  # type: ignore[arg-type]


class TilePredictor:
    """What Ray Data runs in its actor."""

    def __init__(self, folder: Folder, tile: int, output: Path) -> None:
        torch.set_num_threads(2)
        self._net, _ = load_checkpoint(folder / "net.safetensors")
        self._scene = xr.open_zarr(folder / "scenes" / "scene.zarr", mask_and_scale=False)
        height, width = (self._scene.sizes[axis] for axis in ("y", "x"))
        self._grid = TileGrid(height, width, tile, self._net.config.scale)
        self._tiles = list(self._grid)
        self._array = zarr.open_array(output, mode="r+")

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for index in batch["item"]:
            tile = self._tiles[int(index)]
            window = self._grid.window(tile, halo(self._net.config))
            core = self._grid.core(tile)
            rows, columns = window.slices
            counts = self._scene["reflectance"].isel(y=rows, x=columns).values
            inner = core.within(window).scaled(self._grid.scale)
            fine = super_resolved(self._net, counts)[:, *inner.slices]
            self._array[:, *core.scaled(self._grid.scale).slices] = fine
        return {"item": batch["item"]}


def with_ray_data(folder: Folder, tile: int, output: Path) -> None:
    net, _ = load_checkpoint(folder / "net.safetensors")
    scene = xr.open_zarr(folder / "scenes" / "scene.zarr")
    size = scene.sizes["y"]
    create_output(output, net.config.bands, net.config.scale * size, net.config.scale * tile)
    tiles = (size // tile) ** 2
    data = ray.data.from_items(list(range(tiles)), override_num_blocks=tiles)
    data.map_batches(
        TilePredictor,
        fn_constructor_args=(folder, tile, output),
        batch_size=1,
        num_cpus=1,
        concurrency=1,
    ).materialize()


def with_the_job(folder: Folder, tile: int, output: Path, precision: str) -> None:
    model = folder / "net.safetensors"
    options = {"tile": tile, "workers": 1, "precision": precision}
    run(job_settings(folder / "scenes", model, output, **options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=4, help="tiles along a side of the scene")
    parser.add_argument("--tile", type=int, default=64)
    parser.add_argument("--bands", type=int, default=128)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--runs", type=int, default=1)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    size = given.tiles * given.tile
    write_checkpoint(make_net(given.bands, features=given.features), folder / "net.safetensors")
    write_scene(folder / "scenes" / "scene.zarr", given.bands, size, size)
    works: dict[str, Callable[..., None]] = {
        f"this job, {given.precision}": partial(with_the_job, precision=given.precision),
        "dask overlap, published form": with_dask,
        "Ray Data, published form": with_ray_data,
    }
    spent: dict[str, list[float]] = {name: [] for name in works}
    with ray_session(None):
        ray.data.DataContext.get_current().enable_progress_bars = False
        for index in range(given.runs):
            for name, work in works.items():
                output = folder / f"out{index}{len(spent[name])}{name[:4]}"
                spent[name].append(timed(partial(work, folder, given.tile, output)))
    shutil.rmtree(folder)
    medians = {name: statistics.median(values) for name, values in spent.items()}
    ours = next(iter(medians.values()))
    print_table(
        f"{given.tiles**2} tiles of {given.tile}, {given.bands} bands, {given.features} features, "
        f"median of {given.runs} runs",
        ["", "s", "x this job"],
        [[name, seconds, seconds / ours] for name, seconds in medians.items()],
    )


if __name__ == "__main__":
    main()
