"""Which pixels are not trusted, and what each finer pixel rests on.

Masked pixels become gaps: filled for the network so that they do not bleed, fill in the output.
The output's `quality` says of every finer pixel whether a measurement lies under it, whether filled
values reached it, and what the source's own quality layers said there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from pipeline.errors import SceneError
from pipeline.grid import Window
from pipeline.readers.flags import FLAGS
from pipeline.readers.flags import VARIABLE as SOURCE_FLAGS
from pipeline.readers.lazy import lazy_array, picked, read
from pipeline.values import Values

QUALITY = "quality"
STATUS = {"filled": 1, "partly_filled": 2, "influenced": 4}
_SHIFT = len(STATUS)  # the source's flags lie above the three status bits

Flags = NDArray[np.uint16]


class _Masked:
    """Reflectance with NaN where a flag is set; windows of it read windows of both."""

    def __init__(self, scene: xr.Dataset, bits: int) -> None:
        self._scene, self._bits = scene[["reflectance", SOURCE_FLAGS]], bits
        self.shape = scene["reflectance"].shape
        self.dtype, self.ndim = np.dtype(np.float32), 3

    def __getitem__(self, key: tuple[Any, ...]) -> Values:
        return picked(key, self.shape, self._window)

    def _window(self, bands: slice, rows: slice, columns: slice) -> Values:
        values = read(self._scene["reflectance"].data, bands, rows, columns)
        flags = read(self._scene[SOURCE_FLAGS].data, rows, columns)
        return np.where(flags & self._bits, np.float32(np.nan), values)


def mask_pixels(scene: xr.Dataset, names: Sequence[str]) -> xr.Dataset:
    """The scene with gaps where its quality layers say one of `names`; lazy as before.

    A scene without quality layers is returned as it is.

    Args:
        scene: keeps the Scene contract; `quality_flags (y, x)` where the product has layers.
        names: of `pipeline.readers.flags.FLAGS`.
    """
    if not names or SOURCE_FLAGS not in scene:
        return scene
    old = scene["reflectance"]
    masked = _Masked(scene, sum(FLAGS[name] for name in names))
    lazy = lazy_array(masked, old.data.chunks)
    return scene.assign(reflectance=(old.dims, lazy, old.attrs, old.encoding))


def read_flags(scene: xr.Dataset, window: Window) -> Flags | None:
    """The source's flags `(rows, cols)`, or None where it has none."""
    if SOURCE_FLAGS not in scene:
        return None
    flags = read(scene[SOURCE_FLAGS].data, *window.slices)
    if flags.dtype != np.uint16:
        raise SceneError("bad-header", f"{SOURCE_FLAGS} is {flags.dtype}, expected uint16")
    return flags


def pixel_quality(
    values: Values, used: Sequence[int], core: Window, reach: int, flags: Flags | None
) -> Flags:
    """Quality bits of the core's LR pixels; the finer pixels of one share them.

    `influenced` is the bound that the network's receptive field gives: outside it, filled values
    have no effect at all; inside, mostly a small one.

    Args:
        values: `(bands, rows, cols)` of the window that was read, NaN in gaps.
        used: bands that hold values in the output.
        core: in the window's pixels.
        reach: LR pixels over which the network looks.
        flags: of the core.
    """
    missing = np.isnan(values[list(used)])
    some, all_bands = missing.any(axis=0), missing.all(axis=0)
    quality = np.zeros(some.shape, dtype=np.uint16)
    if some.any():
        quality[maximum_filter(some, size=2 * reach + 1, mode="constant")] = STATUS["influenced"]
        quality[some] = STATUS["partly_filled"]
        quality[all_bands] = STATUS["filled"]
    inside = quality[core.slices]
    return inside if flags is None else inside | (flags << _SHIFT).astype(np.uint16)


def quality_attributes() -> dict[str, Any]:
    """CF flag attributes of the output's `quality`; 0 is a valid pixel without remarks."""
    names = {**STATUS, **{name: bit << _SHIFT for name, bit in FLAGS.items()}}
    return {
        "long_name": "what each pixel rests on; 0: measured pixels only, nothing flagged",
        "flag_masks": np.array(list(names.values()), dtype=np.uint16),
        "flag_meanings": " ".join(names),
    }
