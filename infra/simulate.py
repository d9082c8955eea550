"""A small archive of simulated hyperspectral scenes, in three formats, with their HR truth.

The truth is made first, at high resolution; what the archive holds is the truth seen through a
simulated sensor: blurred and integrated to LR pixels (bicubic with antialiasing, the degradation
that the starter checkpoint was trained against), with noise, as 16-bit integers. Every file says
that it is simulated.

    python -m infra.simulate FOLDER
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
import rioxarray  # noqa: F401  (registers the .rio accessor)
import torch
import xarray as xr
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.transform import Affine

from infra.landscapes import LANDSCAPES
from model.degradation import downsample

SCALE = 4
WAVELENGTHS = np.arange(400.0, 701.0, 10.0)
FWHM = 10.0
STEP = 1e-4  # reflectance per count
NODATA = 65535
LR_PIXEL = 8.0  # metres
EPSG = 32633
NOTE = (
    "Simulated scene: invented landscape and analytic spectra, no measurement. "
    "Made by infra/simulate.py of sr-archive."
)
DATETIME = "2026-06-21T10:00:00Z"

Counts = NDArray[np.uint16]
Format = Literal["geotiff", "envi", "zarr"]


@dataclass(frozen=True)
class SceneSpec:
    """What to simulate. `rows` and `columns` count LR pixels."""

    scene_id: str
    landscape: str
    rows: int
    columns: int
    format: Format
    seed: int
    nodata_corner: bool = False
    last: float = 700.0  # nm

    @property
    def wavelengths(self) -> NDArray[np.float64]:
        """Band centres in nm; beyond 700 the spectra are continued as their formulas give."""
        return np.arange(WAVELENGTHS[0], self.last + 1.0, FWHM)


@dataclass(frozen=True)
class SimulatedScene:
    """A scene of the archive and the file with its HR truth, `[band, row, column]` float32."""

    spec: SceneSpec
    path: Path
    truth: Path


ARCHIVE = (
    SceneSpec("simulated_fields", "fields", 96, 96, "geotiff", 1),
    SceneSpec("simulated_town", "town", 128, 96, "envi", 2),
    SceneSpec("simulated_coast", "coast", 96, 64, "zarr", 3, nodata_corner=True),
)


def simulate_archive(
    folder: Path, truth: Path, specs: tuple[SceneSpec, ...] = ARCHIVE
) -> list[SimulatedScene]:
    """Write the scenes to `folder` and what they show at high resolution to `truth`."""
    folder.mkdir(parents=True, exist_ok=True)
    truth.mkdir(parents=True, exist_ok=True)
    scenes = []
    for spec in specs:
        reflectance = simulate_truth(spec)
        truth_file = truth / f"{spec.scene_id}.npy"
        np.save(truth_file, reflectance)
        path = _WRITERS[spec.format](folder, spec, observe(spec, reflectance))
        scenes.append(SimulatedScene(spec, path, truth_file))
    return scenes


def simulate_truth(spec: SceneSpec) -> NDArray[np.float32]:
    """HR reflectance, `[band, row, column]`; the same for the same spec."""
    shape = (spec.rows * SCALE, spec.columns * SCALE)
    landscape = LANDSCAPES[spec.landscape](np.random.default_rng(spec.seed), shape)
    return landscape.reflectance(spec.wavelengths).astype(np.float32)


def observe(spec: SceneSpec, truth: NDArray[np.float32]) -> Counts:
    """The truth as the sensor delivers it: LR counts with noise, nodata where it saw nothing."""
    random = np.random.default_rng(spec.seed + 1000)
    seen = downsample(torch.from_numpy(truth), SCALE).numpy()
    deviation = np.hypot(0.0008, 0.004 * seen)  # read-out noise and shot noise
    seen = seen + deviation * random.standard_normal(seen.shape)
    counts = np.clip(np.rint(seen / STEP), 0, NODATA - 1).astype(np.uint16)
    if spec.nodata_corner:
        rows, columns = np.indices(counts.shape[1:])
        counts[:, rows + columns < min(spec.rows, spec.columns) // 3] = NODATA
    return counts


def _transform(spec: SceneSpec) -> Affine:
    east, north = 366_000.0 + 4000.0 * spec.seed, 5_808_000.0
    return Affine(LR_PIXEL, 0.0, east, 0.0, -LR_PIXEL, north)


def _write_geotiff(folder: Path, spec: SceneSpec, counts: Counts) -> Path:
    path = folder / f"{spec.scene_id}.tif"
    profile = {
        "driver": "GTiff",
        "dtype": "uint16",
        "count": len(counts),
        "height": spec.rows,
        "width": spec.columns,
        "crs": CRS.from_epsg(EPSG),
        "transform": _transform(spec),
        "nodata": NODATA,
        "tiled": True,
        "blockxsize": 64,
        "blockysize": 64,
        "compress": "deflate",
    }
    with rasterio.open(path, "w", **profile) as file:
        file.write(counts)
        file.scales = [STEP] * len(counts)
        file.update_tags(
            scene_id=spec.scene_id,
            sensor="simulated",
            simulated="true",
            description=NOTE,
            start_time=DATETIME,
        )
        for band, wavelength in enumerate(spec.wavelengths, start=1):
            file.update_tags(
                band,
                wavelength=f"{wavelength:g}",
                wavelength_units="Nanometers",
                fwhm=f"{FWHM:g}",
                bbl="1",
            )
    return path


def _write_envi(folder: Path, spec: SceneSpec, counts: Counts) -> Path:
    """Band interleaved by line, with a header that carries everything the scene knows."""
    path = folder / f"{spec.scene_id}.img"
    counts.transpose(1, 0, 2).astype("<u2").tofile(path)
    transform = _transform(spec)
    fields = {
        "description": f"{{{NOTE}}}",
        "samples": spec.columns,
        "lines": spec.rows,
        "bands": len(counts),
        "header offset": 0,
        "file type": "ENVI Standard",
        "data type": 12,
        "interleave": "bil",
        "byte order": 0,
        "map info": f"{{UTM, 1, 1, {transform.c}, {transform.f}, {LR_PIXEL}, {LR_PIXEL}, "
        f"{EPSG % 100}, North, WGS-84, units=Meters}}",
        "coordinate system string": f"{{{CRS.from_epsg(EPSG).to_wkt(version='WKT1_ESRI')}}}",
        "sensor type": "simulated",
        "acquisition time": DATETIME,
        "data ignore value": NODATA,
        "reflectance scale factor": round(1 / STEP),
        "wavelength units": "Nanometers",
        "wavelength": _braces(f"{value:g}" for value in spec.wavelengths),
        "fwhm": _braces(f"{FWHM:g}" for _ in spec.wavelengths),
        "bbl": _braces("1" for _ in spec.wavelengths),
    }
    lines = ["ENVI", *(f"{name} = {value}" for name, value in fields.items())]
    path.with_suffix(".hdr").write_text("\n".join(lines) + "\n")
    return path


def _braces(values: Iterable[str]) -> str:
    return "{" + ", ".join(values) + "}"


def _write_zarr(folder: Path, spec: SceneSpec, counts: Counts) -> Path:
    path = folder / f"{spec.scene_id}.zarr"
    transform = _transform(spec)
    dataset = xr.Dataset(
        {
            "reflectance": (
                ("band", "y", "x"),
                counts,
                {"scale_factor": STEP, "add_offset": 0.0, "_FillValue": np.uint16(NODATA)},
            )
        },
        coords={
            "wavelength": ("band", spec.wavelengths, {"units": "nm"}),
            "fwhm": ("band", np.full(len(counts), FWHM), {"units": "nm"}),
            "good_band": ("band", np.ones(len(counts), dtype=bool)),
            "y": transform.f - LR_PIXEL * (np.arange(spec.rows) + 0.5),
            "x": transform.c + LR_PIXEL * (np.arange(spec.columns) + 0.5),
        },
        attrs={
            "scene_id": spec.scene_id,
            "sensor": "simulated",
            "datetime": DATETIME,
            "simulated": True,
            "comment": NOTE,
        },
    )
    dataset = dataset.rio.write_crs(EPSG).rio.write_transform(transform)
    chunks = {"reflectance": {"chunks": (len(counts), 32, 32)}}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        dataset.to_zarr(path, mode="w", zarr_format=3, encoding=chunks)
    return path


_WRITERS = {"geotiff": _write_geotiff, "envi": _write_envi, "zarr": _write_zarr}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m infra.simulate", description="Write a small archive of simulated scenes."
    )
    parser.add_argument("folder", type=Path, help="the scenes; their HR truth goes to FOLDER-truth")
    folder = parser.parse_args().folder
    for scene in simulate_archive(folder, folder.with_name(f"{folder.name}-truth")):
        print(scene.path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
