"""Finding the processes that a test is about."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress

import psutil


def running(words: str, below: int | None = None) -> Iterator[psutil.Process]:
    """Those whose command holds these words, below a process; below this one by default.

    Ray names its workers after what they run: `ray::TileActor`.
    """
    for process in psutil.Process(below or os.getpid()).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if words in " ".join(process.cmdline()):
                yield process
