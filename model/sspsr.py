"""The SSPSR network as published: Jiang et al. 2020, arXiv 2005.08752.

Parameter names and shapes are those of the published checkpoints, so their state dicts load
unchanged. This is the plain form, for training and as the reference; the archive job runs
`model.inference`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model.attention import ChannelAttention
from model.config import SSPSRConfig


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


class _Residual(nn.Module):
    """x + residual_scale * body(x)."""

    def __init__(self, body: nn.Sequential, residual_scale: float) -> None:
        super().__init__()
        self.body = body
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.residual_scale * self.body(x)
        return y


class SpatialSpectralBlock(nn.Module):
    """A spatial residual (3x3) and then a spectral attention residual (1x1); section III-B."""

    def __init__(self, features: int, residual_scale: float) -> None:
        super().__init__()
        spatial = nn.Sequential(
            _convolution(features, features, 3), nn.ReLU(), _convolution(features, features, 3)
        )
        spectral = nn.Sequential(
            _convolution(features, features, 1),
            nn.ReLU(),
            _convolution(features, features, 1),
            ChannelAttention(features),
        )
        self.spa = _Residual(spatial, residual_scale)
        self.spc = _Residual(spectral, residual_scale)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.spc(self.spa(x))
        return y


class SpatialSpectralNetwork(nn.Module):
    """A chain of spatial-spectral blocks with one long skip; the paper's SSPN."""

    def __init__(self, features: int, blocks: int, residual_scale: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(SpatialSpectralBlock(features, residual_scale) for _ in range(blocks))
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.net(x)
        return y


class Branch(nn.Module):
    """Head, body, upsampling and (in the groups' branches only) a tail back to bands."""

    def __init__(self, bands: int, config: SSPSRConfig, factor: int, *, tail: bool) -> None:
        super().__init__()
        features = config.features
        self.head = _convolution(bands, features, 3)
        self.body = SpatialSpectralNetwork(features, config.blocks, config.residual_scale)
        doublings = factor.bit_length() - 1
        steps: list[nn.Module] = []
        for _ in range(doublings):
            steps += [_convolution(features, 4 * features, 3), nn.PixelShuffle(2)]
        self.upsample = nn.Sequential(*steps)
        self.tail = _convolution(features, bands, 3) if tail else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.tail(self.upsample(self.body(self.head(x))))
        return y


class SSPSR(nn.Module):
    """Spatial-spectral prior super-resolution of `config.bands` bands by `config.scale`."""

    def __init__(self, config: SSPSRConfig) -> None:
        super().__init__()
        self.config = config
        factor = config.scale // 2

        def branch() -> Branch:
            return Branch(config.group_size, config, factor, tail=True)

        self.branch: Branch | nn.ModuleList = (
            branch()
            if config.shared_branch
            else nn.ModuleList(branch() for _ in config.group_starts)
        )
        self.trunk = Branch(config.bands, config, 2, tail=False)
        self.skip_conv = _convolution(config.bands, config.features, 3)
        self.final = _convolution(config.features, config.bands, 3)

    def branch_of(self, group: int) -> Branch:
        """The branch that serves a group: its own, or the shared one."""
        chosen = self.branch[group] if isinstance(self.branch, nn.ModuleList) else self.branch
        assert isinstance(chosen, Branch)
        return chosen

    def forward(self, x: Tensor, bicubic: Tensor) -> Tensor:
        """Super-resolve.

        Args:
            x: `[N, bands, H, W]` float32 in [0, 1].
            bicubic: `[N, bands, scale*H, scale*W]`, x upsampled as MATLAB's imresize does.

        Returns:
            `[N, bands, scale*H, scale*W]`, not clipped.

        Raises:
            ValueError: the shapes do not fit each other or the config.
        """
        self._check(x, bicubic)
        merged = self.merge_groups(x, lambda group, part: self.branch_of(group)(part))
        return self.reconstruct(merged, bicubic)

    def merge_groups(self, x: Tensor, apply: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Send each group of bands through `apply(group, part)`; average bands in several groups.

        Args:
            x: `[N, bands, H, W]`.
            apply: from `[N, group_size, H, W]` to that upsampled by scale / 2.

        Returns:
            `[N, bands, scale/2*H, scale/2*W]`.
        """
        config = self.config
        height, width = (size * config.scale // 2 for size in x.shape[2:])
        total = x.new_zeros(x.shape[0], config.bands, height, width)
        count = x.new_zeros(config.bands, 1, 1)
        for group, start in enumerate(config.group_starts):
            bands = slice(start, start + config.group_size)
            total[:, bands] += apply(group, x[:, bands])
            count[bands] += 1
        return total / count

    def reconstruct(self, merged: Tensor, bicubic: Tensor) -> Tensor:
        """The trunk over the merged groups, plus the skip of the bicubic image; section III-C."""
        y: Tensor = self.final(self.trunk(merged) + self.skip_conv(bicubic))
        return y

    def _check(self, x: Tensor, bicubic: Tensor) -> None:
        samples, bands, height, width = x.shape
        scale = self.config.scale
        if bands != self.config.bands:
            raise ValueError(f"the network takes {self.config.bands} bands, x has {bands}")
        if bicubic.shape != torch.Size((samples, bands, scale * height, scale * width)):
            raise ValueError(
                f"bicubic is {tuple(bicubic.shape)}, expected x upsampled by {scale}: "
                f"{(samples, bands, scale * height, scale * width)}"
            )
