"""One convolution of a finished network, prepared for a device and a precision."""

from __future__ import annotations

from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model.precision import has_amx

Padding = tuple[int, int]
_ONES = [1, 1]
_LAYING_OUT = Lock()
_BUFFERED = 240  # columns
_MANY = 96  # channels; with fewer, padding makes no difference


def padded_below(device: torch.device, dtype: torch.dtype, inputs: int) -> int:
    """Below how many columns a convolution runs faster if its columns are padded; 0: never.

    On AMX oneDNN copies rows that need padding into a compact buffer, and reads others where they
    lie, where the pixels of many channels fall into few sets of the cache. Measured on two cores,
    3x3, 256 channels: 2,100 to 3,000 GFLOP/s without padding, 3,300 to 3,600 with it; from some
    250 columns on the buffer no longer fits and it is the other way round.
    """
    return _BUFFERED if dtype == torch.bfloat16 and inputs >= _MANY and has_amx(device) else 0


class Convolution:
    """A convolution with a ReLU or an accumulation fused into it where the device can.

    Activations are channels-last. On a CPU oneDNN does the work: the weights are laid out for it
    once, and ReLU and accumulation run while the result is still in registers. Elsewhere they run
    in place behind the convolution.

    Args:
        weight: `[outputs, inputs, k, k]`, any floating type, on the device to use.
        bias: `[outputs]`.
        dtype: of the computation; accumulation inside is float32.
        fused: use oneDNN's fused convolutions; by default where they work.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor, dtype: torch.dtype, *, fused: bool | None = None
    ) -> None:
        # A copy: the network's own weights may change later.
        self._weight = weight.detach().to(dtype, copy=True, memory_format=torch.channels_last)
        if fused is None:
            fused = weight.device.type == "cpu" and _onednn_takes(dtype)
        self._fused = fused
        self._bias = bias.detach().to(torch.float32, copy=True)
        self._rounded_bias = self._bias.to(dtype)
        self._laid_out = False

    def __call__(self, x: Tensor, padding: Padding = (0, 0), *, relu: bool = False) -> Tensor:
        """`[N, outputs, ...]` of x `[N, inputs, H, W]`, zero padded by `padding`, channels-last."""
        if self._fused:
            attribute = "relu" if relu else "none"
            # Only this call takes a bias that is more precise than the rest.
            y: Tensor = torch.ops.mkldnn._convolution_pointwise(
                *self._arguments(x, self._bias, padding), attribute, [], ""
            )
            return y
        y = functional.conv2d(x, self._weight, self._rounded_bias, padding=padding)
        return y.relu_() if relu else y

    def add_to(self, total: Tensor, x: Tensor, padding: Padding = (0, 0)) -> None:
        """total += convolution of x."""
        if self._fused:
            arguments = self._arguments(x, self._rounded_bias, padding)
            torch.ops.mkldnn._convolution_pointwise_.binary(
                total, *arguments, "add", 1.0, None, [], None
            )
        else:
            total += functional.conv2d(x, self._weight, self._rounded_bias, padding=padding)

    def _arguments(self, x: Tensor, bias: Tensor, padding: Padding) -> tuple[Any, ...]:
        if not self._laid_out:
            with _LAYING_OUT:
                self._lay_out(x, padding)
        return x, self._weight, bias, list(padding), _ONES, _ONES, 1

    def _lay_out(self, x: Tensor, padding: Padding) -> None:
        if self._laid_out:  # by another thread
            return
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            self._weight, list(padding), _ONES, _ONES, 1, list(x.shape)
        )
        self._laid_out = True


class SplitConvolution:
    """A convolution of float32 input that stays precise in bfloat16.

    Input and weights are both split into their upper 8 bits and the next 8; three of the four
    products are computed, as one convolution with three times the inputs. Worth it where inputs
    are few and every later step inherits the error. In float32 it is the plain convolution.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype) -> None:
        self._dtype = dtype
        if dtype != torch.float32:
            upper, lower = halves(weight.detach(), dtype)
            weight = torch.cat([upper, upper, lower], dim=1)
        self._convolution = Convolution(weight, bias, dtype)

    def __call__(self, x: Tensor, padding: Padding = (0, 0)) -> Tensor:
        """As `Convolution`, of x in float32."""
        if self._dtype != torch.float32:
            upper, lower = halves(x, self._dtype)
            x = torch.cat([upper, lower, upper], dim=1)
        return self._convolution(x.contiguous(memory_format=torch.channels_last), padding)


def halves(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x in a shorter type, and what that leaves out, in the same type."""
    upper = x.to(dtype)
    return upper, (x - upper).to(dtype)


@cache
def _onednn_takes(dtype: torch.dtype) -> bool:
    """Whether this torch has oneDNN's fused convolutions and they run here in this type.

    They are not a public interface of torch, so they are tried once, not assumed.
    """
    x = torch.ones(1, 16, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    convolution = Convolution(torch.ones(16, 16, 1, 1), torch.ones(16), dtype, fused=True)
    try:
        y = convolution(x, relu=True)
        convolution.add_to(y, x)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool((y == 34).all())
