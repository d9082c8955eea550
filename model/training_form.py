"""SSPSR as it is trained: the published network's output and gradients, in fewer, larger steps.

The groups that share a branch are one batch; activations are channels-last; the upsampling
convolution and the one behind its pixel shuffle are one where that saves work
(`model.composition`), and so are the two of the skip path; attention and residual scale go into the
small weights in front of them instead of over whole images. Patch borders are padded as published.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn, unflatten
from torch.nn import functional

from model.attention import ChannelAttention
from model.composition import is_worth, through_both
from model.sspsr import SSPSR, Branch, SpatialSpectralBlock


class TrainingForm(nn.Module):
    """`form(low, bicubic)` is `net(low, bicubic)`, and so are all gradients, to float rounding.

    Args:
        net: the network; its parameters are the form's.
    """

    def __init__(self, net: SSPSR) -> None:
        super().__init__()
        self.net = net
        last = [layer for layer in net.trunk.upsample if isinstance(layer, nn.Conv2d)][-1]
        self._trunk_in_one = is_worth(last, net.final, 2)
        self._skip_in_one = is_worth(net.skip_conv, net.final, 1)

    def forward(self, low: Tensor, bicubic: Tensor, starts: Tensor | None = None) -> Tensor:
        """Super-resolve.

        Args:
            low: `[N, bands, h, w]` float32 in [0, 1].
            bicubic: `[N, bands, scale*h, scale*w]`, low upsampled.
            starts: int64, the first band of every group, for networks with a shared branch; None:
                the config's.

        Returns:
            `[N, bands, scale*h, scale*w]`, not clipped, channels-last.
        """
        if starts is None:
            starts = torch.tensor(self.net.config.group_starts, device=low.device)
        return self._reconstruct(self._merge(low, starts), bicubic)

    def _merge(self, low: Tensor, starts: Tensor) -> Tensor:
        """All groups through their branches; bands in several groups are averaged."""
        config, samples = self.net.config, len(low)
        groups, size = len(starts), config.group_size
        members = (starts[:, None] + torch.arange(size, device=low.device)).flatten()
        parts = unflatten(low[:, members], 1, (groups, size))
        if config.shared_branch:
            fine = _branch(self.net.branch_of(0), parts.flatten(0, 1))
            fine = unflatten(fine, 0, (samples, groups))
        else:
            each = [_branch(self.net.branch_of(i), part) for i, part in enumerate(parts.unbind(1))]
            fine = torch.stack(each, 1)
        # Sums of bands as a product of matrices: on any device, and in the same order every time.
        bands = torch.arange(config.bands, device=low.device)
        holds = members == bands[:, None]
        total = functional.conv2d(fine.flatten(1, 2), holds[:, :, None, None].to(fine))
        return (total / holds.sum(1).view(1, -1, 1, 1)).to(total)

    def _reconstruct(self, merged: Tensor, bicubic: Tensor) -> Tensor:
        net = self.net
        features = _body(net.trunk, merged)
        *_, last, _ = net.trunk.upsample
        assert isinstance(last, nn.Conv2d) and net.final.bias is not None
        if not self._trunk_in_one:
            fine = functional.pixel_shuffle(last(features), 2)
            y: Tensor = net.final(fine.add_(net.skip_conv(bicubic)))
            return y
        y = through_both(features, last, net.final, 2)
        return y.add_(self._skip(bicubic)).add_(net.final.bias.view(1, -1, 1, 1))

    def _skip(self, bicubic: Tensor) -> Tensor:
        if self._skip_in_one:
            return through_both(bicubic, self.net.skip_conv, self.net.final, 1)
        return functional.conv2d(self.net.skip_conv(bicubic), self.net.final.weight, padding=1)


def _branch(branch: Branch, x: Tensor) -> Tensor:
    """As `Branch.forward`."""
    y = _body(branch, x)
    convolutions = [layer for layer in branch.upsample if isinstance(layer, nn.Conv2d)]
    tail = cast(nn.Conv2d, branch.tail)
    if not convolutions or not is_worth(convolutions[-1], tail, 2):
        return cast(Tensor, tail(branch.upsample(y)))
    for layer in convolutions[:-1]:
        y = functional.pixel_shuffle(layer(y), 2)
    assert tail.bias is not None
    return through_both(y, convolutions[-1], tail, 2).add_(tail.bias.view(1, -1, 1, 1))


def _body(branch: Branch, x: Tensor) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    start = y = cast(Tensor, branch.head(x))
    for block in branch.body.net:
        y = _block(cast(SpatialSpectralBlock, block), y)
    return start + y


def _block(block: SpatialSpectralBlock, x: Tensor) -> Tensor:
    first, _, last = cast(list[nn.Conv2d], block.spa.body)
    scale = block.spa.residual_scale
    hidden = first(x).relu_()
    assert last.bias is not None
    y = functional.conv2d(hidden, last.weight * scale, last.bias * scale, padding=1).add_(x)
    rows = y.permute(0, 2, 3, 1)
    return _spectral(block, rows.flatten(1, 2)).view(rows.shape).permute(0, 3, 1, 2)


def _spectral(block: SpatialSpectralBlock, x: Tensor) -> Tensor:
    """The attention residual of `[N, pixels, features]`: 1x1 convolutions are matrix products.

    The means that the attention takes of the second convolution's output are that convolution of
    the means, so its gate is known before it runs, and scales its weights instead of the image.
    """
    first, _, last, attention = cast(list[Any], block.spc.body)
    hidden = functional.linear(x, first.weight.flatten(1), first.bias).relu_()
    pooled = functional.linear(hidden.mean(dim=1), last.weight.flatten(1), last.bias)
    gate = block.spc.residual_scale * _gate(attention, pooled)
    weight = gate[:, None] * last.weight.flatten(1).T
    return torch.baddbmm(x, hidden, weight).add_((gate * last.bias)[:, None])


def _gate(attention: ChannelAttention, pooled: Tensor) -> Tensor:
    gate: Tensor = attention.conv_du(pooled[:, :, None, None])
    return gate.flatten(1)
