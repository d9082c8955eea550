"""The smallest change of a result after which, degraded, it is the scene again.

Degrading is D_r X D_c^T with one matrix per axis. Of all changes of X that make this equal to the
LR pixels L, the smallest (least sum of squares) is P_r (L - D_r X D_c^T) P_c^T with the right
inverses P = D^T (D D^T)^-1. Away from borders every LR pixel's residual is thus spread by one
pattern per axis, and at the scene's border the same pattern is mirrored: D and its pattern are
symmetric, so mirrored images stay mirrored.

The pattern never ends, but its tails fade. Cut off, it would leave a part of the residual behind;
taken is instead the smallest pattern of limited length that D turns into one pixel. It misses
nothing (with bicubic at scale 2, where no such pattern exists, a part that fades with the length)
and is hardly larger than the unlimited one. All tiles spread by the same pattern, so they meet as
if they were one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from model.banded import Banded, Matrix, along_both, where_known
from model.degradation import Degradation, Spread
from model.extent import Extent

TOLERANCE = 1e-2  # from scale 3 on all is exact at any; see docs/consistency.md

_LONGEST = 32  # LR pixels at each side of a pattern; beyond, the degradation cannot be inverted
_BLOCK = 12  # LR pixels per block of an operator


def _middle(degradation: Degradation, pixels: int) -> Matrix:
    """Degrading what is zero but for `2 * pixels + 1` LR pixels: all LR pixels that see it."""
    beside = degradation.support + pixels
    matrix, _ = degradation.matrix(2 * (beside + degradation.support) + 1, False, False)
    inner = slice(degradation.support, degradation.support + 2 * beside + 1)
    first = degradation.scale * 2 * degradation.support
    return matrix[inner, first : first + degradation.scale * (2 * pixels + 1)]


@lru_cache(maxsize=256)
def pattern(degradation: Degradation, pixels: int) -> tuple[Spread, float]:
    """The smallest pattern that is degraded to one LR pixel.

    Args:
        pixels: LR pixels that it covers at each side of its own.

    Returns:
        The pattern along one axis, and the sum of what is missed of that LR pixel.
    """
    matrix = _middle(degradation, pixels)
    target = np.zeros(len(matrix))
    target[len(matrix) // 2] = 1.0
    weights = np.linalg.lstsq(matrix, target, rcond=1e-13)[0]
    missed = float(np.abs(matrix @ weights - target).sum())
    return Spread(degradation.scale, pixels, tuple(weights.tolist())), missed


def _norm(degradation: Degradation, pixels: int) -> float:
    return float(np.linalg.norm(pattern(degradation, pixels)[0].weights))


@lru_cache(maxsize=256)
def pattern_pixels(degradation: Degradation, tolerance: float) -> int:
    """LR pixels that a pattern must cover at each side of its own.

    Args:
        tolerance: bounds what is missed, as part of the largest residual, and by how much the
            change is larger than the smallest possible, relative; both in two dimensions.

    Raises:
        ValueError: no tolerance, or one that this degradation cannot reach.
    """
    if not 0.0 < tolerance < 1.0:
        raise ValueError(f"the tolerance is {tolerance:g}: it must lie between 0 and 1")
    smallest = _norm(degradation, _LONGEST)
    for pixels in range(_LONGEST):
        _, missed = pattern(degradation, pixels)
        excess = _norm(degradation, pixels) / smallest - 1.0
        # Least squares that miss much may be small, so the excess can be negative.
        if all((1.0 + each) ** 2 - 1.0 <= tolerance for each in (missed, abs(excess))):
            return pixels
    raise ValueError(
        f"{degradation.name} at scale {degradation.scale} cannot be undone to {tolerance:g} within "
        f"{_LONGEST} LR pixels: take a larger tolerance"
    )


def reach(degradation: Degradation, tolerance: float = TOLERANCE) -> int:
    """LR pixels around a core over which the result must be known to project the core.

    Raises:
        ValueError: as `pattern_pixels`.
    """
    return pattern_pixels(degradation, tolerance) + degradation.support


@dataclass(frozen=True)
class _Axis:
    """What the projection needs of one axis of a window.

    Attributes:
        around: LR pixels of the window whose residuals reach the core.
        core: HR pixels of the window.
        degrade: from the window's HR pixels to `around`.
        spread: from `around` to the core's HR pixels.
    """

    around: slice
    core: slice
    degrade: Banded
    spread: Banded


@lru_cache(maxsize=64)
def _axis(
    extent: Extent,
    size: int,
    degradation: Degradation,
    tolerance: float,
    dtype: torch.dtype,
    device: torch.device,
) -> _Axis:
    if not 0 <= extent.start < extent.stop <= size:
        raise ValueError(f"the core {extent.start}..{extent.stop} is not a part of {size} pixels")
    pixels, scale = pattern_pixels(degradation, tolerance), degradation.scale
    around = slice(max(0, extent.start - pixels), min(size, extent.stop + pixels))
    matrix, inside = degradation.matrix(size, extent.at_start, extent.at_end)
    spread, reached = pattern(degradation, pixels)[0].matrix(
        (extent.start, extent.stop), size, extent.at_start, extent.at_end
    )
    if not (inside[around].all() and reached.all()):
        raise ValueError(
            f"the result must be known {reach(degradation, tolerance)} LR pixels around the core "
            "wherever the scene goes on"
        )
    return _Axis(
        around,
        slice(scale * extent.start, scale * extent.stop),
        Banded.of(matrix[around], _BLOCK, dtype, device),
        Banded.of(spread[:, around], _BLOCK * scale, dtype, device),
    )


def conserve(
    sr: Tensor,
    lr: Tensor,
    rows: Extent,
    columns: Extent,
    degradation: Degradation,
    tolerance: float = TOLERANCE,
    valid: Tensor | None = None,
) -> Tensor:
    """The core of a result, changed as little as makes it degrade to the LR pixels.

    A gap has no residual, and so adds no change. Every other LR pixel still becomes exact, next to
    gaps too, but there it is exact together with the values of `sr` under the gap: once these are
    replaced by fill, nobody can check it. Where `sr` itself is not finite it stays so, and LR
    pixels that read such values have no residual either.

    Args:
        sr: `[bands, scale * rows, scale * columns]` of the whole window.
        lr: `[bands, rows, columns]` of the window: the core and `reach` LR pixels around it, fewer
            only where the scene ends.
        rows, columns: where the core lies in the window.
        degradation: of `model.degradation`, with the result's scale.
        tolerance: of `reach`.
        valid: bool like `lr`, false in gaps; what is not finite is a gap in any case.

    Returns:
        `[bands, scale * core rows, scale * core columns]`.

    Raises:
        ValueError: the shapes do not fit, the window is too small, or the tolerance cannot be
            reached.
    """
    _check(sr, lr, degradation.scale, valid)
    down, right = (
        _axis(extent, size, degradation, tolerance, sr.dtype, sr.device)
        for extent, size in zip((rows, columns), lr.shape[1:], strict=True)
    )
    low, unknown = where_known(down.degrade, right.degrade, sr)
    residual = lr[:, down.around, right.around] - low
    gaps = ~torch.isfinite(residual)
    if valid is not None:
        gaps |= ~valid[:, down.around, right.around]
    if unknown is not None:
        gaps |= unknown
    change = along_both(down.spread, right.spread, residual.masked_fill_(gaps, 0.0))
    return change.add_(sr[:, down.core, right.core])


def _check(sr: Tensor, lr: Tensor, scale: int, valid: Tensor | None) -> None:
    if lr.ndim != 3 or not lr.is_floating_point() or sr.dtype != lr.dtype:
        raise ValueError(
            f"expected floats of one type [bands, rows, columns], got {tuple(lr.shape)} {lr.dtype} "
            f"and {sr.dtype}"
        )
    expected = (lr.shape[0], *(scale * size for size in lr.shape[1:]))
    if sr.shape != expected:
        raise ValueError(f"the result is {tuple(sr.shape)}, but its window needs {expected}")
    if valid is not None and (valid.shape != lr.shape or valid.dtype != torch.bool):
        raise ValueError(f"a mask {tuple(valid.shape)} {valid.dtype} of a scene {tuple(lr.shape)}")
