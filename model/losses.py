"""The published training loss: L1 plus total variation in space and along the spectrum."""

from __future__ import annotations

import torch
from torch import Tensor


def spatial_variation(x: Tensor) -> Tensor:
    """Mean squared differences of neighbouring pixels, rows plus columns; x `[N, bands, H, W]`."""
    rows = (x[:, :, 1:] - x[:, :, :-1]).square().mean()
    columns = (x[..., 1:] - x[..., :-1]).square().mean()
    return rows + columns


def spectral_variation(x: Tensor) -> Tensor:
    """Twice the mean squared difference of neighbouring bands; x `[N, bands, H, W]`."""
    return 2.0 * (x[:, 1:] - x[:, :-1]).square().mean()


def hybrid_loss(
    estimate: Tensor, reference: Tensor, spatial: float = 1e-3, spectral: float = 1e-3
) -> Tensor:
    """L1 + spatial * TV + spectral * spectral TV (arXiv 2005.08752, section III-D).

    Args:
        estimate: `[N, bands, H, W]`.
        reference: same shape.
        spatial: weight of the spatial total variation of the estimate.
        spectral: weight of its spectral total variation.
    """
    loss = torch.nn.functional.l1_loss(estimate, reference)
    return loss + spatial * spatial_variation(estimate) + spectral * spectral_variation(estimate)
