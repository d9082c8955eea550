"""Where a scene is looked at before its tiles, to measure what holds for all of it.

The sample depends on the scene alone, never on the tile size, so a scene cut into other tiles gives
the same values.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.errors import SceneError
from pipeline.grid import Window
from pipeline.values import Values, read_window

WHOLE_SCENE = 256  # LR pixels; a scene up to this square is sampled whole
PATCH = 64  # LR pixels along a sample's side
PATCHES = 16  # together as many pixels as the largest scene that is sampled whole
SAMPLE_PIXELS = WHOLE_SCENE**2
USEFUL = 0.1  # share of valid pixels below which a patch is left out


def sample_windows(
    height: int, width: int, whole: int = WHOLE_SCENE, patch: int = PATCH
) -> list[Window]:
    """Where to look: all of a scene up to `whole` squared, else patches spread evenly over it."""
    if height * width <= whole**2:
        return [Window(0, height, 0, width)]
    rows = min(round(PATCHES**0.5), -(-height // patch))
    columns = min(-(-PATCHES // rows), -(-width // patch))
    rows = min(-(-PATCHES // columns), -(-height // patch))  # a narrow scene gets more rows
    return [
        Window(top, top + min(patch, height), left, left + min(patch, width))
        for top in _spread(height, rows, patch)
        for left in _spread(width, columns, patch)
    ]


def _spread(size: int, count: int, patch: int) -> list[int]:
    """Starts of `count` patches, each in the middle of its share of the axis."""
    share = size / count
    last = max(0, size - patch)
    return [min(last, max(0, round((index + 0.5) * share - patch / 2))) for index in range(count)]


def _all_windows(height: int, width: int) -> Iterator[Window]:
    for top in range(0, height, PATCH):
        for left in range(0, width, PATCH):
            yield Window(top, min(top + PATCH, height), left, min(left + PATCH, width))


def sample_of(scene: xr.Dataset, good: NDArray[np.bool_]) -> list[Values]:
    """Patches with enough valid pixels; all patches are searched before giving up."""
    height, width = scene.sizes["y"], scene.sizes["x"]

    def valid_share(values: Values) -> float:
        return float(np.isfinite(values[good]).any(axis=0).mean())

    patches = [read_window(scene, window) for window in sample_windows(height, width)]
    if useful := [patch for patch in patches if valid_share(patch) >= USEFUL]:
        return useful
    fallback = [patch for patch in patches if valid_share(patch) > 0]
    for window in _all_windows(height, width):
        values = read_window(scene, window)
        if valid_share(values) >= USEFUL:
            return [values]
        if valid_share(values) > 0 and len(fallback) < PATCHES:
            fallback.append(values)
    if not fallback:
        raise SceneError("no-valid-pixels", "every pixel of every good band is nodata")
    return fallback
