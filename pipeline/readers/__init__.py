"""Readers: every format becomes the same lazy Dataset (`open_scene`)."""

from __future__ import annotations

import posixpath
import re
from typing import Any

import xarray as xr

from pipeline.readers.archive import archive_kind
from pipeline.readers.boundary import boundary, failure, is_file
from pipeline.readers.delivery import is_image
from pipeline.readers.desis import DESIS
from pipeline.readers.emit import is_emit, read_emit
from pipeline.readers.enmap import ENMAP
from pipeline.readers.envi import read_envi
from pipeline.readers.geotiff import read_geotiff
from pipeline.readers.hdf import open_hdf5
from pipeline.readers.matlab import read_matlab5, read_matlab73
from pipeline.readers.npz import is_npz, read_npz
from pipeline.readers.prisma import is_other_level, is_prisma, read_prisma
from pipeline.readers.product import Sensor, read_product
from pipeline.readers.tiff_ifd import is_tiff
from pipeline.readers.zarr_store import read_zarr
from pipeline.storage import open_filesystem, unstrip

__all__ = ["open_scene", "recognise", "scene_stem"]

_ZARR_MARKERS = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")
_HEAD_BYTES = 520
_WEB = re.compile(r"(?i)https?://")
_HDF5 = b"\x89HDF\r\n\x1a\n"
_DATA_SUFFIX = re.compile(
    r"(?i)\.(zarr|tiff?|hdr|img|raw|dat|bil|bsq|bip|bin|cube|envi|mat|npz"
    r"|nc|he5|h5|zip|tgz|tar|tar\.gz)$"
)


def open_scene(uri: str, band_axis: int | None = None) -> xr.Dataset:
    """Open a scene of any known format lazily; only its metadata is read.

    Args:
        uri: a path or fsspec URL of a Zarr store, a GeoTIFF, an ENVI header or data file, a MATLAB
            file, an .npz archive, an EMIT or PRISMA file, or an EnMAP or DESIS product: its
            spectral image, the folder that holds it, or the archive it was delivered in.
        band_axis: which axis of an array without dimension names holds the bands (0, 1 or 2);
            default: the rule that the format's module states.

    Returns:
        `reflectance` (band, y, x) float32 with nodata as NaN, coordinates `wavelength` and `fwhm`
        in nm where known, `good_band`, `x`, `y` and `spatial_ref` where georeferenced; `lat` and
        `lon` (y, x) in sensor geometry; `quality_flags` (y, x) where the product has them.

    Raises:
        SceneError: the scene cannot be read, with the reason and what to do.
    """
    filesystem, path = open_filesystem(uri)
    address = unstrip(filesystem, path)
    kind = recognise(filesystem, path)
    with boundary(address, f"cannot open the {kind} scene", "bad-header"):
        scene: xr.Dataset = _READERS[kind](address, band_axis)
    scene.attrs.setdefault("scene_id", scene_stem(path))
    return scene


_READERS: dict[str, Any] = {
    "zarr": read_zarr,
    "geotiff": lambda uri, _: read_geotiff(uri),
    "envi": lambda uri, _: read_envi(uri),
    "matlab5": read_matlab5,
    "matlab73": read_matlab73,
    "npz": read_npz,
    "product": lambda uri, _: read_product(uri, _sensor_of),
    "hdf": lambda uri, _: _read_hdf(uri),
}


def _sensor_of(image: str) -> Sensor:
    return DESIS if posixpath.basename(image).upper().startswith("DESIS") else ENMAP


def _read_hdf(uri: str) -> xr.Dataset:
    """EMIT or PRISMA, by what the HDF5 file holds."""
    with boundary(uri, "cannot read the HDF5 file", "bad-header"), open_hdf5(uri) as file:
        read = read_emit if is_emit(file) else read_prisma if is_prisma(file) else None
        other = is_other_level(file)
    if read is not None:
        return read(uri)
    if other:
        raise failure("unsupported", uri, "PRISMA of another level: L2D is read")
    raise failure("unsupported", uri, "HDF5 that is neither EMIT L2A reflectance nor PRISMA L2D")


def scene_stem(path: str) -> str:
    """The file's name without folders, a web address's query and the suffixes of scene formats."""
    if _WEB.match(path):
        path = path.partition("?")[0].partition("#")[0]
    name = path.rstrip("/").rpartition("/")[2]
    bare = _DATA_SUFFIX.sub("", name)
    if name.lower().endswith(".hdr"):  # scene.img.hdr beside scene.img
        bare = _DATA_SUFFIX.sub("", bare)
    return bare or name


def recognise(filesystem: Any, path: str) -> str:
    """The reader for what lies at `path`, by content; the suffix decides only ties.

    Raises:
        SceneError: nothing is there, or it is no format that this version reads.
    """
    lower = path.lower()
    with boundary(path, "cannot look at the scene"):
        if lower.endswith(".zarr") or not is_file(filesystem, path):
            if any(is_file(filesystem, f"{path}/{marker}") for marker in _ZARR_MARKERS):
                return "zarr"
            if filesystem.isdir(path):
                return "product"
        size = int(filesystem.info(path)["size"])
        head = filesystem.cat_file(path, start=0, end=min(_HEAD_BYTES, size)) if size else b""
    kind = _by_magic(filesystem, path, head)
    if kind == "geotiff" and is_image(path):
        return "product"
    if kind is not None:
        return kind
    if lower.endswith(".hdr") or _has_header(filesystem, path):
        return "envi"
    if not head and _DATA_SUFFIX.search(lower):
        raise failure("truncated", path, "the file is empty: copy it again")
    if lower.endswith(_SUFFIXES_WITH_MAGIC):
        raise failure("bad-header", path, "the content is not what the file's suffix says")
    raise failure("unsupported", path, "not a Zarr, GeoTIFF, ENVI, MATLAB or npz scene")


_SUFFIXES_WITH_MAGIC = (".tif", ".tiff", ".npz", ".mat", ".nc", ".he5", ".h5", ".zip", ".tar")


def _by_magic(filesystem: Any, path: str, head: bytes) -> str | None:
    if is_tiff(head):
        return "geotiff"
    if head.startswith(b"MATLAB 5.0"):
        return "matlab5"
    if head.startswith(b"MATLAB 7.3") or (
        _HDF5 in (head[:8], head[512:520]) and path.lower().endswith(".mat")
    ):
        return "matlab73"
    if _HDF5 in (head[:8], head[512:520]):
        return "hdf"
    if head.startswith(b"PK\x03\x04") and is_npz(path, filesystem, path):
        return "npz"
    if archive_kind(head) is not None:
        return "product"
    if head[:4] == b"ENVI" and (path.lower().endswith(".hdr") or b"\n" in head):
        return "envi"
    return None


def _has_header(filesystem: Any, path: str) -> bool:
    """Whether an ENVI header lies beside a data file, under its name or its stem."""
    stem = path[: len(path) - len(path.rpartition("/")[2])] + scene_stem(path)
    names = [base + suffix for base in (path, stem) for suffix in (".hdr", ".HDR")]
    with boundary(path, "cannot look beside the file"):
        return any(is_file(filesystem, name) for name in names)
