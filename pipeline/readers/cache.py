"""Whole arrays of compressed files: loaded at first use, kept per process in bounded memory.

A compressed MATLAB v5 or npz member has no random access, so its first window costs the whole
array; the windows after it cost nothing while the array stays here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.errors import SceneError
from pipeline.readers.boundary import boundary
from pipeline.storage import redact

CACHE_BYTES = 2**30
LARGEST_MEMBER = 8 * 2**30

Load = Callable[[str, str], npt.NDArray[Any]]

_arrays: OrderedDict[tuple[str, str, str], npt.NDArray[Any]] = OrderedDict()
_lock = threading.Lock()


class MemberCube:
    """One array of a file without random access, as (band, y, x).

    `load(uri, member)` returns it in the file's own axes; `shape_as` reshapes (in C order) and
    `axes` then names the places of band, y and x. `mask` is a boolean member of the same shape:
    True becomes NaN, so that `dtype` is float32 with it.
    """

    def __init__(
        self,
        uri: str,
        version: str,
        member: str,
        load: Load,
        dtype: np.dtype[Any],
        shape_as: tuple[int, int, int],
        axes: tuple[int, int, int],
        mask: str | None = None,
    ) -> None:
        if np.prod(shape_as, dtype=float) * dtype.itemsize > LARGEST_MEMBER:
            raise SceneError(
                "unsupported",
                f"{redact(uri)}: more than {LARGEST_MEMBER // 2**30} GiB without random access: "
                "convert it to Zarr",
            )
        self.uri, self.version, self.member, self.load = uri, version, member, load
        self.shape_as, self.axes, self.mask = shape_as, axes, mask
        self.dtype = np.dtype(np.float32) if mask else dtype.newbyteorder("=")
        self.shape = (shape_as[axes[0]], shape_as[axes[1]], shape_as[axes[2]])

    def read(self, band: slice, y: slice, x: slice) -> npt.NDArray[Any]:
        window = self._whole(self.member)[band, y, x]
        if self.mask is None:
            return np.array(window, self.dtype)
        masked = self._whole(self.mask)[band, y, x]
        return np.where(masked, np.float32(np.nan), window.astype(np.float32))

    def _whole(self, member: str) -> npt.NDArray[Any]:
        key = (self.uri, self.version, member)
        with _lock:  # one load at a time: the memory of two would not be bounded
            array = _arrays.get(key)
            if array is None:
                with boundary(self.uri, f"cannot load {member!r}"):
                    array = self.load(self.uri, member)
                _keep(key, array)
            _arrays.move_to_end(key)
        if array.dtype.kind == "c":
            raise SceneError("unsupported", f"{redact(self.uri)}: {member!r} is complex")
        if array.size != np.prod(self.shape_as):
            raise SceneError("source-changed", f"{redact(self.uri)}: {member!r} changed its shape")
        return array.reshape(self.shape_as).transpose(self.axes)


def _keep(key: tuple[str, str, str], array: npt.NDArray[Any]) -> None:
    """Add an array and drop the least recently used ones beyond the budget, never this one."""
    _arrays[key] = array
    while len(_arrays) > 1 and sum(kept.nbytes for kept in _arrays.values()) > CACHE_BYTES:
        _arrays.popitem(last=False)
