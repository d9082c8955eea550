"""A small picture of a published scene, from its overviews: for orientation, not for measuring."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image

from pipeline.arrays import VARIABLE
from pipeline.grid import TileGrid
from pipeline.overviews import overview_factors, overview_name

PRIMARIES = (650.0, 550.0, 460.0)  # nm: red, green and blue of a natural-colour composite
_NEAR = 60.0  # nm; a band farther from its primary does not stand for it
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


def draw_quicklook(url: str, grid: TileGrid) -> bytes:
    """PNG of a published scene, transparent where it has no values.

    Args:
        url: of the scene's store.
        grid: of its tiles.
    """
    level = _level(grid)
    group = None if level == 1 else overview_name(level)
    with xr.open_zarr(url, group=group) as scene:
        wavelengths = scene["wavelength"].values if "wavelength" in scene.coords else None
        bands = composite_bands(wavelengths, scene["good_band"].values)
        values = scene[VARIABLE].isel(band=list(bands)).values
    return _png(np.stack([_stretched(plane) for plane in values]), np.isfinite(values).all(axis=0))


def _level(grid: TileGrid) -> int:
    """The finest level that is small enough, 1 for the scene itself; else the coarsest."""
    factors = (1, *overview_factors(grid))
    small = (each for each in factors if max(grid.output_size) <= _LONGEST * each)
    return next(small, factors[-1])


def _stretched(plane: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Each band by itself, as a natural-colour display does; a constant band is mid grey."""
    valid = plane[np.isfinite(plane)]
    low, high = np.percentile(valid, _STRETCH) if valid.size else (0.0, 0.0)
    if not high > low:
        return np.full(plane.shape, 128, dtype=np.uint8)
    return np.nan_to_num(255 * np.clip((plane - low) / (high - low), 0, 1)).astype(np.uint8)


def _png(colours: NDArray[np.uint8], valid: NDArray[np.bool_]) -> bytes:
    opacity = np.where(valid, 255, 0).astype(np.uint8)
    picture = Image.fromarray(np.dstack([*colours, opacity]))
    memory = BytesIO()
    picture.save(memory, "PNG", optimize=True)
    return memory.getvalue()
