"""ENVI rasters: a text header beside a flat binary file (NV5 ENVI image format)."""

from __future__ import annotations

import posixpath
from typing import Any

import xarray as xr

from pipeline.errors import SceneError
from pipeline.readers import envi_header
from pipeline.readers.boundary import boundary, failure, is_file
from pipeline.readers.envi_geometry import Geometry
from pipeline.readers.packing import Packing, packing
from pipeline.readers.planes import BandPlane, swath_coords
from pipeline.readers.raw import RawCube
from pipeline.readers.scene import SceneParts, assemble, chunk_sizes, known_attrs
from pipeline.readers.spectral_axis import good_bands, to_nanometres, to_number
from pipeline.storage import open_filesystem, redact, unstrip

DATA_SUFFIXES = (
    "",
    ".img",
    ".raw",
    ".dat",
    ".bil",
    ".bsq",
    ".bip",
    ".bin",
    ".cube",
    ".envi",
)


def read_envi(uri: str) -> xr.Dataset:
    """Open an ENVI scene by its header or its data file; reads the header only.

    A scene without map info gets `lat` and `lon (y, x)` from the `_loc` file of its flight line.
    """
    filesystem, path = open_filesystem(uri)
    notes: list[str] = []
    header, fields, layout, reader = _open_pair(uri, filesystem, path, notes)
    wavelength, fwhm = to_nanometres(
        envi_header.split_list(fields.get("wavelength")),
        envi_header.split_list(fields.get("fwhm")),
        fields.get("wavelength units"),
        layout.bands,
        notes,
    )
    good = good_bands(envi_header.split_list(fields.get("bbl")), layout.bands, notes)
    chunks = chunk_sizes(reader.shape)
    grid = envi_header.grid(fields, notes)
    coords = {} if grid is not None else _location(uri, filesystem, header, reader, chunks, notes)
    return assemble(
        SceneParts(
            uri=uri,
            format="envi",
            reader=reader,
            chunks=chunks,
            packing=_packing(fields, layout, notes),
            wavelength=wavelength,
            fwhm=fwhm,
            good_band=good,
            grid=grid,
            coords=coords,
            attrs=known_attrs(fields),
            notes=notes,
        )
    )


def _open_pair(
    uri: str, filesystem: Any, path: str, notes: list[str]
) -> tuple[str, dict[str, str], envi_header.Layout, RawCube]:
    """The header's path, its fields, the layout it declares, and the cube that it describes."""
    header, data, size = find_pair(filesystem, path)
    with boundary(uri, "cannot read the ENVI header"):
        head = filesystem.cat_file(header, start=0, end=envi_header.MAX_HEADER_BYTES + 1)
    try:
        fields = envi_header.parse(head)
        layout = envi_header.layout(fields, notes)
        offset = _offset(layout, size, notes)
    except SceneError as error:
        raise SceneError(error.code, f"{redact(uri)}: {error.message}") from None
    address = unstrip(filesystem, data)
    reader = RawCube(address, offset, layout.dtype, layout.file_shape, layout.axes)
    return header, fields, layout, reader


def _location(
    uri: str,
    filesystem: Any,
    header: str,
    scene: RawCube,
    chunks: tuple[int, int, int],
    notes: list[str],
) -> dict[str, Any]:
    """`lat` and `lon` from bands 2 and 1 of the flight line's `_loc` file, if it fits."""
    try:
        with boundary(uri, "cannot list the folder"):
            beside = filesystem.ls(posixpath.dirname(header), detail=False)
    except SceneError as error:
        # A store that does not list (plain HTTP) cannot tell of a file that was not named.
        if isinstance(error.__cause__, FileNotFoundError | NotImplementedError | PermissionError):
            return {}
        raise
    found = Geometry([filesystem._strip_protocol(path) for path in beside]).location(header)
    if found is None:
        return {}
    name = posixpath.basename(found)
    try:
        _, fields, layout, cube = _open_pair(uri, filesystem, found, [])
    except SceneError as error:
        notes.append(f"{name} is not used ({error.code})")
        return {}
    if cube.shape[0] < 2 or cube.shape[1:] != scene.shape[1:] or layout.dtype.kind != "f":
        notes.append(f"{name} is not used: not longitude and latitude of the scene's pixels")
        return {}
    fill = _optional(fields, "data ignore value")
    return swath_coords(BandPlane(cube, 1, fill), BandPlane(cube, 0, fill), chunks, uri)


def _packing(fields: dict[str, str], layout: envi_header.Layout, notes: list[str]) -> Packing:
    factor = _optional(fields, "reflectance scale factor")
    scale = None if not factor else 1.0 / factor
    fill = _optional(fields, "data ignore value")
    if "data ignore value" in fields and fields["data ignore value"].strip().lower() == "nan":
        fill = float("nan")
    return packing([scale], [None], [fill], layout.dtype.newbyteorder("="), notes)


def _optional(fields: dict[str, str], name: str) -> float | None:
    number = to_number(fields.get(name, ""))
    return None if number != number else number


def _offset(layout: envi_header.Layout, size: int, notes: list[str]) -> int:
    """Bytes before the values, checked against the size of the data file."""
    needed = layout.data_bytes
    if layout.offset is None:
        if size == needed:
            notes.append("header has no header offset: the file fits an offset of 0")
            return 0
        if size > needed:
            raise envi_header.bad(
                f"'header offset' is missing and the data file has {size - needed} bytes more than "
                "the image: add it"
            )
    offset = layout.offset or 0
    if size < offset + needed:
        raise SceneError(
            "truncated",
            f"the data file has {size} of {offset + needed} bytes: copy it again",
        )
    if size > offset + needed:
        notes.append(f"{size - offset - needed} bytes after the image are ignored")
    return offset


def find_pair(filesystem: Any, path: str) -> tuple[str, str, int]:
    """(header, data, bytes of data) of an ENVI scene named by either of its files."""
    if path.lower().endswith(".hdr"):
        data, size = _find(filesystem, path, data_candidates(path), "data file", "missing-data")
        return path, data, size
    candidates = [path + ".hdr", posixpath.splitext(path)[0] + ".hdr"]
    header, _ = _find(filesystem, path, candidates, "header (.hdr)", "bad-header")
    return header, path, int(filesystem.info(path)["size"])


def data_candidates(header: str) -> list[str]:
    """Where the data of `header` may be, best first: `.hdr` appended to its name or replaced."""
    return [header[: -len(".hdr")] + suffix for suffix in DATA_SUFFIXES]


def _find(
    filesystem: Any, path: str, candidates: list[str], what: str, code: Any
) -> tuple[str, int]:
    with boundary(path, "cannot look beside the file"):
        for candidate in candidates:
            if is_file(filesystem, candidate):
                return candidate, int(filesystem.info(candidate)["size"])
        parent = posixpath.dirname(path)
        beside = {
            str(info["name"]).lower(): info
            for info in filesystem.ls(parent, detail=True)
            if info["type"] == "file"
        }
        for candidate in candidates:
            info = beside.get(candidate.lower())
            if info is not None:
                return filesystem._strip_protocol(info["name"]), int(info["size"])
    raise failure(code, path, f"its {what} is not beside it: copy both files")
