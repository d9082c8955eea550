"""Decoded chunks of arrays, kept for the windows beside the one that they were read for.

A tile's halo makes its window reach into the chunks of its neighbours, nine of them where chunks
are as large as tiles: without memory each would be fetched and decoded up to nine times.
"""

from __future__ import annotations

import math
import mmap
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import count, product
from typing import Any

import numpy as np
import numpy.typing as npt

KEPT_BYTES = 32 << 20  # of a process

Place = tuple[int, ...]
Array = npt.NDArray[Any]
Box = tuple[range, ...]

_kept: OrderedDict[tuple[int, Place], Array] = OrderedDict()
_lock = threading.Lock()
_numbers = count()


class DecodedChunks:
    """Windows of one array, whose chunks are remembered among the last of the process.

    Several threads may ask at once; what one of them is reading the others wait for.

    Args:
        read: of any window, in the array's own axes.
        shape, chunk: of the array and of its chunks.
        itemsize: bytes of a value.
    """

    def __init__(
        self,
        read: Callable[[tuple[slice, ...]], Array],
        shape: Sequence[int],
        chunk: Sequence[int],
        itemsize: int,
    ) -> None:
        self._read, self._shape, self._chunk = read, tuple(shape), tuple(chunk)
        self._most = KEPT_BYTES // _in_pages(math.prod(chunk) * itemsize)
        self._number = next(_numbers)
        self._coming: dict[Place, threading.Event] = {}

    def window(self, window: Sequence[slice]) -> Array:
        """The values at plain slices with both ends, as an array of its own.

        A window whose chunks are more than are kept is read as if there were no memory.
        """
        spans = [
            range(part.start // side, -(-part.stop // side))
            for part, side in zip(window, self._chunk, strict=True)
        ]
        if not 0 < math.prod(map(len, spans)) <= self._most:
            return self._read(tuple(window))
        chunks = self._chunks(list(product(*spans)))
        dtype = next(iter(chunks.values())).dtype
        result = np.empty([part.stop - part.start for part in window], dtype)
        for place, values in chunks.items():
            there, here = [], []
            for at, side, part in zip(place, self._chunk, window, strict=True):
                start, stop = max(part.start, at * side), min(part.stop, (at + 1) * side)
                there.append(slice(start - part.start, stop - part.start))
                here.append(slice(start - at * side, stop - at * side))
            result[tuple(there)] = values[tuple(here)]
        return result

    def _chunks(self, places: Sequence[Place]) -> dict[Place, Array]:
        found: dict[Place, Array] = {}
        while missing := [place for place in places if place not in found]:
            with _lock:
                for place in missing:
                    if (key := (self._number, place)) in _kept:
                        _kept.move_to_end(key)
                        found[place] = _kept[key]
                missing = [place for place in missing if place not in found]
                ours = [place for place in missing if place not in self._coming]
                others = [self._coming[place] for place in missing if place in self._coming]
                self._coming |= {place: threading.Event() for place in ours}
            if ours:
                found |= self._fetch(ours)
            elif others:  # and look again: there it may have failed
                others[0].wait()
        return found

    def _fetch(self, places: Sequence[Place]) -> dict[Place, Array]:
        """Read chunks that nobody else reads, and keep them."""
        fetched: dict[Place, Array] = {}
        try:
            for box in _boxes(places):
                fetched |= self._parts(box)
        finally:
            with _lock:
                _kept.update({(self._number, place): part for place, part in fetched.items()})
                size = sum(_in_pages(part.nbytes) for part in _kept.values())
                while size > KEPT_BYTES:
                    size -= _in_pages(_kept.popitem(last=False)[1].nbytes)
                for place in places:
                    self._coming.pop(place).set()
        return fetched

    def _parts(self, box: Box) -> dict[Place, Array]:
        """The chunks of a box, read in one piece."""
        corner = [span.start * side for span, side in zip(box, self._chunk, strict=True)]
        ends = [
            min(span.stop * side, size)
            for span, side, size in zip(box, self._chunk, self._shape, strict=True)
        ]
        values = self._read(tuple(map(slice, corner, ends)))
        parts = {}
        for place in product(*box):
            firsts = [
                at * side - first
                for at, side, first in zip(place, self._chunk, corner, strict=True)
            ]
            part = tuple(
                slice(first, first + side) for first, side in zip(firsts, self._chunk, strict=True)
            )
            parts[place] = _lasting(values[part])
        return parts


def _in_pages(size: int) -> int:
    """What so many bytes take in pages of their own, however few they are."""
    return max(1, -(-size // mmap.PAGESIZE)) * mmap.PAGESIZE


def _lasting(values: Array) -> Array:
    """A copy in pages of its own: among the memory of tiles, which comes and goes in large blocks,
    it would hold up what is free."""
    pages = mmap.mmap(-1, max(1, values.nbytes))
    copy = np.frombuffer(pages, values.dtype, values.size).reshape(values.shape)
    copy[...] = values
    return copy


def _boxes(places: Sequence[Place]) -> list[Box]:
    """Some places as few boxes that hold no other place."""
    boxes: list[Box] = [tuple(range(at, at + 1) for at in place) for place in places]
    for axis in reversed(range(len(places[0]))):
        rows: dict[tuple[range, ...], list[range]] = {}
        for box in boxes:
            rows.setdefault((*box[:axis], *box[axis + 1 :]), []).append(box[axis])
        boxes = [
            (*beside[:axis], span, *beside[axis:])
            for beside, spans in rows.items()
            for span in _joined(spans)
        ]
    return boxes


def _joined(spans: Sequence[range]) -> list[range]:
    """Spans that do not overlap, those that meet as one."""
    joined: list[range] = []
    for span in sorted(spans, key=lambda span: span.start):
        if joined and joined[-1].stop == span.start:
            joined[-1] = range(joined[-1].start, span.stop)
        else:
            joined.append(span)
    return joined
