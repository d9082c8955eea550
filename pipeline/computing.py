"""Who computes in a worker, and with how many threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import ParamSpec, TypeVar

import torch

from pipeline.footprint import AT_ONCE

P = ParamSpec("P")
T = TypeVar("T")


class Computer:
    """Runs the network's part of a worker's tiles: one at a time on a GPU, two on a CPU.

    On a CPU reading and writing other tiles takes time from one of the network's threads, and the
    others would wait for it at the end of every convolution. With few threads for each of two tiles
    there is less to wait for. How many threads compute a tile changes nothing in its values.

    Args:
        threads: of the network.
        device: where it is.
    """

    def __init__(self, threads: int, device: torch.device) -> None:
        self._threads = threads
        self._at_once = 1 if device.type == "cuda" else min(AT_ONCE, threads)
        # The same threads always: each new one would start its own OpenMP team.
        self._pool = ThreadPoolExecutor(self._at_once, "compute")
        self._lock = Lock()
        self._ahead = 0

    @contextmanager
    def tile(self) -> Iterator[None]:
        """Around reading and computing a tile, which is counted meanwhile."""
        with self._lock:
            self._ahead += 1
        try:
            yield
        finally:
            with self._lock:
                self._ahead -= 1

    def compute(
        self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[T, float, float]:
        """The result for one tile, inside `tile`; beside that of another if there is one.

        Returns:
            The result, the seconds until a thread was free for it, and those that it took.
        """
        asked = time.perf_counter()

        def timed() -> tuple[T, float, float]:
            started = time.perf_counter()
            torch.set_num_threads(self._threads // min(self._at_once, self._ahead))
            result = work(*args, **kwargs)
            return result, started - asked, time.perf_counter() - started

        return self._pool.submit(timed).result()

    def compute_alone(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The result of what is no tile's, with all threads."""

        def with_all() -> T:
            torch.set_num_threads(self._threads)
            return work(*args, **kwargs)

        return self._pool.submit(with_all).result()
