"""From high to low resolution and back.

Bicubic resampling as MATLAB's imresize does it: Keys' cubic with a = -0.5 (Keys 1981, doi
10.1109/TASSP.1981.1163711), widened by the factor when shrinking (antialiasing), pixel-area
alignment, mirrored edges. Written as one small matrix per axis, so it runs on any device,
differentiates, and is exact for every size.

The same as kernels (`Degradation`, `Spread`), for who needs the matrix of a part of a scene; and a
Gaussian degradation that has a sensor's modulation transfer function (MTF) at Nyquist.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.banded import Matrix, gather

_WIDTHS = 4.0  # standard deviations at which the Gaussian is cut


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


@dataclass(frozen=True)
class Degradation:
    """How one axis is shrunk: the same weighted sum for every LR pixel, edges mirrored.

    Attributes:
        name: for people and records.
        scale: HR pixels along one LR pixel.
        first: the first HR pixel that the LR pixel reads, counted from its own first HR pixel.
        weights: of that and the following HR pixels; symmetric, their sum is 1.
    """

    name: str
    scale: int
    first: int
    weights: tuple[float, ...]

    @property
    def support(self) -> int:
        """LR pixels beside its own that an LR pixel reads, at each side."""
        return max(0, -(self.first // self.scale))

    def matrix(
        self, size: int, starts: bool = True, ends: bool = True
    ) -> tuple[Matrix, NDArray[np.bool_]]:
        """The matrix of a window.

        Args:
            size: LR pixels of the window.
            starts, ends: the window's border is the scene's.

        Returns:
            `[size, scale * size]`, and for each LR pixel whether all that it reads is there.
        """
        taps = self.scale * np.arange(size)[:, None] + self.first + np.arange(len(self.weights))
        weights = np.broadcast_to(self.weights, taps.shape)
        return gather(taps, weights, self.scale * size, starts, ends)


@dataclass(frozen=True)
class Spread:
    """How one axis is enlarged: every LR pixel adds the same pattern, edges mirrored.

    Attributes:
        scale: HR pixels along one LR pixel.
        pixels: LR pixels beside its own that the pattern covers, at each side.
        weights: the pattern, `scale * (2 * pixels + 1)` HR pixels.
    """

    scale: int
    pixels: int
    weights: tuple[float, ...]

    def matrix(
        self, core: tuple[int, int], size: int, starts: bool, ends: bool
    ) -> tuple[Matrix, NDArray[np.bool_]]:
        """The matrix from the `size` LR pixels of a window to the HR pixels of its core.

        Args:
            core: first and last (exclusive) LR pixel.
            size: of the window.
            starts, ends: the window's border is the scene's.

        Returns:
            `[scale * core, size]`, and for each HR pixel whether all that it reads is there.
        """
        high = np.arange(self.scale * core[0], self.scale * core[1])[:, None]
        taps = high // self.scale + np.arange(-self.pixels, self.pixels + 1)
        weights = np.asarray(self.weights)[high + self.scale * (self.pixels - taps)]
        return gather(taps, weights, size, starts, ends)


@lru_cache(maxsize=64)
def bicubic(scale: int) -> Degradation:
    """The kernel of `downsample`.

    Raises:
        ValueError: the scale is less than 1.
    """
    _check_scale(scale)
    middle = _weights(9 * scale, 1, scale)[4]
    used = np.flatnonzero(middle)
    weights = middle[used[0] : used[-1] + 1]
    return Degradation("bicubic", scale, int(used[0]) - 4 * scale, tuple(weights.tolist()))


@lru_cache(maxsize=64)
def bicubic_enlargement(scale: int) -> Spread:
    """The kernel of `upsample`.

    Raises:
        ValueError: the scale is less than 1.
    """
    _check_scale(scale)
    return Spread(scale, 2, tuple(_weights(9, scale, 1)[2 * scale : 7 * scale, 4].tolist()))


@lru_cache(maxsize=64)
def gaussian(scale: int, mtf: float) -> Degradation:
    """A Gaussian blur with a given MTF at the Nyquist frequency of the LR grid, then sampling.

    A Gaussian of standard deviation s passes exp(-2 (pi s f)^2) of the frequency f, so with
    f = 1 / (2 scale) cycles per HR pixel, s = scale / pi * sqrt(-2 ln mtf). Filters matched to a
    sensor's MTF are the custom of pansharpening (Aiazzi et al. 2006, Photogrammetric Engineering
    and Remote Sensing 72, 591-596).

    Args:
        scale: at least 1.
        mtf: above 0 and below 1; what a sensor's documents state, often 0.2 to 0.35.

    Raises:
        ValueError: the scale or the MTF is out of range.
    """
    _check_scale(scale)
    if not 0.0 < mtf < 1.0:
        raise ValueError(f"the MTF at Nyquist is {mtf:g}: it must lie between 0 and 1")
    deviation = scale / np.pi * np.sqrt(-2.0 * np.log(mtf))
    reach = int(np.ceil(_WIDTHS * deviation)) + scale
    pixels = np.arange(-reach, scale + reach)
    distance = np.abs(pixels + 0.5 - scale / 2)
    inside = (distance <= _WIDTHS * deviation) | (distance == distance.min())
    weights = np.exp(-0.5 * (distance[inside] / deviation) ** 2)
    weights /= weights.sum()
    return Degradation(
        f"gaussian, MTF {mtf:g}", scale, int(pixels[inside][0]), tuple(weights.tolist())
    )


def _check_scale(scale: int) -> None:
    if scale < 1:
        raise ValueError(f"the scale is {scale}: it must be at least 1")
