"""Two convolutions with a pixel shuffle between them as one, differentiable in their weights.

`model.fusion` does the same for finished weights. Here the one kernel is made anew at every step,
so its making must be cheap, and the scene's border is corrected without a kernel of its own: what
the one convolution sees beyond the border that the published zeros would hide is computed along
the border only, and taken away.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn, unflatten
from torch.autograd.function import once_differentiable
from torch.nn import functional


def is_worth(first: nn.Conv2d, second: nn.Conv2d, factor: int) -> bool:
    """Whether the one convolution takes less time than the two.

    On a CPU that is so if it takes fewer multiplications. On a GPU they are cheap, and the larger
    kernel and what moves data around it cost more: measured, a step takes a quarter longer.
    """
    if first.weight.device.type != "cpu":
        return False
    inputs, outputs, between = first.in_channels, second.out_channels, second.in_channels
    taps = _taps(factor)
    apart = 9 * factor**2 * between * (inputs + outputs)
    return taps**2 * factor**2 * inputs * outputs < apart


def through_both(x: Tensor, first: nn.Conv2d, second: nn.Conv2d, factor: int) -> Tensor:
    """second(pixel_shuffle(first(x))), both 3x3 and padded with zeros, second without its bias.

    Args:
        x: `[N, inputs, h, w]`.
        first: to `between * factor**2` channels.
        second: from `between` channels.
        factor: of the pixel shuffle; 1: none.

    Returns:
        `[N, outputs, factor*h, factor*w]`, laid out as suits the device.
    """
    weight, bias = _compose(first, second, factor)
    x = x.contiguous(memory_format=_layout(x))
    phases = functional.conv2d(x, weight, bias, padding=2)
    image: Tensor = _Interleave.apply(phases, factor) if factor > 1 else phases  # type: ignore[no-untyped-call]
    corrected: Tensor = _WithoutRim.apply(image, *_rim(x, first, second, factor))  # type: ignore[no-untyped-call]
    return corrected


def _layout(x: Tensor) -> torch.memory_format:
    """Measured: in float32 on a CPU the large kernels run faster on whole bands."""
    mixed = torch.is_autocast_enabled(x.device.type)
    return torch.contiguous_format if x.device.type == "cpu" and not mixed else torch.channels_last


def _empty(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Of another size, type and layout those of x; no view, so that it can be changed in place."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=layout)


def _taps(factor: int) -> int:
    return (3 * factor + 2) // factor


def _compose(first: nn.Conv2d, second: nn.Conv2d, factor: int) -> tuple[Tensor, Tensor]:
    """Weight `[factor**2 * outputs, inputs, taps, taps]` and bias of the one convolution.

    Its outputs are the fine pixels inside a coarse one, rows first. Each begins its taps one coarse
    pixel later than the one before it (`_Interleave`).
    """
    assert first.bias is not None
    with torch.autocast(first.weight.device.type, enabled=False):
        # The fine image that a single coarse pixel of each input leaves behind.
        impulse = functional.pixel_shuffle(first.weight.transpose(0, 1).flip(2, 3), factor)
        response = functional.conv2d(impulse, second.weight, padding=2).flip(2, 3)
        split = unflatten(unflatten(response, 3, (-1, factor)), 2, (-1, factor))
        weight = split.permute(3, 5, 1, 0, 2, 4).flatten(0, 2)
        constant = functional.pixel_shuffle(first.bias.view(1, -1, 1, 1), factor)
        constant = functional.pad(constant, (1, 1, 1, 1), mode="circular")
        bias = functional.conv2d(constant, second.weight)[0].permute(1, 2, 0).flatten()
    return weight, bias


class _Interleave(torch.autograd.Function):
    """`[N, factor**2 * outputs, h + factor - 1, ...]` to `[N, outputs, factor*h, ...]`."""

    @staticmethod
    def forward(ctx: Any, phases: Tensor, factor: int) -> Tensor:
        samples, channels, height, width = phases.shape
        height, width = height - factor + 1, width - factor + 1
        ctx.factor = factor
        size = samples, channels // factor**2, factor * height, factor * width
        image = _empty(phases, size)
        for fine, coarse in _places(phases, image, factor):
            fine.copy_(coarse)
        return image

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        factor = ctx.factor
        samples, outputs, height, width = gradient.shape
        high, wide = (length // factor + factor - 1 for length in (height, width))
        phases = _empty(gradient, (samples, factor**2 * outputs, high, wide)).zero_()
        for fine, coarse in _places(phases, gradient, factor):
            coarse.copy_(fine)
        return phases, None


def _places(phases: Tensor, image: Tensor, factor: int) -> list[tuple[Tensor, Tensor]]:
    """The pixels of each phase, in the fine image and among the phases."""
    outputs, height, width = image.shape[1], image.shape[2] // factor, image.shape[3] // factor
    return [
        (
            image[:, :, row::factor, column::factor],
            unflatten(phases, 1, (factor, factor, outputs))[
                :, row, column, :, row : row + height, column : column + width
            ],
        )
        for row in range(factor)
        for column in range(factor)
    ]


def _rim(x: Tensor, first: nn.Conv2d, second: nn.Conv2d, factor: int) -> list[Tensor]:
    """What the fine pixels just outside give to the outermost ones inside.

    Returns:
        Of the top, bottom, left and right line: `[N, outputs, fine pixels]`. The four corner pixels
        outside belong to the top and bottom line.
    """
    assert first.bias is not None
    # [between, row phase, column phase, inputs, 3, 3]
    weight = unflatten(first.weight, 0, (-1, factor, factor))
    bias = unflatten(first.bias, 0, (-1, factor, factor))
    lines = []
    for last in (0, 1):
        # Beyond the last line lies the first phase; it is seen by the first tap from there.
        phase, seen, tap = (factor - 1) * (1 - last), 2 - 2 * last, 2 * last
        along = (weight[:, phase, :, :, seen], bias[:, phase], second.weight[:, :, tap])
        lines.append(_line(x[:, :, -last], *along, corners=True))
    for last in (0, 1):
        phase, seen, tap = (factor - 1) * (1 - last), 2 - 2 * last, 2 * last
        along = (weight[:, :, phase, :, :, seen], bias[:, :, phase], second.weight[..., tap])
        lines.append(_line(x[..., -last], *along, corners=False))
    return lines


def _line(x: Tensor, first: Tensor, bias: Tensor, second: Tensor, *, corners: bool) -> Tensor:
    """Both convolutions along one line `[N, inputs, pixels]`, shuffled between.

    Args:
        first: `[between, factor, inputs, 3]`.
        bias: `[between, factor]`.
        second: `[outputs, between, 3]`.
        corners: the pixels outside both ends of the line count, instead of zeros.
    """
    factor = first.shape[1]
    y = functional.conv1d(x, first.flatten(0, 1), bias.flatten(), padding=2 if corners else 1)
    y = unflatten(y, 1, (-1, factor)).transpose(2, 3).flatten(2)
    if corners and factor > 1:
        y = y[..., factor - 1 : 1 - factor]
    return functional.conv1d(y, second, padding=0 if corners else 1)


class _WithoutRim(torch.autograd.Function):
    """An image less the four lines of `_rim`, in place."""

    @staticmethod
    def forward(
        ctx: Any, image: Tensor, top: Tensor, bottom: Tensor, left: Tensor, right: Tensor
    ) -> Tensor:
        ctx.mark_dirty(image)
        image[:, :, 0] -= top
        image[:, :, -1] -= bottom
        image[..., 0] -= left
        image[..., -1] -= right
        return image

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        lines = gradient[:, :, 0], gradient[:, :, -1], gradient[..., 0], gradient[..., -1]
        return gradient, *(line.neg() for line in lines)
