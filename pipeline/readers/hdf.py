"""HDF5 files (HDF5 file format 3.0) as windows; nothing outside the file is ever followed."""

from __future__ import annotations

import threading
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from pipeline.readers.blocks import open_blocks
from pipeline.readers.boundary import failure
from pipeline.readers.scene import check_block
from pipeline.storage import is_local, open_filesystem

_REMOTE_BLOCK = 256 * 2**10
_LONGEST_LIST = 100_000
_MOST_INFLATED = 1032  # times its bytes, by the format of deflate (RFC 1951)


class _Dataset:
    """One dataset of a file that opens at first use, one thread at a time; picklable."""

    def __init__(self, uri: str, name: str) -> None:
        self.uri, self.name = uri, name
        self._file: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def window(self, *window: slice) -> npt.NDArray[Any]:
        with self._lock:
            if self._file is None:
                self._file = open_hdf5(self.uri)
            return np.asarray(self._file[self.name][window])


class Hdf5Cube(_Dataset):
    """Windows of a dataset of three axes; `axes` are the places of band, y and x in `shape`."""

    def __init__(
        self,
        uri: str,
        name: str,
        dtype: np.dtype[Any],
        shape: tuple[int, int, int],
        axes: tuple[int, int, int],
    ) -> None:
        super().__init__(uri, name)
        self.axes, self.dtype = axes, dtype.newbyteorder("=")
        self.shape = (shape[axes[0]], shape[axes[1]], shape[axes[2]])

    def read(self, band: slice, y: slice, x: slice) -> npt.NDArray[Any]:
        window = [slice(0, 0)] * 3
        for axis, part in zip(self.axes, (band, y, x), strict=True):
            window[axis] = part
        return self.window(*window).astype(self.dtype, copy=False).transpose(self.axes)


class Hdf5Plane(_Dataset):
    """Windows of a dataset (y, x) as float64; its fill value becomes NaN."""

    dtype = np.dtype(np.float64)

    def __init__(self, uri: str, name: str, dataset: Any) -> None:
        super().__init__(uri, name)
        fill = attribute(dataset, "_FillValue")
        self.shape, self.fill = dataset.shape, float("nan") if fill is None else float(fill)

    def read(self, y: slice, x: slice) -> npt.NDArray[np.float64]:
        values = self.window(y, x).astype(np.float64)
        values[values == self.fill] = np.nan
        return values


def open_hdf5(uri: str) -> Any:
    """The h5py file of `uri`, without locks (archives are often read-only)."""
    filesystem, path = open_filesystem(uri)
    try:
        if is_local(filesystem):
            return h5py.File(path, "r", locking=False)
        return h5py.File(open_blocks(filesystem, path, _REMOTE_BLOCK), "r")
    except OSError as error:
        if "truncated file" in str(error):
            raise failure("truncated", uri, "the file is cut: copy it again", error) from error
        raise


def check_storage(uri: str, dataset: Any) -> None:
    """Raise `SceneError` if a dataset claims more than its stored bytes can be inflated to."""
    stored, claimed = dataset.id.get_storage_size(), dataset.size * dataset.dtype.itemsize
    if claimed > stored * _MOST_INFLATED:
        reason = f"{dataset.name.rpartition('/')[2]} claims {claimed} bytes and holds {stored}"
        raise failure("bad-header", uri, f"{reason}: fetch the product again")
    check_block(uri, dataset.chunks or (), dataset.dtype)


def inside(file: Any, path: str) -> Any:
    """The group or dataset at a path of hard links only, None where there is none."""
    item = file
    for name in path.split("/"):
        if not isinstance(item, h5py.Group):
            return None
        if not isinstance(item.get(name, getlink=True), h5py.HardLink):
            return None
        item = item[name]
    return item


def is_plain(file: Any, path: str) -> bool:
    """A numeric dataset inside this file: no link, virtual or external storage leads elsewhere."""
    item = inside(file, path)
    plain = isinstance(item, h5py.Dataset) and not item.is_virtual and not item.external
    return bool(plain and item.dtype.kind in "iuf")


def texts(file: Any, path: str) -> list[str]:
    """A short one-dimensional dataset of texts; empty where there is none."""
    item = inside(file, path)
    if not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
        return []
    if item.ndim != 1 or item.size > _LONGEST_LIST or item.dtype.kind not in "OS":
        return []
    values = (value for value in item[:])
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]


def vector(file: Any, path: str) -> npt.NDArray[Any] | None:
    """A short one-dimensional dataset as an array, or None where there is none."""
    if not is_plain(file, path) or file[path].ndim != 1 or file[path].size > _LONGEST_LIST:
        return None
    return np.asarray(file[path][:])


def attribute(item: Any, name: str) -> Any:
    """An attribute of a group or dataset: text decoded, one number out of its array; or None."""
    value = item.attrs.get(name)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
