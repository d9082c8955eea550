"""Nodata: what the network sees in its place, and which scenes have too much of it.

The network must see a number everywhere. Gaps are filled from their neighbours, a fixed number of
pixels deep, and beyond that with one value per band for the whole scene. Both depend on the pixels
around a place only, so every tile that sees a place fills it alike and tiles still meet.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import SceneError
from pipeline.values import Values

FILL_DEPTH = 8  # LR pixels over which neighbours spread into a gap
MAX_MISSING = 0.20
MAX_RAGGED = 0.50


def fill_gaps(values: Values, background: Values, depth: int = FILL_DEPTH) -> Values:
    """Replace NaN.

    Args:
        values: `(bands, rows, cols)`, NaN in the gaps.
        background: `(bands,)`, used deeper than `depth` pixels inside a gap.
        depth: pixels; a filled value depends on values at most this far away.

    Returns:
        A new array without NaN.
    """
    result = values.copy()
    missing = ~np.isfinite(result)
    for band in np.flatnonzero(missing.any(axis=(1, 2))):
        result[band] = _fill_band(result[band], missing[band], float(background[band]), depth)
    return result


def _fill_band(plane: Values, missing: NDArray[np.bool_], background: float, depth: int) -> Values:
    value = np.where(missing, 0.0, plane).astype(np.float64)
    known = (~missing).astype(np.float64)
    for _ in range(depth):
        weight = _neighbours(known)
        reachable = (known == 0) & (weight > 0)
        if not reachable.any():
            break
        total = _neighbours(value * known)
        value[reachable] = total[reachable] / weight[reachable]
        known[reachable] = 1.0
    value[known == 0] = background
    return value.astype(np.float32)


def _neighbours(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over the 3 x 3 neighbourhood, zero outside."""
    padded = np.pad(plane, 1)
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]


def check_gaps(values: Values) -> None:
    """Refuse samples so full of holes that the network would mostly see filled values.

    Args:
        values: `(bands, rows, cols)` of the used bands, NaN in the gaps.

    Raises:
        SceneError: `not-finite`, with the measured share.
    """
    finite = np.isfinite(values)
    complete: NDArray[np.bool_] = np.asarray(finite.all(axis=0))
    empty: NDArray[np.bool_] = np.logical_not(finite.any(axis=0))
    covered = np.count_nonzero(~empty)
    if covered == 0:
        return
    # Of values, not of pixels: a dead detector element costs few values and touches many pixels.
    missing = 1 - np.count_nonzero(finite) / (covered * len(values))
    if missing > MAX_MISSING:
        raise SceneError(
            "not-finite",
            f"{missing:.0%} of the values of good bands are missing where other bands have one "
            f"(at most {MAX_MISSING:.0%} can be filled soundly); mark the bands as bad or mask "
            "whole pixels",
        )
    ragged = np.count_nonzero(complete & _beside(empty)) / covered
    if ragged > MAX_RAGGED:
        raise SceneError(
            "not-finite",
            f"{ragged:.0%} of the valid pixels touch a gap (at most {MAX_RAGGED:.0%} allowed): "
            "the scene is mostly holes",
        )


def _beside(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels with a marked neighbour above, below, left or right."""
    padded = np.pad(mask, 1)
    return padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
