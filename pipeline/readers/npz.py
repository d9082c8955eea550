"""NumPy archives (.npz, NEP 1): never unpickled; stored members are read in place.

The cube is the member `reflectance` or `cube`, else the only three-dimensional numeric one. Its
bands are, in this order: the axis asked for; the axis that is as long as a member with wavelengths
(`wavelength`, `wavelengths`, `wavelength_nm`, ...); the first axis of a masked array saved as
`data` + `mask` (the HYPERVIEW layout; masked pixels become NaN); the last axis.
"""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from numpy.lib import format as npy

from pipeline.readers.blocks import open_blocks
from pipeline.readers.boundary import boundary, failure
from pipeline.readers.cache import MemberCube
from pipeline.readers.candidates import choose_cube
from pipeline.readers.raw import RawCube
from pipeline.readers.scene import SceneParts, WindowReader, assemble, chunk_sizes
from pipeline.readers.spectral_axis import choose_band_axis, companion, to_nanometres, units_of
from pipeline.storage import open_filesystem, version_of

_LONGEST_LIST = 100_000


@dataclass(frozen=True)
class Member:
    """The .npy header of one member; `offset` is its data's place in the archive if stored."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    offset: int | None


def read_npz(uri: str, band_axis: int | None = None) -> xr.Dataset:
    """Open an .npz scene: reads the archive's directory and the members' headers."""
    filesystem, path = open_filesystem(uri)
    notes: list[str] = []
    with boundary(uri, "cannot read the npz archive", "bad-header"):
        version = version_of(filesystem.info(path))
        with open_blocks(filesystem, path) as file, zipfile.ZipFile(file) as archive:
            members = _members(file, archive)
            name = choose_cube(uri, {key: (m.shape, m.dtype) for key, m in members.items()}, notes)
            listed = companion({key: m.shape for key, m in members.items()})
            if listed is not None and math.prod(members[listed].shape) > _LONGEST_LIST:
                listed = None
            waves = None if listed is None else _load(archive, listed).ravel()
    cube = members[name]
    mask = _mask(members, name)
    if mask and band_axis is None and waves is None:
        notes.append("masked array (data + mask): read as (bands, rows, cols)")
        axis = 0
    else:
        axis = choose_band_axis(cube.shape, None if waves is None else waves.size, band_axis, notes)
    reader = _reader(uri, version, name, cube, axis, mask)
    wavelength, _ = to_nanometres(waves, None, units_of(listed or ""), reader.shape[0], notes)
    chunks = chunk_sizes(reader.shape, side=256)
    parts = SceneParts(uri, "npz", reader, chunks, wavelength=wavelength, notes=notes)
    return assemble(parts)


def _mask(members: dict[str, Member], name: str) -> str | None:
    mask = members.get("mask")
    fits = mask is not None and mask.dtype == bool and mask.shape == members[name].shape
    return "mask" if fits and name == "data" else None


def _reader(
    uri: str, version: str, name: str, cube: Member, axis: int, mask: str | None
) -> WindowReader:
    y, x = (other for other in range(3) if other != axis)
    shape = (cube.shape[0], cube.shape[1], cube.shape[2])
    if cube.offset is None or mask is not None:
        return MemberCube(uri, version, name, load, cube.dtype, shape, (axis, y, x), mask)
    if cube.fortran:
        return RawCube(uri, cube.offset, cube.dtype, shape[::-1], (2 - axis, 2 - y, 2 - x))
    return RawCube(uri, cube.offset, cube.dtype, shape, (axis, y, x))


def _members(file: Any, archive: zipfile.ZipFile) -> dict[str, Member]:
    found: dict[str, Member] = {}
    for info in archive.infolist():
        if info.filename.endswith(".npy"):
            with archive.open(info) as stream:
                member = _header(stream)
                prefix = stream.tell()
            if member is None:
                continue
            shape, fortran, dtype = member
            needed = math.prod(shape) * dtype.itemsize
            if info.file_size < prefix + needed:
                raise EOFError(f"{info.filename} is shorter than its header says")
            offset = None
            if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
                offset = _data_start(file, info) + prefix
            found[info.filename[: -len(".npy")]] = Member(shape, fortran, dtype, offset)
    return found


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]] | None:
    """(shape, Fortran order, dtype) of a numeric .npy; None for objects, records and texts."""
    version = npy.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        return None
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return (shape, fortran, dtype) if dtype.kind in "biufc" else None


def _data_start(file: Any, info: zipfile.ZipInfo) -> int:
    """Where a member's bytes start: after its local header (PKWARE APPNOTE 4.3.7)."""
    place = file.tell()
    file.seek(info.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    file.seek(place)
    return int(info.header_offset + 30 + name + extra)


def load(uri: str, member: str) -> npt.NDArray[Any]:
    """One member as a C-ordered array, never unpickled."""
    filesystem, path = open_filesystem(uri)
    with filesystem.open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        return _load(archive, member)


def _load(archive: zipfile.ZipFile, member: str) -> npt.NDArray[Any]:
    with archive.open(member + ".npy") as stream:
        return np.ascontiguousarray(npy.read_array(stream, allow_pickle=False))


def is_npz(uri: str, filesystem: Any, path: str) -> bool:
    """Whether a zip archive holds .npy members."""
    try:
        with open_blocks(filesystem, path) as file, zipfile.ZipFile(file) as archive:
            return any(name.endswith(".npy") for name in archive.namelist())
    except zipfile.BadZipFile as error:
        raise failure("truncated", uri, "broken zip archive: copy it again", error) from error
    except OSError as error:
        raise failure("unreadable", uri, "cannot read the archive", error) from error
