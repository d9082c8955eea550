"""LR and HR pairs for training, by Wald's protocol: an HR image and the same image degraded."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from model.degradation import Degradation, bicubic, gaussian

Kind = Literal["bicubic", "mtf"]

_FILL_DEPTH = 8  # LR pixels over which neighbours spread into a gap, as at inference


def degradation_of(kind: Kind, scale: int, mtf: float) -> Degradation:
    """The kernel by its name: MATLAB's bicubic, or a Gaussian with a sensor's MTF at Nyquist.

    Raises:
        ValueError: an unknown name, or an MTF out of range.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"degradation must be bicubic or mtf, not {kind!r}")
    return bicubic(scale) if kind == "bicubic" else gaussian(scale, mtf)


def make_pair(
    high: Tensor,
    valid: Tensor | None = None,
    degradation: Kind = "bicubic",
    scale: int = 4,
    mtf: float = 0.3,
) -> tuple[Tensor, Tensor | None]:
    """Degrade HR patches; gaps are filled first, and what they reach does not count.

    Args:
        high: `[N, bands, scale*h, scale*w]` float32 in [0, 1]; anything, NaN too, in the gaps.
        valid: bool, `[N, 1 or bands, scale*h, scale*w]`: where high holds the scene; None:
            everywhere.
        degradation: `bicubic` as MATLAB's imresize, or `mtf`, a Gaussian.
        scale: the factor.
        mtf: of the Gaussian at the LR grid's Nyquist frequency; else without meaning.

    Returns:
        low `[N, bands, h, w]`, finite, and where the loss counts, shaped like valid: HR pixels that
        are valid themselves and lie in an LR pixel whose kernel saw valid pixels only.

    Raises:
        ValueError: a size is not a multiple of the scale, or a bad degradation.
    """
    if any(size % scale for size in high.shape[2:]):
        raise ValueError(f"patches of {tuple(high.shape[2:])} are not multiples of {scale}")
    kernel = degradation_of(degradation, scale, mtf)
    down, across = (
        torch.from_numpy(kernel.matrix(size // scale)[0]).to(high) for size in high.shape[2:]
    )
    if valid is None:
        return down @ high @ across.T, None
    gaps = (~valid).to(high.dtype)
    reached = (down != 0).to(high.dtype) @ gaps @ (across != 0).to(high.dtype).T > 0
    clean = reached.logical_not().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return down @ _filled(high, valid, _FILL_DEPTH * scale) @ across.T, valid & clean


def _filled(high: Tensor, valid: Tensor, depth: int) -> Tensor:
    """Gaps take their neighbours' mean, ring by ring, and deep inside the mean of the patch."""
    if bool(valid.all()):
        return high
    known = valid.expand_as(high)
    values = high.masked_fill(~known, 0.0)
    count = known.sum((2, 3), keepdim=True).clamp(min=1)
    background = values.sum((2, 3), keepdim=True) / count
    for _ in range(depth):
        weight = functional.avg_pool2d(known.to(high.dtype), 3, 1, 1)
        ring = ~known & (weight > 0)
        if not bool(ring.any()):
            break
        mean = functional.avg_pool2d(values, 3, 1, 1) / weight.clamp(min=1e-6)
        values = torch.where(ring, mean, values)
        known = known | ring
    return torch.where(known, values, background)
