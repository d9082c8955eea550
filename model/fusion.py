"""Convolutions with nothing between them but a pixel shuffle, written as one linear map.

Between the upsampling convolution, the pixel shuffle and the next convolution SSPSR has no
non-linearity (Jiang et al. 2020, section III), so at inference they are one convolution: every
fine pixel is a weighted sum over a few coarse ones, with weights that depend only on its phase, its
place inside the coarse pixel. At the scene's border the published network pads every convolution
with zeros, which drops the terms that pass through a pixel outside; `Chain.kernels` holds what
that changes too, so that the border comes out as published.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, NamedTuple

from torch import Tensor, nn, tensordot, unflatten

Place = Literal["start", "middle", "end"]  # of a pixel along one axis of the scene
Places = tuple[Place, Place]  # along rows and along columns


class Stage(NamedTuple):
    """A 3x3 convolution and the pixel shuffle behind it.

    Attributes:
        weight: `[outputs, inputs, 3, 3]` float64.
        bias: `[outputs]` float64.
        factor: of the shuffle; 1: none.
    """

    weight: Tensor
    bias: Tensor
    factor: int

    @classmethod
    def of(cls, convolution: nn.Conv2d, factor: int = 1, *, biased: bool = True) -> Stage:
        assert convolution.bias is not None
        weight, bias = (p.detach().double().cpu() for p in (convolution.weight, convolution.bias))
        return cls(weight, bias * biased, factor)


@dataclass(frozen=True)
class Kernel:
    """How the fine pixels inside one coarse pixel depend on the coarse pixels around it.

    Attributes:
        weight: `[factor, factor, outputs, inputs, 2*reach+1, 2*reach+1]` float64; the first two
            axes are the fine pixel's row and column phase.
        bias: `[factor, factor, outputs]` float64.
        spans: per phase, along either axis, the first and the last coarse pixel that counts,
            relative to the fine pixel's own.
    """

    weight: Tensor
    bias: Tensor
    spans: tuple[tuple[int, int], ...]

    @property
    def factor(self) -> int:
        return self.weight.shape[0]

    @property
    def reach(self) -> int:
        return self.weight.shape[-1] // 2


class Chain:
    """3x3 convolutions and the pixel shuffles between them, as one linear map.

    Args:
        stages: in the order in which they run; nothing is shuffled behind the last.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        assert stages[-1].factor == 1, "a chain ends with a plain convolution"
        self._stages = tuple(stages)

    def kernels(self) -> Iterator[tuple[Places, Kernel]]:
        """By place (row, column) in the scene: the map, and what a border adds to it.

        The map counts everywhere. What an edge adds (one place is `middle`) counts along all of
        its outermost coarse pixels, those in the corners too; what a corner adds is what is still
        missing there once both edges were added. The map comes first; each is large, so one at a
        time.
        """
        order: list[Place] = ["middle", "start", "end"]
        for row, column in product(order, repeat=2):
            yield (row, column), self._compose(0, row, column)

    def _compose(self, index: int, row: Place, column: Place) -> Kernel:
        """The stages from `index` on: the map itself, or what a border adds to it."""
        weight, bias, factor = self._stages[index]
        if index == len(self._stages) - 1:
            inside = row == column == "middle"  # its own zero padding is that of the chain
            return Kernel(weight[None, None] * inside, bias[None, None] * inside, ((-1, 1),))
        # Channel order of the pixel shuffle: feature, row phase, column phase.
        weight = unflatten(weight, 0, (-1, factor, factor)).permute(1, 2, 0, 3, 4, 5)
        bias = unflatten(bias, 0, (-1, factor, factor)).permute(1, 2, 0)
        later = {
            places: self._compose(index + 1, *places)
            for places in product({"middle", row}, {"middle", column})
        }
        onward = later["middle", "middle"]
        spans = _spans(onward, factor)
        reach = max(abs(end) for span in spans for end in span)
        phases, taps = factor * onward.factor, 2 * reach + 1
        outputs, inputs = onward.weight.shape[2], weight.shape[3]
        total = weight.new_zeros(phases, phases, outputs, inputs, taps, taps)
        offset = bias.new_zeros(phases, phases, outputs)
        steps = (list(_steps(place, factor, onward.reach)) for place in (row, column))
        for down, across in product(*steps):
            kernel = later[down.later, across.later]
            block = tuple(
                slice(step.between * onward.factor, (step.between + 1) * onward.factor)
                for step in (down, across)
            )
            terms = down.sign * across.sign * kernel.weight[..., down.tap, across.tap]
            phase = (down.passed % factor, across.passed % factor)
            top, left = (reach + step.passed // factor - 1 for step in (down, across))
            taps_here = slice(top, top + 3), slice(left, left + 3)
            total[*block, :, :, *taps_here] += tensordot(terms, weight[phase], dims=1)
            offset[block] += terms @ bias[phase]
            if (down.tap, across.tap) == (onward.reach, onward.reach):
                offset[block] += kernel.bias
        return Kernel(total, offset, spans)


class _Step(NamedTuple):
    """One way, along one axis, from a fine pixel through a shuffled pixel to the stage's input."""

    between: int  # phase, inside its coarse pixel, of the shuffled pixel that the fine one lies in
    tap: int  # index into the later kernel
    passed: int  # the shuffled pixel passed through, from the first one of the coarse pixel
    sign: int
    later: Place  # which later kernel counts


def _steps(place: Place, factor: int, reach: int) -> Iterator[_Step]:
    """All ways (`middle`), or those that a border changes: lost here, or changed further on."""
    edge = {"start": 0, "middle": None, "end": factor - 1}[place]
    for between, tap in product(range(factor), range(2 * reach + 1)):
        passed = between + tap - reach
        if place == "middle":
            yield _Step(between, tap, passed, 1, "middle")
        elif passed < 0 if place == "start" else passed >= factor:
            yield _Step(between, tap, passed, -1, "middle")
        elif between == edge:
            yield _Step(between, tap, passed, 1, place)


def _spans(later: Kernel, factor: int) -> tuple[tuple[int, int], ...]:
    """The spans of a later kernel, seen through a shuffle and a 3x3 convolution before it."""
    return tuple(
        ((between + first) // factor - 1, (between + last) // factor + 1)
        for between in range(factor)
        for first, last in later.spans
    )
