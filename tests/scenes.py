"""Scenes made for tests, one writer per format, and the way to the real ones."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import rasterio
import scipy.io
import zarr
from rasterio.transform import Affine

from pipeline.errors import SceneError
from pipeline.readers import open_scene

Cube = npt.NDArray[Any]

CRS = "EPSG:32633"
TRANSFORM = Affine(30.0, 0.0, 364095.0, 0.0, -30.0, 5809965.0)
_CODES = {"u1": 1, "i2": 2, "i4": 3, "f4": 4, "f8": 5, "u2": 12, "u4": 13, "i8": 14, "u8": 15}
_ORDERS = {"bsq": (0, 1, 2), "bil": (1, 0, 2), "bip": (1, 2, 0)}


def real(name: str) -> str:
    """The path of a real scene; skips the test where the scenes are not."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("SR_ARCHIVE_TEST_DATA", root.parent / "shared" / "data"))
    path = folder / name
    if not path.exists():
        pytest.skip(f"no real scene {name}: set SR_ARCHIVE_TEST_DATA to their folder")
    return str(path)


def cube(bands: int = 6, rows: int = 9, cols: int = 11, dtype: str = "u2", seed: int = 0) -> Cube:
    """Distinct values (band, y, x)."""
    values = np.random.default_rng(seed).permutation(bands * rows * cols)
    top = 255 if np.dtype(dtype).itemsize == 1 else 30000
    return (values % top).reshape(bands, rows, cols).astype(dtype)


def wavelengths(bands: int) -> npt.NDArray[np.float64]:
    return 420.5 + 10.25 * np.arange(bands)


def envi_header(values: Cube, interleave: str = "bsq", **fields: Any) -> str:
    """Header text for `values` (band, y, x); a field given as None is left out."""
    bands, rows, cols = values.shape
    order = 1 if values.dtype.byteorder == ">" else 0
    known: dict[str, Any] = {
        "samples": cols,
        "lines": rows,
        "bands": bands,
        "header offset": 0,
        "file type": "ENVI Standard",
        "data type": _CODES[values.dtype.newbyteorder("=").str[1:]],
        "interleave": interleave,
        "byte order": order,
    }
    known |= {name.replace("_", " "): value for name, value in fields.items()}
    lines = [f"{name} = {value}" for name, value in known.items() if value is not None]
    return "\n".join(["ENVI", *lines]) + "\n"


def write_envi(
    folder: Path,
    values: Cube,
    interleave: str = "bsq",
    name: str = "scene",
    suffix: str = ".img",
    skip: int = 0,
    **fields: Any,
) -> str:
    """Write header and data; returns the header's path."""
    header = folder / f"{name}.hdr"
    header.write_text(envi_header(values, interleave, header_offset=skip, **fields))
    data = np.ascontiguousarray(values.transpose(_ORDERS[interleave])).tobytes()
    (folder / f"{name}{suffix}").write_bytes(b"\7" * skip + data)
    return str(header)


def listed(values: Any) -> str:
    return "{" + ", ".join(str(value) for value in values) + "}"


def write_geotiff(path: Path, values: Cube, tags: bool = True, **profile: Any) -> str:
    """A GeoTIFF with EnMAP-Box-like tags per band; `scale` and `nodata` as in EnMAP."""
    bands, rows, cols = values.shape
    options: dict[str, Any] = {"crs": CRS, "transform": TRANSFORM, "nodata": None} | profile
    scale = options.pop("scale", None)
    with rasterio.open(
        path, "w", "GTiff", cols, rows, bands, dtype=values.dtype, **options
    ) as file:
        file.write(values)
        if scale is not None:
            file.scales = [scale] * bands
        for band, centre in enumerate(wavelengths(bands) if tags else [], start=1):
            file.update_tags(band, wavelength=centre, fwhm=8.5, Wavelength_Units="Nanometers")
            file.update_tags(band, bbl=int(band != 2))
    return str(path)


def write_zarr(path: Path, values: Cube, zarr_format: int = 3, **attrs: Any) -> str:
    """A store in xarray's layout with `reflectance` (band, y, x) and `wavelength`."""
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)  # type: ignore[arg-type]
    for name, data, dims in (
        ("reflectance", values, ["band", "y", "x"]),
        ("wavelength", wavelengths(values.shape[0]), ["band"]),
    ):
        named: dict[str, Any] = (
            {"dimension_names": dims} if zarr_format == 3 else {"fill_value": None}
        )
        array = group.create_array(name, data=data, **named)
        if zarr_format == 2:
            array.attrs["_ARRAY_DIMENSIONS"] = dims
    group["wavelength"].attrs["units"] = "nm"
    group["reflectance"].attrs.update(attrs)
    return str(path)


def write_matlab(path: Path, **variables: Any) -> str:
    scipy.io.savemat(path, variables, do_compression=True)
    return str(path)


def write_matlab73(path: Path, **variables: Cube) -> str:
    """Variables in MATLAB's axes, stored reversed behind MATLAB's 512-byte text."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in variables.items():
            file.create_dataset(name, data=np.transpose(values), chunks=True)
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\0\2IM")
    return str(path)


def fault_of(uri: Any, load: bool = False) -> tuple[str, str]:
    """Code and message with which a scene is refused, on opening or (`load`) on reading."""
    with pytest.raises(SceneError) as caught:
        scene = open_scene(str(uri))
        if load:
            scene.load()
    assert "\n" not in caught.value.message
    pickle.loads(pickle.dumps(caught.value))  # noqa: S301
    return caught.value.code, caught.value.message
