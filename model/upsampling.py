"""A fused chain of convolutions and pixel shuffles, prepared to run on part of a scene."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, unflatten
from torch.nn import functional

from model.convolution import Convolution, padded_below
from model.fusion import Kernel, Place, Places


@dataclass(frozen=True)
class Reach:
    """One axis of a chain's input, and the fine pixels that are asked of it.

    Attributes:
        origin: the input's first pixel, in coarse pixels.
        size: of the input.
        low, high: the fine pixels asked for, end exclusive, on the same origin.
        starts, ends: whether the input's first and last pixel are the scene's.
    """

    origin: int
    size: int
    low: int
    high: int
    starts: bool = False
    ends: bool = False


@dataclass(frozen=True)
class _Part:
    """One axis of one convolution: its input, its padding, and where each phase's results go."""

    read: slice
    padding: int
    phases: dict[int, tuple[slice, slice]]  # place among the phases: in the result, in the target


@dataclass(frozen=True)
class _Axis:
    """One axis of a kernel that was cut to what is not zero.

    Attributes:
        place: the coarse pixels it is for: all of them, or the scene's first or last.
        phases: the fine pixels inside a coarse one that it gives.
        first: per phase, the first tap, relative to the coarse pixel.
        taps: how many there are.
    """

    place: Place
    phases: tuple[int, ...]
    first: tuple[int, ...]
    taps: int

    def part(self, reach: Reach, factor: int) -> _Part:
        """How to run it on an input."""
        return (
            self._everywhere(reach, factor) if self.place == "middle" else self._edge(reach, factor)
        )

    def _everywhere(self, reach: Reach, factor: int) -> _Part:
        begins, ends, targets = [], [], []
        for phase, first in zip(self.phases, self.first, strict=True):
            low = -((phase - reach.low) // factor)  # coarse pixels whose fine one is asked for
            high = (reach.high - 1 - phase) // factor
            begins.append(low - reach.origin + first)
            ends.append(high - reach.origin + first)
            start = factor * low + phase - reach.low
            targets.append(slice(start, start + factor * (high - low) + 1, factor))
        first, last = min(begins), max(ends) + self.taps
        padding = max(0, -first, last - reach.size)
        read = slice(max(0, first), min(reach.size, last))
        results = [
            slice(begin - read.start + padding, end - read.start + padding + 1)
            for begin, end in zip(begins, ends, strict=True)
        ]
        return _Part(read, padding, dict(enumerate(zip(results, targets, strict=True))))

    def _edge(self, reach: Reach, factor: int) -> _Part:
        if not (reach.starts if self.place == "start" else reach.ends):
            return _Part(slice(None), 0, {})
        outermost = reach.origin if self.place == "start" else reach.origin + reach.size - 1
        read = slice(0, self.taps) if self.place == "start" else slice(-self.taps, None)
        fine = [factor * outermost + phase - reach.low for phase in self.phases]
        asked = {
            index: (slice(0, 1), slice(pixel, pixel + 1))
            for index, pixel in enumerate(fine)
            if 0 <= pixel < reach.high - reach.low
        }
        return _Part(read, 0, asked)


class _Piece:
    """The map, or what a border adds to it, as one convolution."""

    def __init__(
        self,
        kernel: Kernel,
        axes: tuple[_Axis, _Axis],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.rows, self.columns = axes
        self.factor, self.outputs = kernel.factor, kernel.weight.shape[2]
        weights, biases = [], []
        firsts = (zip(axis.phases, axis.first, strict=True) for axis in axes)
        for (row, above), (column, before) in product(*firsts):
            top, left = kernel.reach + above, kernel.reach + before
            area = (slice(top, top + self.rows.taps), slice(left, left + self.columns.taps))
            weights.append(kernel.weight[row, column, :, :, *area])
            biases.append(kernel.bias[row, column])
        inputs = kernel.weight.shape[3] if self.columns.place == "middle" else 0
        self._padded_below = padded_below(device, dtype, inputs)
        # oneDNN adds up a 4x4 kernel in another order where it pads: at the scene's border, too, no
        # tile shall differ from the whole in the last bits.
        self._alike = device.type == "cpu" and dtype == torch.float32
        self.convolution = Convolution(
            torch.cat(weights).float().to(device), torch.cat(biases).float().to(device), dtype
        )

    def write(self, target: Tensor, x: Tensor, rows: Reach, columns: Reach, *, add: bool) -> None:
        """Add to what the target holds, or replace it, where this piece counts."""
        down, across = self.rows.part(rows, self.factor), self.columns.part(columns, self.factor)
        if not down.phases or not across.phases:
            return
        part = self._input(x, down, across)
        padding = (0, 0) if self._alike else (down.padding, across.padding)
        spare = int(padding[1] == 0 and part.shape[3] < self._padded_below)
        result = self.convolution(part, (padding[0], padding[1] + spare))
        result = result[..., spare : result.shape[3] - spare].permute(0, 2, 3, 1)
        result = unflatten(result, 0, target.shape[:-3])
        for (i, (row, to_row)), (j, (column, to_column)) in product(
            down.phases.items(), across.phases.items()
        ):
            channel = (i * len(self.columns.phases) + j) * self.outputs
            fine = result[..., row, column, channel : channel + self.outputs]
            if add:
                target[..., to_row, to_column, :] += fine
            else:
                target[..., to_row, to_column, :] = fine

    def _input(self, x: Tensor, down: _Part, across: _Part) -> Tensor:
        """The part of x that is read, with the zeros that the convolution leaves out."""
        part = x[:, :, down.read, across.read]
        sides = [
            self._zeros(axis, of.padding, size)
            for axis, of, size in (
                (self.columns, across, part.shape[3]),
                (self.rows, down, part.shape[2]),
            )
        ]
        if any(map(any, sides)):
            part = functional.pad(part, (*sides[0], *sides[1]))
        return part.contiguous(memory_format=torch.channels_last)

    def _zeros(self, axis: _Axis, padding: int, size: int) -> tuple[int, int]:
        """Before and behind the pixels of an axis; beyond a very small scene's far side too."""
        if axis.place == "middle":
            return (padding, padding) if self._alike else (0, 0)
        lack = max(0, axis.taps - size)
        return (0, lack) if axis.place == "start" else (lack, 0)


def _axis(kernel: Kernel, place: Place, dim: int) -> _Axis:
    """Cut one axis (0: rows, 1: columns) of a kernel to what is inside the scene and not zero."""
    reach = kernel.reach
    if place == "middle":
        taps = max(last - first + 1 for first, last in kernel.spans)
        first = tuple(min(first, reach + 1 - taps) for first, _ in kernel.spans)
        return _Axis(place, tuple(range(kernel.factor)), first, taps)
    weight = kernel.weight.movedim((dim, dim + 4), (0, 1)).flatten(2).abs().sum(2)
    bias = kernel.bias.movedim(dim, 0).flatten(1).abs().sum(1)
    phases = tuple((weight.sum(1) + bias).nonzero().flatten().tolist())
    inside = weight[:, reach:] if place == "start" else weight[:, : reach + 1].flip(1)
    used = inside.sum(0).nonzero().flatten().tolist()
    taps = 1 + max(used, default=0)
    return _Axis(place, phases, (0 if place == "start" else 1 - taps,) * len(phases), taps)


class Upsampling:
    """A chain, ready to run on `[N, inputs, h, w]`, channels-last.

    Args:
        kernels: of `Chain.kernels`.
        device: where to run.
        dtype: of the computation.
    """

    def __init__(
        self, kernels: Iterable[tuple[Places, Kernel]], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._pieces = []
        for (row, column), kernel in kernels:
            axes = _axis(kernel, row, 0), _axis(kernel, column, 1)
            if axes[0].phases and axes[1].phases:
                self._pieces.append(_Piece(kernel, axes, device, dtype))

    def fill(self, target: Tensor, x: Tensor, rows: Reach, columns: Reach) -> None:
        """target `[..., rows, columns, outputs]` = the fine pixels asked for.

        Its leading axes together are the samples of x.
        """
        # The first piece, the map itself, reaches every fine pixel.
        for index, piece in enumerate(self._pieces):
            piece.write(target, x, rows, columns, add=index > 0)

    def add_to(self, target: Tensor, x: Tensor, rows: Reach, columns: Reach) -> None:
        """target += the fine pixels asked for, as `fill`."""
        for piece in self._pieces:
            piece.write(target, x, rows, columns, add=True)
