"""Cubes whose defective values, told per band by another array of the product, are gaps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.readers.scene import WindowReader

Bool = npt.NDArray[np.bool_]


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
