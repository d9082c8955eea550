"""Products of a TIFF image with metadata and quality layers beside it, in a folder or an archive.

EnMAP and DESIS are delivered so: `STEM-SPECTRAL_IMAGE.TIF`, `STEM-METADATA.XML`, `STEM-QL_*.TIF`
(`*_COG.TIF` where DLR's catalogue serves cloud-optimised copies).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xarray as xr

from pipeline.errors import SceneError
from pipeline.readers.archive import open_archive, open_file
from pipeline.readers.boundary import boundary, failure
from pipeline.readers.geotiff import BandFacts, TiffCube, check_whole, describe_tiff, open_tiff
from pipeline.readers.planes import Rule, flag_variable
from pipeline.readers.scene import Packing, SceneParts, WindowReader, assemble
from pipeline.storage import open_filesystem, unstrip

_IMAGE = re.compile(r"(?i)-SPECTRAL_IMAGE(_COG)?(\.TIFF?)$")
_FILE = re.compile(
    r"(?i)-(SPECTRAL_IMAGE(_COG)?\.TIFF?|METADATA\.XML|QL_(PIXELMASK|QUALITY)[^/]*\.TIFF?)$"
)
_LAYER = re.compile(r"(?i)^(ENMAP|DESIS)[^/]*-QL_[^/]*\.TIFF?$")
_ARCHIVE_SUFFIX = re.compile(r"(?i)\.(zip|tar|tgz|tar\.gz)$")
_ARCHIVE_NAME = re.compile(r"(?i)enmap|desis|^dims_op")
_LARGEST_METADATA = 16 * 2**20

Bool = npt.NDArray[np.bool_]


class Files(Protocol):
    """The files of one delivery by name: those of a folder, or those inside an archive."""

    uri: str

    def size(self, name: str) -> int | None:
        """Bytes of a file, None where there is none."""

    def read(self, name: str, most: int) -> bytes:
        """The first `most` bytes of a file."""

    def address(self, name: str) -> str:
        """What `geotiff.open_tiff` takes."""

    def check_tiff(self, name: str) -> None:
        """Raise `SceneError` if the TIFF ends before its blocks."""


class FolderFiles:
    """The files of one folder; `uri` is what the operator named."""

    def __init__(self, uri: str, filesystem: Any, folder: str) -> None:
        self.uri, self.filesystem, self.folder = uri, filesystem, folder

    def _path(self, name: str) -> str:
        return posixpath.join(self.folder, name)

    def size(self, name: str) -> int | None:
        try:
            info = self.filesystem.info(self._path(name))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return int(info["size"]) if info["type"] == "file" else None

    def read(self, name: str, most: int) -> bytes:
        return bytes(self.filesystem.cat_file(self._path(name), start=0, end=most))

    def address(self, name: str) -> str:
        return unstrip(self.filesystem, self._path(name))

    def check_tiff(self, name: str) -> None:
        def fetch(at: int, count: int) -> bytes:
            return bytes(self.filesystem.cat_file(self._path(name), start=at, end=at + count))

        check_whole(self.uri, fetch, self.size(name) or 0)


class ArchiveFiles:
    """The files inside a zip or tar archive, by their path in it."""

    def __init__(self, uri: str) -> None:
        self.uri, self.archive = uri, open_archive(uri)

    def size(self, name: str) -> int | None:
        member = self.archive.members.get(name)
        return None if member is None else member.size

    def read(self, name: str, most: int) -> bytes:
        return self.archive.read(name, most)

    def address(self, name: str) -> str:
        return self.archive.address(name)

    def check_tiff(self, name: str) -> None:
        with open_file(self.archive, name) as file:

            def fetch(at: int, count: int) -> bytes:
                file.seek(at)
                return bytes(file.read(count))

            check_whole(self.uri, fetch, self.size(name) or 0)


def is_image(path: str) -> bool:
    """Whether a file is a product's spectral image, by its name."""
    return _IMAGE.search(path) is not None


def is_layer(path: str) -> bool:
    """Whether a TIFF is one of a product's quicklooks and quality layers, no scene."""
    return _LAYER.search(posixpath.basename(path)) is not None


def product_of(path: str) -> str | None:
    """What names the product that an image is of, or that a file read with an image is of."""
    found = _FILE.search(path)
    return None if found is None else path[: found.start()].lower()


def is_archive(path: str) -> bool:
    return _ARCHIVE_SUFFIX.search(path) is not None


def is_product_archive(path: str) -> bool:
    """Whether an archive is a delivered product, by its name: EnMAP, DESIS or a DIMS order."""
    return is_archive(path) and _ARCHIVE_NAME.search(posixpath.basename(path)) is not None


def is_part(path: str) -> bool:
    """Whether a file of a product is read with its image: metadata or a quality layer."""
    return re.search(r"(?i)-(METADATA\.XML|QL_(PIXELMASK|QUALITY)[^/]*\.TIFF?)$", path) is not None


def is_archive(path: str) -> bool:
    return _ARCHIVE_SUFFIX.search(path) is not None


def is_product_archive(path: str) -> bool:
    """Whether an archive is a delivered product, by its name: EnMAP, DESIS or a DIMS order."""
    return is_archive(path) and _ARCHIVE_NAME.search(posixpath.basename(path)) is not None


def belongs_to(image: str) -> str | None:
    """What the names of all files of an image's product begin with; None if it is no image."""
    return _IMAGE.sub("", image) + "-" if is_image(image) else None


def find_image(uri: str) -> tuple[Files, str]:
    """The files of a product, and which of them is its image.

    Args:
        uri: the image, the folder that holds it, or an archive.

    Raises:
        SceneError: `unsupported` without an image, `ambiguous` with several.
    """
    filesystem, path = open_filesystem(uri)
    if is_image(path):
        return FolderFiles(uri, filesystem, posixpath.dirname(path)), posixpath.basename(path)
    if filesystem.isdir(path):
        with boundary(uri, "cannot list the folder"):
            names = [posixpath.basename(name) for name in filesystem.ls(path, detail=False)]
        return FolderFiles(uri, filesystem, path), _only_image(uri, names)
    files = ArchiveFiles(uri)
    return files, _only_image(uri, list(files.archive.members))


def _only_image(uri: str, names: Sequence[str]) -> str:
    images = [name for name in names if is_image(name)]
    if len(images) == 1:
        return images[0]
    if images:
        raise failure("ambiguous", uri, f"{len(images)} products in one: unpack them and name one")
    if any(re.search(r"(?i)\.(he5|nc|h5|zip|tgz|tar|gz)$", name) for name in names):
        raise failure("unsupported", uri, "holds archives or HDF5 files: unpack it")
    raise failure("unsupported", uri, "no Zarr store and no *-SPECTRAL_IMAGE.TIF inside")


@dataclass(frozen=True)
class Layer:
    """One quality layer: `STEM-<suffix>.TIF`, which flags it gives, and which values are defects.

    `flags` turns raw values (band, y, x) into named flags; `defects` marks, for a layer with the
    image's own bands, the values that become NaN.
    """

    suffix: str
    flags: Rule
    bands: int | None = 1
    defects: Callable[[npt.NDArray[Any]], Bool] | None = None


@dataclass(frozen=True)
class Sensor:
    """How one sensor's product differs: its name, its metadata, its layers."""

    format: str
    metadata: Callable[[str], BandFacts | None]
    layers: tuple[Layer, ...]


def read_product(uri: str, sensor_of: Callable[[str], Sensor]) -> xr.Dataset:
    """Open a product lazily: reads its metadata and the directories of its TIFFs.

    Args:
        uri: the image, the folder that holds it, or an archive (zip, tar; tar.gz if local).
        sensor_of: the sensor by the image's name.

    Raises:
        SceneError: `truncated` where the image is empty or cut, `bad-header` where the metadata
            are no metadata; what else is missing is noted and absent.
    """
    files, image = find_image(uri)
    sensor = sensor_of(image)
    if files.size(image) == 0:
        raise failure("truncated", uri, "the spectral image is empty: fetch the product again")
    with boundary(uri, "cannot read the spectral image"):
        files.check_tiff(image)
    facts, note = _metadata(files, image, sensor)
    parts = describe_tiff(uri, files.address(image), facts)
    parts.notes.extend(note)
    layers = _open_layers(files, image, sensor, parts)
    reader, parts.packing = _mask_defects(parts, layers)
    flags = [(cube, slice(0, cube.shape[0]), layer.flags) for layer, cube in layers]
    variables = flag_variable(flags, parts.chunks, uri)
    return assemble(replace(parts, format=sensor.format, reader=reader, variables=variables))


def _metadata(files: Files, image: str, sensor: Sensor) -> tuple[BandFacts | None, list[str]]:
    stem = _IMAGE.sub("", image)
    for name in (f"{stem}-METADATA.XML", f"{stem}-METADATA.xml"):
        size = files.size(name)
        if size is None:
            continue
        if size > _LARGEST_METADATA:
            raise failure("bad-header", files.uri, "the METADATA.XML is larger than 16 MiB")
        with boundary(files.uri, "cannot read the METADATA.XML"):
            text = files.read(name, _LARGEST_METADATA).decode("utf-8", errors="replace")
        if re.search(r"(?i)<!(DOCTYPE|ENTITY)", text):
            reason = "the METADATA.XML declares a document type: that is no product of DLR"
            raise failure("bad-header", files.uri, reason)
        facts = sensor.metadata(text)
        if facts is None:
            raise failure("bad-header", files.uri, "the METADATA.XML describes no bands")
        return facts, []
    return None, ["no METADATA.XML: wavelengths and gains are unknown"]


def _open_layers(
    files: Files, image: str, sensor: Sensor, parts: SceneParts
) -> list[tuple[Layer, TiffCube]]:
    """The layers that are there, sound, and on the image's pixels; others are noted."""
    stem, tail = _IMAGE.sub("", image), re.sub(r"(?i)^.*-SPECTRAL_IMAGE", "", image)
    found: list[tuple[Layer, TiffCube]] = []
    for layer in sensor.layers:
        name = f"{stem}-{layer.suffix}{tail}"
        size = files.size(name)
        if size is None:
            continue
        try:
            if size == 0:
                raise failure("truncated", files.uri, "empty")
            files.check_tiff(name)
            found.append((layer, _layer_cube(files, name, layer, parts.reader.shape)))
        except SceneError as error:
            parts.notes.append(f"{layer.suffix} is not used ({error.code})")
    return found


def _layer_cube(files: Files, name: str, layer: Layer, shape: tuple[int, int, int]) -> TiffCube:
    with boundary(files.uri, "cannot read a layer", "bad-header"):
        with open_tiff(files.address(name)) as file:
            own = (file.count, file.height, file.width)
            dtype = np.dtype(file.dtypes[0])
        wanted = shape[0] if layer.bands is None else layer.bands
        if own[1:] != shape[1:] or own[0] < wanted or dtype.kind not in "iu":
            raise failure("bad-header", files.uri, "on other pixels than the image")
    return TiffCube(files.address(name), (wanted, *own[1:]), dtype)


class MaskedCube:
    """A cube whose defective values, marked per band by another, read as its fill value."""

    def __init__(
        self,
        cube: WindowReader,
        mask: WindowReader,
        defects: Callable[[npt.NDArray[Any]], Bool],
        fill: float,
    ) -> None:
        self.cube, self.mask, self.defects, self.fill = cube, mask, defects, fill
        self.shape, self.dtype = cube.shape, cube.dtype

    def read(self, band: slice, y: slice, x: slice) -> npt.NDArray[Any]:
        values = self.cube.read(band, y, x)
        values[self.defects(self.mask.read(band, y, x))] = self.fill
        return values


def _mask_defects(
    parts: SceneParts, layers: list[tuple[Layer, TiffCube]]
) -> tuple[WindowReader, Packing]:
    """The image without its defective values, and the packing with the fill they become."""
    reader, packed = parts.reader, parts.packing
    for layer, mask in layers:
        if layer.defects is None:
            continue
        if isinstance(packed.fill, np.ndarray):
            parts.notes.append(f"{layer.suffix} is not used: nodata differs by band")
            continue
        if packed.fill is None:
            packed = replace(packed, fill=_spare(reader.dtype))
        reader = MaskedCube(reader, mask, layer.defects, float(packed.fill or 0))
    return reader, packed


def _spare(dtype: np.dtype[Any]) -> float:
    """The fill of a type that declares none: NaN, the lowest signed, the highest unsigned."""
    if dtype.kind == "f":
        return float("nan")
    return float(np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max)
