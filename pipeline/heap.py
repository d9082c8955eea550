"""What the GNU allocator keeps of freed memory; elsewhere its default stays.

By default it returns every large block to the system, and each tile's arrays then cost a page fault
per 4 KiB, a third of the processor time spent beside the network. Told to keep everything it grows
for as long as tiles in different states happen to lie in new ways: so what is free is returned all
the same, but seldom.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from itertools import count
from typing import Any

# M_ARENA_MAX, M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h: one heap, which keeps its size.
_KEEP_FREED = ((-8, 1), (-3, 1 << 30), (-1, (1 << 31) - 1))
_TILES = 32  # between two returns, which take some 20 ms each


class Heap:
    """This process's, told to keep what is freed."""

    def __init__(self) -> None:
        self._trim: Any = None
        self._tiles = count(1)
        with suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            for option, value in _KEEP_FREED:
                library.mallopt(option, value)
            self._trim = library.malloc_trim

    def after_tile(self) -> None:
        """Once in a while, give back what is free."""
        if next(self._tiles) % _TILES == 0:
            self.give_back()

    def give_back(self) -> None:
        """What is free goes back to the system."""
        if self._trim is not None:
            self._trim(0)
