"""Where the files of a delivered product are: in a folder, or inside an archive.

EnMAP and DESIS products are `STEM-SPECTRAL_IMAGE.TIF`, `STEM-METADATA.XML` and `STEM-QL_*.TIF`
(`*_COG.TIF` where DLR's catalogue serves cloud-optimised copies).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from pipeline.readers.archive import open_archive, open_file
from pipeline.readers.boundary import boundary, failure
from pipeline.readers.geotiff import check_whole
from pipeline.storage import open_filesystem, unstrip

_IMAGE = re.compile(r"(?i)-SPECTRAL_IMAGE((_COG)?\.TIFF?)$")
_FILE = re.compile(
    r"(?i)-(SPECTRAL_IMAGE(_COG)?\.TIFF?|METADATA\.XML|QL_(PIXELMASK|QUALITY)[^/]*\.TIFF?)$"
)
_LAYER = re.compile(
    r"(?i)(^(ENMAP|DESIS)[^/]*-QL_|-QL_(VNIR|SWIR|IMAGE|PIXELMASK|QUALITY))[^/]*\.TIFF?$"
)
_ARCHIVE_SUFFIX = re.compile(r"(?i)\.(zip|tar|tgz|tar\.gz)$")
_ARCHIVE_NAME = re.compile(r"(?i)enmap|desis|^dims_op")


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


def without_copies(images: Iterable[str]) -> list[str]:
    """The images without the cloud-optimised copies of others among them."""
    first: dict[str, str] = {}
    for image in sorted(images, key=lambda name: "_COG." in name.upper()):
        first.setdefault(_IMAGE.sub("", image).lower(), image)
    return list(first.values())


def layer_name(image: str, suffix: str) -> str:
    """The name of a quality layer beside an image: `STEM-<suffix>.TIF`, `_COG` as the image's."""
    return _IMAGE.sub(lambda found: f"-{suffix}{found.group(1)}", image)


def metadata_names(image: str) -> list[str]:
    return [_IMAGE.sub(f"-METADATA.{suffix}", image) for suffix in ("XML", "xml")]


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
    images = without_copies(name for name in names if is_image(name))
    if len(images) == 1:
        return images[0]
    if images:
        raise failure("ambiguous", uri, f"{len(images)} products in one: unpack them and name one")
    if any(re.search(r"(?i)\.(he5|nc|h5|zip|tgz|tar|gz)$", name) for name in names):
        raise failure("unsupported", uri, "holds archives or HDF5 files: unpack it")
    raise failure("unsupported", uri, "no Zarr store and no *-SPECTRAL_IMAGE.TIF inside")
