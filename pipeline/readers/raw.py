"""Windows of an uncompressed array inside a file: only the byte ranges that hold them are read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import as_strided

from pipeline.errors import SceneError
from pipeline.storage import is_local, open_filesystem, redact

_LOCAL_GAP = 4096  # a page: the disk reads that much anyway
_REMOTE_GAP = 256 * 2**10  # about what a link moves during one request's latency
_BATCH_BYTES = 32 * 2**20


class RawCube:
    """A C-ordered array in a file, read as (band, y, x).

    `file_shape` is the array's shape in the file, `axes` the place of band, y and x in it.
    Explicit reads instead of a memory map: a file cut short while mapped would kill the process.
    """

    def __init__(
        self,
        uri: str,
        offset: int,
        dtype: np.dtype[Any],
        file_shape: tuple[int, int, int],
        axes: tuple[int, int, int],
    ) -> None:
        self.uri, self.offset, self.file_dtype = uri, offset, dtype
        self.file_shape, self.axes = file_shape, axes
        self.dtype = dtype.newbyteorder("=")
        self.shape = (file_shape[axes[0]], file_shape[axes[1]], file_shape[axes[2]])

    def read(self, band: slice, y: slice, x: slice) -> npt.NDArray[Any]:
        window = [slice(0, 0)] * 3
        for axis, part in zip(self.axes, (band, y, x), strict=True):
            window[axis] = part
        starts = [part.start for part in window]
        counts = [part.stop - part.start for part in window]
        filesystem, path = open_filesystem(self.uri)
        local = is_local(filesystem)
        outer, inner = self._split(counts, _LOCAL_GAP if local else _REMOTE_GAP)
        out = np.empty(counts, self.dtype)
        if out.size:
            positions = self._positions(starts, counts, outer)
            length = self._extent(inner)
            fetch = _read_local if local else _read_remote
            flat = out.reshape(-1, *inner)
            for index, data in enumerate(fetch(filesystem, path, positions, length)):
                if len(data) < length:
                    raise SceneError(
                        "truncated", f"{redact(self.uri)}: the file ends early: copy it again"
                    )
                flat[index] = self._view(data, inner)
        return out.transpose(self.axes)

    def _strides(self) -> tuple[int, int, int]:
        item = self.file_dtype.itemsize
        _, n1, n2 = self.file_shape
        return n1 * n2 * item, n2 * item, item

    def _split(self, counts: list[int], gap: int) -> tuple[int, tuple[int, ...]]:
        """How many leading axes are looped over, and the shape that one read covers.

        Neighbouring runs are joined while what lies between them is shorter than `gap`.
        """
        s0, s1, item = self._strides()
        if s1 - counts[2] * item > gap:
            return 2, (counts[2],)
        joined = (counts[0] - 1) * s0 + counts[1] * s1
        if s0 - counts[1] * s1 > gap or joined > _BATCH_BYTES:
            return 1, (counts[1], counts[2])
        return 0, (counts[0], counts[1], counts[2])

    def _positions(self, starts: list[int], counts: list[int], outer: int) -> npt.NDArray[np.int64]:
        s0, s1, item = self._strides()
        first = self.offset + starts[0] * s0 + starts[1] * s1 + starts[2] * item
        at = np.array([first], np.int64)
        for count, stride in zip(counts[:outer], (s0, s1), strict=False):
            at = (at[:, None] + np.arange(count) * stride).reshape(-1)
        return at

    def _extent(self, inner: tuple[int, ...]) -> int:
        strides = self._strides()[3 - len(inner) :]
        reach = sum((count - 1) * step for count, step in zip(inner, strides, strict=True))
        return reach + self.file_dtype.itemsize

    def _view(self, data: bytes, inner: tuple[int, ...]) -> npt.NDArray[Any]:
        strides = self._strides()[3 - len(inner) :]
        return as_strided(np.frombuffer(data, self.file_dtype), inner, strides, writeable=False)


def _read_local(_: Any, path: str, at: npt.NDArray[np.int64], length: int) -> Iterator[bytes]:
    handle = os.open(path, os.O_RDONLY)
    try:
        for position in at.tolist():
            yield os.pread(handle, length, position)
    finally:
        os.close(handle)


def _read_remote(fs: Any, path: str, at: npt.NDArray[np.int64], length: int) -> Iterator[bytes]:
    batch = max(1, _BATCH_BYTES // length)
    for first in range(0, at.size, batch):
        starts = at[first : first + batch].tolist()
        ends = [start + length for start in starts]
        yield from fs.cat_ranges([path] * len(starts), starts, ends, on_error="raise")
