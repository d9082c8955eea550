"""The skip of the bicubic image: bicubic kernel, skip_conv and final, without the trunk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from model.convolution import halves
from model.extent import Axis
from model.fusion import Chain, Kernel, Places, Stage
from model.sspsr import SSPSR
from model.upsampling import Upsampling

_COARSE = 0.5  # norm of the detail from which bfloat16 inputs need a second half

Fill = Callable[[Tensor, Axis], None]  # `[1, rows, columns, bands]` of the core, its rows


class Skip:
    """skip_conv and final as one 5x5 convolution of the bicubic image.

    In bfloat16 the image itself would be rounded to 8 bits. So the convolution is split: what it
    does to a constant runs in float32, one 1x1 convolution, in LR, since it commutes with the
    bicubic kernel; the rest, which vanishes on a constant, runs in bfloat16, on the image's upper
    8 bits and, where its weights are large, on the next 8.
    """

    def __init__(self, net: SSPSR, device: torch.device, dtype: torch.dtype) -> None:
        self._mix: tuple[Tensor, Tensor] | None = None
        self._halves, self._dtype = 1, dtype
        kernels = Chain([Stage.of(net.skip_conv), Stage.of(net.final)]).kernels()
        if dtype != torch.float32:
            kernels = self._split(kernels, device)
        self._detail = Upsampling(kernels, device, dtype)

    def _split(
        self, kernels: Iterable[tuple[Places, Kernel]], device: torch.device
    ) -> Iterator[tuple[Places, Kernel]]:
        """Take the constant's part out of the map; repeat the rest for every half of the image."""
        for places, kernel in kernels:
            weight, bias = kernel.weight, kernel.bias
            if places == ("middle", "middle"):
                mix = weight.sum((-2, -1), keepdim=True)
                weight = weight.clone()
                weight[..., 2:3, 2:3] -= mix
                norm = weight.square().sum((3, 4, 5)).mean().sqrt()  # of the map to one band
                self._halves = 2 if float(norm) > _COARSE else 1
                # The constant's part also takes what rounding the rest would add to it.
                mix -= weight.to(self._dtype).double().sum((-2, -1), keepdim=True)
                mixing, offset = mix[0, 0, ..., 0, 0].float(), bias.flatten().float()
                self._mix = mixing.to(device), offset.to(device)
                bias = torch.zeros_like(bias)
            weight = torch.cat([weight] * self._halves, dim=3)
            yield places, replace(kernel, weight=weight, bias=bias)

    def over(self, x: Tensor, columns: Axis) -> Fill:
        """What fills strips of the core, any rows of it, from the LR pixels of one window.

        Args:
            x: `[1, bands, H, W]` float32.
            columns: of the window.
        """
        pixels = x[0, :, :, slice(*columns.cubic_input())].permute(1, 2, 0).contiguous()
        across = _matrix(columns, x.device)
        lines = _across(pixels, across)
        mixed = None
        if self._mix is not None:
            mixed = _across(functional.linear(pixels, *self._mix), across[_inside(columns)])

        def fill(target: Tensor, rows: Axis) -> None:
            seen, down = slice(*rows.cubic_input()), _matrix(rows, x.device)
            reaches = rows.skip_tail(), columns.skip_tail()
            bicubic = (down @ lines[seen].flatten(1)).view(-1, *lines.shape[1:])
            bicubic = bicubic.permute(2, 0, 1)[None]
            if mixed is None:
                self._detail.fill(target, bicubic, *reaches)
                return
            high, wide, bands = target.shape[1:]
            flat = target.view(high, wide * bands)
            torch.mm(down[_inside(rows)], mixed[seen].flatten(1), out=flat)
            if self._halves == 2:
                detail = torch.cat(halves(bicubic, self._dtype), dim=1)
            else:
                detail = bicubic.to(self._dtype)
            self._detail.add_to(target, detail, *reaches)

        return fill


@lru_cache(maxsize=64)
def _matrix(axis: Axis, device: torch.device) -> Tensor:
    """From the LR pixels that an axis reads to the HR pixels around its core."""
    return axis.enlargement().to(device)


def _inside(axis: Axis) -> slice:
    """The core among the HR pixels around it."""
    reach = axis.skip_tail()
    return slice(reach.low - reach.origin, reach.high - reach.origin)


def _across(pixels: Tensor, matrix: Tensor) -> Tensor:
    """`[rows, columns, bands]` with more columns; before the rows, which are fewer then."""
    return torch.bmm(matrix.expand(len(pixels), -1, -1), pixels)
