"""The weights of a network, fused and laid out for one device and precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import cast

import torch
from torch import Tensor, nn

from model.attention import ChannelAttention
from model.convolution import Convolution, Padding, SplitConvolution, padded_below
from model.fusion import Chain, Stage
from model.skip import Skip
from model.sspsr import SSPSR, Branch, SpatialSpectralBlock
from model.upsampling import Upsampling

Gate = Callable[[int, Tensor], Convolution]  # block, its input -> the convolution with attention


class _Block:
    """One spatial-spectral block with the residual scale in its weights."""

    def __init__(self, block: SpatialSpectralBlock, dtype: torch.dtype) -> None:
        spatial_in, _, spatial_out = block.spa.body
        spectral_in, _, spectral_out, attention = deepcopy(block.spc.body)
        self.spatial_in = _convolution(spatial_in, 1.0, dtype)
        self.spatial_out = _convolution(spatial_out, block.spa.residual_scale, dtype)
        self.spectral_in = _convolution(spectral_in, 1.0, dtype)
        self._spectral_out = cast(nn.Conv2d, spectral_out)
        self._attention = cast(ChannelAttention, attention)
        self._scale, self._dtype = block.spc.residual_scale, dtype

    def gated(self, means: Tensor) -> Convolution:
        """The last 1x1 convolution with the attention that these means `[features]` give it."""
        gate = self._scale * self._attention.conv_du(means.view(1, -1, 1, 1)).flatten()
        return _convolution(self._spectral_out, gate.view(-1, 1, 1, 1), self._dtype)

    def means(self, x: Tensor) -> Tensor:
        """What the attention pools if the last convolution runs on x: its output's means."""
        lines = x.permute(0, 2, 3, 1).flatten(0, 1).float()
        # Each line by a product: on a CPU half the time of a mean over an axis.
        width = lines.shape[1]
        pooled = (lines.new_full((1, width), 1 / width) @ lines).mean(dim=(0, 1))
        output = self._spectral_out
        return output.weight.flatten(1) @ pooled + _bias(output)


def _convolution(layer: nn.Module, factor: Tensor | float, dtype: torch.dtype) -> Convolution:
    layer = cast(nn.Conv2d, layer)
    bias = _bias(layer) * (factor.flatten() if isinstance(factor, Tensor) else factor)
    return Convolution(layer.weight * factor, bias, dtype)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


class Body:
    """Head and blocks of a branch or of the trunk."""

    def __init__(
        self, branch: Branch, dtype: torch.dtype, head: Convolution | SplitConvolution
    ) -> None:
        self.head = head
        self.blocks = [
            _Block(cast(SpatialSpectralBlock, block), dtype) for block in branch.body.net
        ]

    def __call__(self, x: Tensor, padding: Padding, gates: Sequence[Gate]) -> Tensor:
        """Features of x, channels-last; every gate serves an equal share of the batch, in order."""
        start = y = self.head(x, padding)
        for index, block in enumerate(self.blocks):
            residual = block.spatial_in(y, padding, relu=True)
            y = _crop(y, padding, 2)
            # The head's output is needed once more; and what is added to must lie in one piece.
            if index == 0 or not y.is_contiguous(memory_format=torch.channels_last):
                y = y.clone(memory_format=torch.channels_last)
            block.spatial_out.add_to(y, residual, padding)
            residual = block.spectral_in(y, relu=True)
            shares = (tensor.chunk(len(gates)) for tensor in (y, residual))
            for gate, total, part in zip(gates, *shares, strict=True):
                gate(index, part).add_to(total, part)
        return y.add_(_crop(start, padding, 2 * len(self.blocks)))


def _crop(x: Tensor, padding: Padding, pixels: int) -> Tensor:
    """What convolutions that consume so many pixels leave of x, along the axes not padded."""
    rows, columns = (slice(None) if pad else slice(pixels, -pixels) for pad in padding)
    return x[:, :, rows, columns]


class FusedNetwork:
    """All parts of a network: bodies and tails of branches and trunk, and the skip.

    Args:
        net: the network; its device is used, later changes of its weights do not count.
        dtype: of the computation, float32 or bfloat16.
    """

    def __init__(self, net: SSPSR, dtype: torch.dtype) -> None:
        self.config, self.dtype = net.config, dtype
        self.device = next(net.parameters()).device
        self.padded_below = padded_below(self.device, dtype, net.config.features)
        config = self.config
        groups = range(1 if config.shared_branch else len(config.group_starts))
        branches = [net.branch_of(group) for group in groups]
        self._bodies = [
            Body(branch, dtype, SplitConvolution(branch.head.weight, _bias(branch.head), dtype))
            for branch in branches
        ]
        self._tails = [
            self._tail([*_stages(branch), Stage.of(cast(nn.Conv2d, branch.tail))])
            for branch in branches
        ]
        self.trunk = Body(net.trunk, dtype, self._merging_head(net))
        # The final convolution serves trunk and skip; its bias counts once.
        self.trunk_tail = self._tail([*_stages(net.trunk), Stage.of(net.final, biased=False)])
        self.skip = Skip(net, self.device, dtype)

    def _merging_head(self, net: SSPSR) -> Convolution:
        """The trunk's first convolution, on the groups side by side instead of their mean."""
        head, config = net.trunk.head, net.config
        members = torch.arange(config.group_size)
        bands = torch.cat([members + start for start in config.group_starts]).to(self.device)
        share = 1 / torch.bincount(bands, minlength=config.bands)
        weight = head.weight[:, bands] * share[bands].view(-1, 1, 1)
        return Convolution(weight, _bias(head), self.dtype)

    def _tail(self, stages: list[Stage]) -> Upsampling:
        return Upsampling(Chain(stages).kernels(), self.device, self.dtype)

    def body(self, group: int) -> Body:
        return self._bodies[group if len(self._bodies) > 1 else 0]

    def tail(self, group: int) -> Upsampling:
        return self._tails[group if len(self._tails) > 1 else 0]


def _stages(branch: Branch) -> list[Stage]:
    return [Stage.of(layer, 2) for layer in branch.upsample if isinstance(layer, nn.Conv2d)]
