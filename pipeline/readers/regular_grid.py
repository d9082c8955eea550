"""The geotransform of a grid, from its text or from evenly spaced pixel centres."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from pipeline.readers.georeference import GeoTransform
from pipeline.readers.packing import FloatArray

_LONGEST_COORD = 10_000_000
_UNEVEN = 1e-3  # of a step


class Centres(Protocol):
    """Pixel centres along an axis: an array of Zarr or of xarray."""

    shape: Any
    dtype: Any
    attrs: Any

    def __getitem__(self, key: Any) -> Any: ...


def parse_geotransform(text: Any, notes: list[str]) -> GeoTransform | None:
    """GDAL's six numbers; None, with a note, where the text is something else."""
    if text is None:
        return None
    try:
        a, b, c, d, e, f = (float(word) for word in str(text).replace(",", " ").split())
    except ValueError:
        notes.append("GeoTransform cannot be read and is ignored")
        return None
    return a, b, c, d, e, f


def find_geotransform(
    x: Centres | None, y: Centres | None, size: tuple[int, int], notes: list[str]
) -> GeoTransform | None:
    """The geotransform of evenly spaced pixel centres; None for pixel indices and uneven axes.

    Args:
        x, y: centres along the axes; None where the scene states none.
        size: (rows, cols).
        notes: takes what a reader says of it.
    """
    lines: list[tuple[float, float]] = []
    for array, count in ((x, size[1]), (y, size[0])):
        if array is None or array.shape != (count,) or count < 2 or count > _LONGEST_COORD:
            return None
        if array.dtype.kind not in "iuf" or array.attrs.get("units") == "1":
            return None
        line = first_and_step(np.asarray(array[:], np.float64))
        if line is None:
            notes.append("x or y is not evenly spaced: the scene has no grid")
            return None
        if counts_pixels(*line):
            return None
        lines.append(line)
    (x0, dx), (y0, dy) = lines
    return x0 - dx / 2, dx, 0.0, y0 - dy / 2, 0.0, dy


def first_and_step(centres: FloatArray) -> tuple[float, float] | None:
    """The first of two or more evenly spaced centres, and the step; None if they are uneven."""
    step = float(centres[-1] - centres[0]) / (len(centres) - 1)
    even = np.abs(centres - (centres[0] + step * np.arange(len(centres)))).max()
    # A comparison with NaN is false.
    return (float(centres[0]), step) if step and even <= _UNEVEN * abs(step) else None


def counts_pixels(first: float, step: float) -> bool:
    """Whether centres are the numbers of pixels, and say nothing of a place."""
    return first in (0.0, 0.5) and step == 1
