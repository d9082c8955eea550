"""GeoTIFF and COG (OGC GeoTIFF 1.1) through GDAL, local or over any fsspec filesystem."""

from __future__ import annotations

import atexit
import contextvars
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import rasterio
import xarray as xr
from rasterio import _vsiopener
from rasterio.errors import NotGeoreferencedWarning
from rasterio.windows import Window

from pipeline.errors import SceneError
from pipeline.readers import archive
from pipeline.readers.blocks import open_blocks, store_faults
from pipeline.readers.boundary import boundary
from pipeline.readers.georeference import Grid
from pipeline.readers.packing import packing
from pipeline.readers.scene import SceneParts, assemble, check_block, chunk_sizes, known_attrs
from pipeline.readers.spectral_axis import good_bands, to_nanometres, to_number
from pipeline.readers.tiff_ifd import Fetch, check_complete
from pipeline.storage import is_local, open_filesystem, redact

# A scene without georeferencing is a valid scene; its Dataset says so by having no spatial_ref.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

# Reading a compressed tar to its end would otherwise leave a file beside it.
os.environ.setdefault("CPL_VSIL_GZIP_WRITE_PROPERTIES", "NO")

_IDLE_HANDLES = 4
_OPEN: weakref.WeakSet[TiffCube] = weakref.WeakSet()


class _Handle:
    """A GDAL handle with the context it was opened in.

    rasterio keeps Python file objects in a context variable: closed by another thread outside that
    context, they take the process down.
    """

    def __init__(self, uri: str) -> None:
        self.context = contextvars.copy_context()
        # rasterio sets this variable in the context that imports it only.
        self.context.run(_vsiopener._OPEN_FILE_EXIT_STACKS.set, {})
        self.file = self.context.run(open_tiff, uri)

    def close(self) -> None:
        self.context.run(self.file.close)


class TiffCube:
    """Windows of a TIFF. GDAL handles serve one thread at a time, so a few are kept and lent."""

    def __init__(self, uri: str, shape: tuple[int, int, int], dtype: np.dtype[Any]) -> None:
        self.uri, self.shape, self.dtype = uri, shape, dtype
        self._start()

    def _start(self) -> None:
        self._idle: list[_Handle] = []
        self._lock = threading.Lock()
        _OPEN.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {"uri": self.uri, "shape": self.shape, "dtype": self.dtype}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def read(self, band: slice, y: slice, x: slice) -> npt.NDArray[Any]:
        shape = tuple(part.stop - part.start for part in (band, y, x))
        if 0 in shape:
            return np.empty(shape, self.dtype)
        with self._lock:
            handle = self._idle.pop() if self._idle else None
        with store_faults():
            handle = handle or _Handle(self.uri)
        try:
            window = Window(x.start, y.start, shape[2], shape[1])
            bands = list(range(band.start + 1, band.stop + 1))
            with store_faults():
                values = handle.file.read(bands, window=window)
        except BaseException:
            handle.close()
            raise
        with self._lock:
            if len(self._idle) < _IDLE_HANDLES:
                self._idle.append(handle)
                return np.asarray(values)
        handle.close()
        return np.asarray(values)

    def close(self) -> None:
        with self._lock:
            handles, self._idle = self._idle, []
        for handle in handles:
            handle.close()

    def __del__(self) -> None:
        self.close()


@atexit.register
def _close_all() -> None:
    """GDAL must let go of Python file objects before the interpreter does (it crashes else)."""
    for cube in list(_OPEN):
        cube.close()


def open_tiff(address: str) -> Any:
    """The rasterio dataset at a path, a URL or a member's address; only GTiff looks at it."""
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"):
        inside = archive.split_address(address)
        if inside is not None:
            return _open_member(*inside)
        filesystem, path = open_filesystem(address)
        if is_local(filesystem):
            return rasterio.open(path, driver="GTiff")
        return _open_through(path, lambda: open_blocks(filesystem, path))


def _open_member(name: str, uri: str) -> Any:
    members = archive.open_archive(uri)
    path = archive.gdal_path(members, name)
    if path is not None:
        return rasterio.open(path, driver="GTiff")
    return _open_through(f"/{name}", lambda: archive.open_file(members, name))


def _open_through(path: str, open_file: Callable[[], Any]) -> Any:
    """Open a TIFF whose bytes come from Python file objects."""

    def opener(name: str, mode: str = "rb") -> Any:
        if name.lstrip("/") != path.lstrip("/"):
            raise FileNotFoundError(name)
        return open_file()

    return rasterio.open(path, driver="GTiff", opener=opener)


@dataclass(frozen=True)
class BandFacts:
    """What a product says about its image outside the TIFF, one entry per band.

    Centre and width in nm; `value = raw * gain + offset`; `fill` where the TIFF declares none.
    """

    wavelength: list[float]
    fwhm: list[float]
    gain: list[float]
    offset: list[float]
    fill: float | None = None
    attrs: dict[str, str] = field(default_factory=dict)


def read_geotiff(uri: str) -> xr.Dataset:
    """Open a GeoTIFF: reads its directory and tags only."""
    filesystem, path = open_filesystem(uri)
    with boundary(uri, "cannot read the TIFF"):
        size = int(filesystem.info(path)["size"])
        check_whole(
            uri, lambda at, count: filesystem.cat_file(path, start=at, end=at + count), size
        )
    return assemble(describe_tiff(uri, uri))


def check_whole(uri: str, fetch: Fetch, size: int) -> None:
    """Raise `SceneError` in the name of `uri` if the TIFF ends before its blocks."""
    try:
        check_complete(fetch, size)
    except SceneError as error:
        raise SceneError(error.code, f"{redact(uri)}: {error.message}") from None


def describe_tiff(uri: str, address: str, facts: BandFacts | None = None) -> SceneParts:
    """What the TIFF at `address` says, in the name of `uri`, with `facts` where it is silent."""
    what = "not a TIFF that GDAL can read"
    with boundary(uri, what, "bad-header"), store_faults(), open_tiff(address) as file:
        return _describe(uri, address, file, facts)


def _describe(uri: str, address: str, file: Any, facts: BandFacts | None) -> SceneParts:
    dtypes = set(file.dtypes)
    if len(dtypes) > 1 or np.dtype(file.dtypes[0]).kind not in "iuf":
        kinds = ", ".join(sorted(dtypes))
        raise SceneError(
            "unsupported", f"{redact(uri)}: bands of type {kinds}: export one real type"
        )
    dtype = np.dtype(file.dtypes[0])
    bands, rows, cols = shape = (file.count, file.height, file.width)
    notes: list[str] = []
    _check_blocks(uri, file, dtype)
    centres, widths, flags, units = _band_tables(file)
    scales, offsets, fills = file.scales, file.offsets, file.nodatavals
    attrs = known_attrs(file.tags(ns="ENVI") | file.tags())
    if facts is not None and len(facts.wavelength) != bands:
        notes.append(f"metadata of {len(facts.wavelength)} bands for {bands} bands is ignored")
    elif facts is not None:
        attrs = facts.attrs | attrs
        if centres is None:
            centres, widths, units = facts.wavelength, facts.fwhm, "nm"
        if set(scales) == {1.0} and set(offsets) == {0.0}:
            scales, offsets = facts.gain, facts.offset
        if set(fills) == {None}:
            fills = [facts.fill]
    wavelength, fwhm = to_nanometres(centres, widths, units, bands, notes)
    block = file.block_shapes[0]
    strips = block[1] >= cols
    chunks = chunk_sizes((bands, rows, cols), (block[0], 1 if strips else block[1]))
    if chunks[1] * 8 < min(block[0], rows):
        notes.append(f"blocks of {block[0]} rows are read again and again: make a COG for speed")
    return SceneParts(
        uri=uri,
        format="geotiff",
        reader=TiffCube(address, shape, dtype),
        chunks=chunks,
        packing=packing(scales, offsets, fills, dtype, notes),
        wavelength=wavelength,
        fwhm=fwhm,
        good_band=good_bands(flags, bands, notes),
        grid=_grid(file, notes),
        attrs=attrs,
        notes=notes,
    )


def _check_blocks(uri: str, file: Any, dtype: np.dtype[Any]) -> None:
    interleaved = file.interleaving is not None and file.interleaving.value == "PIXEL"
    check_block(uri, (file.count if interleaved else 1, *file.block_shapes[0]), dtype)


def _grid(file: Any, notes: list[str]) -> Grid | None:
    wkt = file.crs.to_wkt() if file.crs else None
    if file.transform.is_identity:
        if file.gcps[0]:
            notes.append("ground control points are not used: warp the scene to a grid")
        return None
    return Grid(tuple(file.transform.to_gdal()), wkt)


def _band_tables(file: Any) -> tuple[Any, Any, Any, str | None]:
    """(wavelengths, widths, flags, unit): one tag per band, else lists for the whole file.

    Per band: `wavelength`, `fwhm`, `bbl`, `wavelength_units` as the EnMAP-Box and GDAL's ENVI
    driver write them, or GDAL's IMAGERY domain. For the file: lists in the ENVI domain or in
    plain tags.
    """
    tags = [_lower(file.tags(band)) for band in file.indexes]
    if any("wavelength" in tag for tag in tags):
        units = next((tag[key] for tag in tags for key in _UNITS if key in tag), None)
        return _column(tags, "wavelength"), _column(tags, "fwhm"), _column(tags, "bbl"), units
    whole = _lower(file.tags(ns="ENVI") | file.tags())
    flags = _column(tags, "bbl") or _listed(whole, "bbl")
    imagery = [_lower(file.tags(band, ns="IMAGERY")) for band in file.indexes]
    if any("central_wavelength_um" in tag for tag in imagery):
        centres, widths = _column(imagery, "central_wavelength_um"), _column(imagery, "fwhm_um")
        return centres, widths, flags, "um"
    units = next((whole[key] for key in _UNITS if key in whole), None)
    return _listed(whole, "wavelength"), _listed(whole, "fwhm"), flags, units


_UNITS = ("wavelength_units", "wavelength units", "wavelength_unit")


def _lower(tags: Mapping[str, str]) -> dict[str, str]:
    return {key.lower(): value for key, value in tags.items()}


def _column(tags: list[dict[str, str]], name: str) -> list[float] | None:
    """One tag of every band; a band without it is NaN, none at all is None."""
    if not any(name in tag for tag in tags):
        return None
    return [to_number(tag.get(name, "")) for tag in tags]


def _listed(tags: Mapping[str, str], name: str) -> list[str] | None:
    text = tags.get(name, tags.get(name + "s", "")).strip().strip("{}")
    return [item for item in text.replace(",", " ").split() if item] or None
