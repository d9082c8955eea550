"""Which files of one folder belong together, by their names alone."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pipeline.readers.delivery import is_image, product_of, without_copies
from pipeline.readers.envi_geometry import Geometry

Listing = dict[str, dict[str, Any]]


class Folder:
    """The files of one folder, and which of them belong together."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.lower = {path.lower(): path for path in listing}
        self.geometry = Geometry(listing)
        self.products: dict[str, list[str]] = defaultdict(list)
        for path in listing:
            product = product_of(path)
            if product is not None:
                self.products[product].append(path)
        self.images = set(without_copies(path for path in listing if is_image(path)))

    def objects(self, paths: Iterable[str]) -> tuple[tuple[str, dict[str, Any]], ...]:
        return tuple((posixpath.basename(path), self.listing[path]) for path in paths)

    def explains(self, header: str) -> bool:
        """Whether an ENVI header is no scene: geometry of one, or a copy of a product's own."""
        image = f"{header[: -len('.hdr')]}.tif"
        copy = is_image(image) and any(name in self.lower for name in (image.lower(), f"{image}f"))
        return copy or self.geometry.is_geometry(header)


def by_folder(listing: Listing) -> dict[str, Folder]:
    """The folders of a listing; all of them are looked through once."""
    folders: dict[str, Listing] = defaultdict(dict)
    for path, info in listing.items():
        folders[posixpath.dirname(path)][path] = info
    return {folder: Folder(part) for folder, part in folders.items()}
