"""Made-up scenes and the settings of a job on them, for benchmarks of the archive job."""

from __future__ import annotations

from pathlib import Path

import dask.array as da
import numpy as np
import xarray as xr

from pipeline import RunSettings

SCALE_FACTOR = 1e-4


def write_scene(path: Path, bands: int, rows: int, columns: int, chunk: int = 64) -> None:
    """A smooth noisy scene of int16 reflectance x 10000, written in parts, as a Zarr store."""
    band = np.arange(bands)[:, None, None]
    random = np.random.default_rng(0)

    def part(
        block: np.ndarray, block_info: dict[int | None, dict[str, list[tuple[int, int]]]]
    ) -> np.ndarray:
        (_, _), (top, bottom), (left, right) = block_info[None]["array-location"]
        y, x = np.mgrid[top:bottom, left:right] / 12.0
        values = 3000 + 1500 * np.sin(x + 0.03 * band) * np.cos(y)
        counts: np.ndarray = (values + random.normal(0, 30, values.shape)).astype(np.int16)
        return counts

    lazy = da.zeros((bands, rows, columns), dtype=np.int16, chunks=(bands, chunk, chunk))
    values = lazy.map_blocks(part, dtype=np.int16)
    scene = xr.Dataset({"reflectance": (("band", "y", "x"), values)})
    scene["reflectance"].attrs = {"scale_factor": SCALE_FACTOR, "_FillValue": -32768}
    scene.to_zarr(path, mode="w", zarr_format=2, consolidated=True)


def job_settings(
    source: Path | str, model: Path, output: Path | str, **options: object
) -> RunSettings:
    paths = {"source": str(source), "model": str(model), "output": str(output)}
    return RunSettings.from_options(paths | options)
