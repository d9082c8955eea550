"""Physical values: their type, which most modules share, and reading them."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from pipeline.grid import Window
from pipeline.readers.lazy import read

Values = NDArray[np.float32]


def read_window(scene: xr.Dataset, window: Window) -> Values:
    """Physical values `(bands, rows, cols)` float32 of one window, NaN where there are none.

    Raises:
        SceneError: the source cannot be read there.
    """
    values = np.asarray(read(scene["reflectance"].data, *window.slices), dtype=np.float32)
    values[~np.isfinite(values)] = np.nan
    return values
