"""From high to low resolution and back: bicubic resampling as MATLAB's imresize does it.

Keys' cubic with a = -0.5 (Keys 1981, doi 10.1109/TASSP.1981.1163711), widened by the factor when
shrinking (antialiasing), pixel-area alignment, mirrored edges. Written as one small matrix per
axis, so it runs on any device, differentiates, and is exact for every size.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def _cubic(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    d = np.abs(distance)
    near = (1.5 * d - 2.5) * d * d + 1.0
    far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    return np.where(d <= 1.0, near, np.where(d <= 2.0, far, 0.0))


@lru_cache(maxsize=256)
def _weights(size: int, numerator: int, denominator: int) -> NDArray[np.float64]:
    """Matrix `[size * numerator / denominator, size]` that resamples one axis."""
    outputs = -(-size * numerator // denominator)
    ratio = numerator / denominator
    stretch = max(1.0, 1.0 / ratio)  # antialiasing widens the kernel when shrinking
    centres = (np.arange(outputs) + 0.5) / ratio - 0.5
    reach = int(np.ceil(2.0 * stretch)) + 1
    taps = np.floor(centres)[:, None].astype(np.int64) + np.arange(-reach, reach + 1)
    values = _cubic((centres[:, None] - taps) / stretch)
    values /= values.sum(axis=1, keepdims=True)
    mirrored = np.mod(taps, 2 * size)
    mirrored = np.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)
    matrix = np.zeros((outputs, size))
    np.add.at(matrix, (np.arange(outputs)[:, None], mirrored), values)
    return matrix


def _resample(x: Tensor, numerator: int, denominator: int) -> Tensor:
    if x.ndim < 2:
        raise ValueError(f"expected at least two axes (rows, columns last), got {x.ndim}")
    rows, columns = (
        torch.from_numpy(_weights(size, numerator, denominator)).to(x.device, x.dtype)
        for size in x.shape[-2:]
    )
    return rows @ x @ columns.T


def downsample(x: Tensor, factor: int) -> Tensor:
    """Shrink the last two axes by an integer factor.

    Args:
        x: `[..., rows, columns]`, floating.
        factor: integer, at least 1; both sizes must be its multiples.

    Raises:
        ValueError: a size is not a multiple of the factor.
    """
    if any(size % factor for size in x.shape[-2:]):
        raise ValueError(f"size {tuple(x.shape[-2:])} is not a multiple of {factor}")
    return _resample(x, 1, factor)


def enlargement(size: int, factor: int) -> Tensor:
    """The matrix `[factor * size, size]` float32 by which `upsample` enlarges one axis."""
    return torch.from_numpy(_weights(size, factor, 1)).float()


def upsample(x: Tensor, factor: int) -> Tensor:
    """Enlarge the last two axes of `[..., rows, columns]` by an integer factor."""
    return _resample(x, factor, 1)
