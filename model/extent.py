"""Where a tile lies in its scene, and which pixels every step of the network needs for it.

All positions count from the first pixel of the window that is read, at the resolution at hand.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from model.config import SSPSRConfig
from model.degradation import enlargement
from model.receptive_field import body_reach, halo
from model.upsampling import Reach

_CUBIC = 3  # LR pixels beside its own that a pixel beside the core sees through the bicubic kernel
_SKIP = 2  # HR pixels beside its own that the skip path's two convolutions see


@dataclass(frozen=True)
class Extent:
    """One axis of a tile inside the array that holds it and its halo, in LR pixels.

    Attributes:
        start, stop: the core, end exclusive.
        at_start, at_end: the array's first / last pixel is the scene's.
    """

    start: int
    stop: int
    at_start: bool = False
    at_end: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis of the way from the LR pixels of a window to the HR pixels of its core.

    Attributes:
        offset: the window's first pixel in the array that it is cut from.
        size: LR pixels of the window.
        core: first and last (exclusive) LR pixel of the core.
        starts, ends: the window's border is the scene's.
        between: first and last (exclusive) pixel that the trunk reads, at its resolution.
        padded_below: bodies with fewer pixels are padded in the middle of the scene too.
    """

    config: SSPSRConfig
    offset: int
    size: int
    core: tuple[int, int]
    starts: bool
    ends: bool
    between: tuple[int, int]
    padded_below: int

    @classmethod
    def of(cls, extent: Extent, size: int, config: SSPSRConfig, *, padded_below: int = 0) -> Axis:
        """Plan one axis.

        Args:
            extent: of the tile in an array of `size` LR pixels.
            size: of the array.
            config: of the network.
            padded_below: pad bodies with fewer pixels in the middle of the scene too.

        Raises:
            ValueError: no core inside the array, or a halo smaller than the network's.
        """
        need = halo(config)
        if not 0 <= extent.start < extent.stop <= size:
            raise ValueError(
                f"the core {extent.start}..{extent.stop} is not a part of {size} pixels"
            )
        for at_border, there in (
            (extent.at_start, extent.start),
            (extent.at_end, size - extent.stop),
        ):
            if not at_border and there < need:
                raise ValueError(
                    f"a halo of {there} LR pixels is too small: this network needs {need} "
                    "wherever the scene goes on"
                )
        begin, end = max(0, extent.start - need), min(size, extent.stop + need)
        starts, ends = extent.at_start and begin == 0, extent.at_end and end == size
        factor, margin = config.scale // 2, body_reach(config) + 2  # 2: upsampling and final
        first, last = (
            factor * (extent.start - begin) - margin,
            factor * (extent.stop - begin) + margin,
        )
        return cls(
            config=config,
            offset=begin,
            size=end - begin,
            core=(extent.start - begin, extent.stop - begin),
            starts=starts,
            ends=ends,
            between=(
                max(0, first) if starts else first,
                min(factor * (end - begin), last) if ends else last,
            ),
            padded_below=padded_below,
        )

    @property
    def window(self) -> slice:
        """What is read of the array."""
        return slice(self.offset, self.offset + self.size)

    @property
    def padding(self) -> int:
        """Of 3x3 convolutions: 0 consumes the halo; 1 pads with zeros, as published.

        With the scene's border on one side only, or few pixels, other sides are padded too:
        what that spoils is cut off behind the body.
        """
        return int(self.starts or self.ends or self.size < self.padded_below)

    @property
    def trunk_starts(self) -> bool:
        return self.starts and self.between[0] == 0

    @property
    def trunk_ends(self) -> bool:
        return self.ends and self.between[1] == self.config.scale // 2 * self.size

    @property
    def trunk_padding(self) -> int:
        few = self.between[1] - self.between[0] < self.padded_below
        return int(self.trunk_starts or self.trunk_ends or few)

    @property
    def output(self) -> tuple[int, int]:
        """First and last (exclusive) HR pixel of the core."""
        scale = self.config.scale
        return scale * self.core[0], scale * self.core[1]

    def branch_tail(self) -> Reach:
        """From a branch's body to the pixels between branches and trunk."""
        consumed = 0 if self.padding else body_reach(self.config)
        return Reach(consumed, self.size - 2 * consumed, *self.between, self.starts, self.ends)

    def trunk_tail(self) -> Reach:
        """From the trunk's body to the core's HR pixels."""
        consumed = 0 if self.trunk_padding else body_reach(self.config)
        first, last = self.between
        return Reach(
            first + consumed,
            last - first - 2 * consumed,
            *self.output,
            self.trunk_starts,
            self.trunk_ends,
        )

    def skip_input(self) -> tuple[int, int]:
        """First and last (exclusive) HR pixel of the bicubic image that the skip path reads."""
        first, last = self.output[0] - _SKIP, self.output[1] + _SKIP
        return (
            max(0, first) if self.starts else first,
            min(self.config.scale * self.size, last) if self.ends else last,
        )

    def skip_tail(self) -> Reach:
        """From the bicubic image to the core's HR pixels."""
        first, last = self.skip_input()
        return Reach(
            first,
            last - first,
            *self.output,
            self.starts and first == 0,
            self.ends and last == self.config.scale * self.size,
        )

    def cubic_input(self) -> tuple[int, int]:
        """First and last (exclusive) LR pixel from which the bicubic image is made."""
        return max(0, self.core[0] - _CUBIC), min(self.size, self.core[1] + _CUBIC)

    def enlargement(self) -> Tensor:
        """The matrix from `cubic_input` to `skip_input`."""
        first, last = self.cubic_input()
        scale = self.config.scale
        begin, end = (pixel - scale * first for pixel in self.skip_input())
        return enlargement(last - first, scale)[begin:end]

    def halves(self) -> tuple[Axis, Axis]:
        """Two axes, inside this one's window, whose cores are the halves of this core."""
        start, stop = self.core
        middle = (start + stop) // 2
        first, second = (
            Axis.of(
                Extent(*core, self.starts, self.ends),
                self.size,
                self.config,
                padded_below=self.padded_below,
            )
            for core in ((start, middle), (middle, stop))
        )
        return first, second
