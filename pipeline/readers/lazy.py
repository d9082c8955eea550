"""Arrays that are read window by window: lazy for xarray, and windows of them without dask.

Dask reads a window block by block, one after the other, and takes as long to plan that as a local
store to decode it. What was done to no array since it was made is therefore asked directly: all of
the window at once, whose pieces a remote store is then asked for side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol
from weakref import WeakValueDictionary

import dask.array as da
import numpy as np
import numpy.typing as npt

_LARGEST = 96 << 20  # bytes of a window that is read at once

_sources: WeakValueDictionary[str, Windows] = WeakValueDictionary()


class Windows(Protocol):
    """A source of windows, read by several threads at once; picklable.

    Each window is an array of its own, which the reader may change.
    """

    ndim: int

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __getitem__(self, key: tuple[Any, ...], /) -> npt.NDArray[Any]: ...


def lazy_array(source: Windows, chunks: Sequence[int]) -> da.Array:
    """A dask array of the source in chunks of this shape."""
    lazy: da.Array = da.from_array(  # type: ignore[no-untyped-call]
        source,
        chunks=tuple(chunks),
        name=False,  # one of its own
        asarray=True,
        meta=np.empty((0,) * source.ndim, source.dtype),
    )
    _sources[lazy.name] = source
    return lazy


def read(lazy: da.Array, *window: slice) -> npt.NDArray[Any]:
    """A window of the last axes, all of those before.

    Args:
        lazy: any dask array; one of `lazy_array` itself is read without dask.
        window: slices with both ends, step 1.
    """
    source = _sources.get(lazy.name)
    before = lazy.shape[: lazy.ndim - len(window)]
    whole = (*(slice(0, size) for size in before), *window)
    size = math.prod(part.stop - part.start for part in whole) * lazy.dtype.itemsize
    if source is None or size > _LARGEST:
        return np.asarray(lazy[whole].compute(scheduler="synchronous"))
    return np.asarray(source[whole])


def picked(
    key: Sequence[Any], shape: Sequence[int], window: Callable[..., npt.NDArray[Any]]
) -> npt.NDArray[Any]:
    """What dask asks for by any index along each axis, of the plain window that covers it."""
    parts = [_split(index, size) for index, size in zip(key, shape, strict=True)]
    values = window(*(covering for covering, _ in parts))
    for axis in reversed(range(len(parts))):  # a single index takes its axis away
        if (picks := parts[axis][1]) is not None:
            values = np.take(values, picks, axis=axis)
    return values


def _split(index: Any, size: int) -> tuple[slice, Any]:
    """A plain covering slice, and what then picks `index` out of it (None: all of it)."""
    if isinstance(index, slice):
        start, stop, step = index.indices(size)
        if step == 1:
            return slice(start, max(start, stop)), None
        index = np.arange(start, stop, step)
    picks = np.asarray(index)
    picks = np.where(picks < 0, picks + size, picks)
    if picks.size == 0:
        return slice(0, 0), picks
    low, high = int(picks.min()), int(picks.max()) + 1
    return slice(low, high), picks - low
