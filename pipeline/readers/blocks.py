"""Remote files as seekable objects that fetch small blocks, for libraries that want a file."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.errors import StoreUnavailable
from pipeline.storage import is_local

_MOST_BLOCKS = 256

_faults = threading.local()


@contextmanager
def _noted() -> Iterator[None]:
    """Note for `store_faults` that the store went away."""
    try:
        yield
    except StoreUnavailable as error:
        _faults.last = error
        raise


def _watched(file: Any) -> Any:
    read = file.read

    def noting(size: int = -1) -> bytes:
        with _noted():
            data: bytes = read(size)
        return data

    file.read = noting
    return file


@contextmanager
def store_faults() -> Iterator[None]:
    """Raise what a store did to the files that a C library reads inside, not what it made of it.

    GDAL asks Python for the bytes, forgets why it got none, and calls the file bad, or goes on.

    Raises:
        StoreUnavailable: a read inside, in this thread, ended so.
    """
    _faults.last = None
    try:
        yield
    finally:
        if _faults.last is not None:
            raise _faults.last


def open_blocks(
    filesystem: Any, path: str, block_size: int = 64 * 2**10, blocks: int = _MOST_BLOCKS
) -> Any:
    """A binary file; a remote one keeps the last `blocks` it read instead of reading ahead."""
    if is_local(filesystem):
        return filesystem.open(path, "rb")
    with _noted():
        file = filesystem.open(
            path,
            "rb",
            block_size=block_size,
            cache_type="blockcache",
            cache_options={"maxblocks": blocks},
        )
    return _watched(file)
