"""Channel attention, pooled over what it is given (as published) or over a whole scene, frozen.

The published attention takes its weights from the mean over the input image, so the output of a
tile depends on the tile and neighbouring tiles do not meet. With the means of every attention
layer taken once per scene and frozen, the network is local and tiles meet exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model.config import SSPSRConfig

if TYPE_CHECKING:
    from model.sspsr import SSPSR, Branch

_REDUCTION = 16


class ChannelAttention(nn.Module):
    """Scale each feature map by a gate computed from the maps' means (section III-B).

    `observed` and `frozen` are transient: the first keeps the means of the last forward pass
    while a calibration asks for them, the second replaces them. Both are `[features]`.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(features, features // _REDUCTION, 1),
            nn.ReLU(),
            nn.Conv2d(features // _REDUCTION, features, 1),
            nn.Sigmoid(),
        )
        self.frozen: Tensor | None = None
        self.observe = False
        self.observed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.observe:
            # All samples are parts of one scene: one mean for all, as if they were one image.
            mean = x.double().mean(dim=(0, 2, 3)).to(x.dtype)
            self.observed = mean.detach()
            pooled = mean.view(1, -1, 1, 1)
        elif self.frozen is not None:
            pooled = self.frozen.to(x.dtype).view(1, -1, 1, 1)
        else:
            pooled = x.mean(dim=(2, 3), keepdim=True)
        gated: Tensor = x * self.conv_du(pooled)
        return gated


@dataclass(frozen=True)
class AttentionStatistics:
    """The pooled means of every attention layer over one scene.

    Attributes:
        branches: `[groups, blocks, features]` float32.
        trunk: `[blocks, features]` float32.
    """

    branches: Tensor
    trunk: Tensor

    def digest(self) -> str:
        """SHA-256 over both arrays: what provenance records."""
        sha = hashlib.sha256()
        for part in (self.branches, self.trunk):
            sha.update(part.detach().cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()


def layers(branch: Branch) -> list[ChannelAttention]:
    """The attention layers of a branch or of the trunk, first block first."""
    return [module for module in branch.modules() if isinstance(module, ChannelAttention)]


@contextmanager
def observing(branch: Branch) -> Iterator[Callable[[], Tensor]]:
    """Within this block the layers pool over all samples together and keep what they saw.

    Yields:
        A function that, after a forward pass, returns the means `[blocks, features]`.
    """
    chosen = layers(branch)
    for layer in chosen:
        layer.observe = True
    try:
        yield lambda: torch.stack(
            [layer.observed for layer in chosen if layer.observed is not None]
        )
    finally:
        for layer in chosen:
            layer.observe = False
            layer.observed = None


@contextmanager
def frozen(branch: Branch, means: Tensor | None) -> Iterator[None]:
    """Within this block the layers use `means` `[blocks, features]`; None: as published."""
    chosen = layers(branch)
    for index, layer in enumerate(chosen):
        layer.frozen = None if means is None else means[index]
    try:
        yield
    finally:
        for layer in chosen:
            layer.frozen = None


@torch.no_grad()
def calibrate(net: SSPSR, samples: Tensor) -> AttentionStatistics:
    """Pool every attention layer over all samples at once, layer by layer, in one forward pass.

    Given one whole scene as the only sample, the statistics are exactly those of the published
    forward on that scene. Memory: the activations of one group over all samples.

    Args:
        net: the network, in the plain form.
        samples: `[S, bands, h, w]` float32 in [0, 1], tiles spread over the scene.

    Raises:
        ValueError: no samples, another number of bands, or values that are not finite.
    """
    check_samples(samples, net.config)
    branches: list[Tensor] = []

    def observe_group(group: int, part: Tensor) -> Tensor:
        branch = net.branch_of(group)
        with observing(branch) as means:
            y: Tensor = branch(part)
            branches.append(means())
        return y

    merged = net.merge_groups(samples, observe_group)
    with observing(net.trunk) as means:
        net.trunk.body(net.trunk.head(merged))  # its upsampling holds no attention
        trunk = means()
    return AttentionStatistics(torch.stack(branches).float().cpu(), trunk.float().cpu())


def check_samples(samples: Tensor, config: SSPSRConfig) -> None:
    """Refuse what no statistics can be taken from.

    Raises:
        ValueError: no samples, another number of bands, or values that are not finite.
    """
    if samples.ndim != 4 or samples.shape[0] == 0 or samples.shape[1] != config.bands:
        raise ValueError(
            f"samples must be [S, {config.bands}, h, w] with S > 0, not {tuple(samples.shape)}"
        )
    if not bool(torch.isfinite(samples).all()):
        raise ValueError("samples hold NaN or infinity; fill nodata first")
