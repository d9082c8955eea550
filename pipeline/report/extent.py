"""Which part of a scene a page shows: bounds that keep a page light whatever the scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.grid import Window
from pipeline.quicklook import composite_bands

_MOST_VALUES = 1 << 26  # of a scene that are read: 256 MB of float32
_BLOCK_BYTES = 1 << 18  # of the spectra that one click loads, before compression


@dataclass(frozen=True)
class Limits:
    """What of a scene is put into its page.

    Attributes:
        max_side: HR pixels along the sides of the window whose images are shown.
        max_bands: bands that have an image; 0 means all.
        spectra_megabytes: of 16-bit values whose spectra can be asked for; at least one LR pixel.
    """

    max_side: int = 512
    max_bands: int = 12
    spectra_megabytes: float = 8.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Extent:
    """Parts of one scene, in LR pixels.

    Attributes:
        images: of which every shown band has an image.
        spectra: the part of it whose spectra can be asked for; relative to the scene.
        block: LR pixels along the sides of what is loaded for one spectrum.
        bands: that have an image.
        composite: those of red, green and blue.
    """

    images: Window
    spectra: Window
    block: int
    bands: tuple[int, ...]
    composite: tuple[int, int, int]


def choose_extent(
    shape: tuple[int, int, int],
    scale: int,
    good: NDArray[np.bool_],
    wavelengths: Sequence[float] | NDArray[Any] | None,
    limits: Limits,
) -> Extent:
    """The middle of a scene, as large as the limits allow.

    Args:
        shape: bands, rows and columns of the output.
        scale: HR pixels along an LR pixel.
        good: which bands have values.
        wavelengths: in nm, or None.
        limits: of the page.

    Raises:
        ValueError: no band is good.
    """
    bands, rows, columns = shape
    low = (rows // scale, columns // scale)
    most = min(limits.max_side, int((_MOST_VALUES / bands) ** 0.5))
    images = _middle(Window(0, low[0], 0, low[1]), max(1, most // scale))
    values = limits.spectra_megabytes * 1e6 / 2 / bands
    spectra = _middle(images, max(1, int((values / scale**2) ** 0.5)))
    block = max(1, int((_BLOCK_BYTES / 2 / bands) ** 0.5) // scale)
    composite = composite_bands(wavelengths, good)
    return Extent(images, spectra, block, _shown(good, composite, limits.max_bands), composite)


def _middle(outer: Window, side: int) -> Window:
    """The square in the middle; along a side that is shorter, all of it."""
    top, bottom = _centred(outer.top, outer.bottom, side)
    left, right = _centred(outer.left, outer.right, side)
    return Window(top, bottom, left, right)


def _centred(first: int, last: int, size: int) -> tuple[int, int]:
    if last - first <= size:
        return first, last
    start = first + (last - first - size) // 2
    return start, start + size


def _shown(good: NDArray[np.bool_], composite: Sequence[int], most: int) -> tuple[int, ...]:
    """The composite's bands and others spread over the good ones."""
    usable = np.flatnonzero(good)
    if not most or len(usable) <= most:
        return tuple(usable.tolist())
    spread = usable[np.linspace(0, len(usable) - 1, max(1, most - 3)).round().astype(int)]
    return tuple(sorted({*spread.tolist(), *composite}))
