"""A small picture of a published scene, from its overviews: for orientation, not for measuring."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image

from pipeline.arrays import VARIABLE

PRIMARIES = (650.0, 550.0, 460.0)  # nm: red, green and blue of a natural-colour composite
_NEAR = 60.0  # nm; a band farther from its primary does not stand for it
_LEVEL = re.compile(r"(overviews/(\d+))/")
_LONGEST = 512  # pixels along the picture's longer side
_STRETCH = (2.0, 98.0)  # percentiles that become black and white


def composite_bands(
    wavelengths: Sequence[float] | NDArray[Any] | None, good: NDArray[np.bool_]
) -> tuple[int, int, int]:
    """Bands for red, green and blue: natural colours, else spread over the good bands.

    Raises:
        ValueError: no band is good.
    """
    usable = np.flatnonzero(good)
    if not len(usable):
        raise ValueError("no good band to show")
    if wavelengths is not None:
        distance = np.abs(np.subtract.outer(PRIMARIES, np.asarray(wavelengths)[usable]))
        if (distance.min(axis=1) <= _NEAR).all():
            red, green, blue = usable[distance.argmin(axis=1)].tolist()
            return red, green, blue
    red, green, blue = (int(usable[int(part * (len(usable) - 1))]) for part in (0.8, 0.5, 0.2))
    return red, green, blue


def draw_quicklook(url: str) -> bytes:
    """PNG of a published scene, transparent where it has no values.

    Args:
        url: of the scene's store.

    Raises:
        ValueError: the scene has no good band.
    """
    with xr.open_zarr(url, group=_level(url)) as scene:
        wavelengths = scene["wavelength"].values if "wavelength" in scene.coords else None
        bands = composite_bands(wavelengths, scene["good_band"].values)
        values = scene[VARIABLE].isel(band=list(bands)).values
    return _png(stretch(values), np.isfinite(values).all(axis=0))


def stretch(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours `(rows, cols, 3)` of the values `(3, rows, cols)` of red, green and blue.

    Each band by itself, from its 2nd to its 98th percentile, as a natural-colour display does; a
    constant band is mid grey.
    """
    return np.dstack([_stretched(plane) for plane in values])


def _level(url: str) -> str | None:
    """The group of the finest level that is small enough, else of the coarsest; None: the root."""
    with xr.open_zarr(url) as scene:
        longest = max(scene.sizes["y"], scene.sizes["x"])
        layout = scene.attrs.get("multiscales", {}).get("layout", [])
    groups = {1: None} | {
        int(found[2]): found[1] for entry in layout if (found := _LEVEL.match(entry["asset"]))
    }
    small = (factor for factor in sorted(groups) if longest <= _LONGEST * factor)
    return groups[next(small, max(groups))]


def _stretched(plane: NDArray[np.floating]) -> NDArray[np.uint8]:
    valid = plane[np.isfinite(plane)]
    low, high = np.percentile(valid, _STRETCH) if valid.size else (0.0, 0.0)
    if not high > low:
        return np.full(plane.shape, 128, dtype=np.uint8)
    return np.nan_to_num(255 * np.clip((plane - low) / (high - low), 0, 1)).astype(np.uint8)


def _png(colours: NDArray[np.uint8], valid: NDArray[np.bool_]) -> bytes:
    opacity = np.where(valid, 255, 0).astype(np.uint8)
    picture = Image.fromarray(np.dstack([colours, opacity]))
    memory = BytesIO()
    picture.save(memory, "PNG", optimize=True)
    return memory.getvalue()
