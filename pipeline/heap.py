"""What a worker's process keeps of memory that it does not use at the moment.

By default the GNU allocator returns every large block to the system, and each tile's arrays then
cost a page fault per 4 KiB, a third of the processor time spent beside the network. Told to keep
everything it grows for as long as tiles in different states happen to lie in new ways. So all is
kept until the process has clearly grown; then what is free is returned once. On other systems the
allocator stays as it is.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

# M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h: one heap, which keeps its size.
_KEEP_FREED = ((-8, 1), (-3, 1 << 30), (-1, (1 << 31) - 1))
_TILES = 32  # after which a process has its usual size, and at least between two returns
_GROWN = 1.03  # of the usual size
_PAGES = Path("/proc/self/statm")


class Heap:
    """This process's, told to keep what is freed."""

    def __init__(self) -> None:
        self._trim: Any = None
        self._tiles = self._usual = 0
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            for option, value in _KEEP_FREED:
                library.mallopt(option, value)
            self._trim = library.malloc_trim

    def after_tile(self) -> None:
        """Give back what is free if the process has grown beyond the size of its first tiles."""
        self._tiles += 1
        if self._tiles <= _TILES:
            self._usual = max(self._usual, resident_bytes())
        elif self._tiles % _TILES == 0 and resident_bytes() > _GROWN * self._usual:
            self._return()

    def give_back(self) -> None:
        """Give back what is free; the tiles that follow may be of another size."""
        self._tiles = self._usual = 0
        self._return()

    def _return(self) -> None:
        if self._trim is not None:
            self._trim(0)


def resident_bytes() -> int:
    """Of this process; 0 where the system does not say."""
    try:
        return int(_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
