"""Who computes with how many threads, and what a worker's process keeps of freed memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, BrokenBarrierError

import pytest
import torch

from pipeline.computing import Computer

CPU = torch.device("cpu")


def beside_each_other(computer: Computer, tiles: int) -> list[int]:
    """Threads of tiles that wait until all of them are computed at the same time."""
    met, begun = Barrier(tiles), Barrier(tiles)

    def work() -> int:
        met.wait(timeout=2)
        return torch.get_num_threads()

    def tile() -> int:
        with computer.tile():
            begun.wait(timeout=10)
            return computer.compute(work)[0]

    with ThreadPoolExecutor(tiles) as pool:
        return [each.result() for each in [pool.submit(tile) for _ in range(tiles)]]


def test_two_tiles_share_the_threads_and_one_has_them_all() -> None:
    computer = Computer(4, CPU)
    assert beside_each_other(computer, 2) == [2, 2]
    with computer.tile():
        threads, waited, took = computer.compute(torch.get_num_threads)
    assert threads == 4 and waited >= 0 and took >= 0
    assert computer.compute_alone(torch.get_num_threads) == 4


@pytest.mark.parametrize(
    "computer", [Computer(1, CPU), Computer(8, torch.device("cuda"))], ids=["1 thread", "GPU"]
)
def test_elsewhere_one_tile_is_computed_at_a_time(computer: Computer) -> None:
    with pytest.raises(BrokenBarrierError):
        beside_each_other(computer, 2)


def test_a_tile_that_fails_is_no_longer_counted() -> None:
    computer = Computer(2, CPU)

    def fail() -> None:
        raise RuntimeError("no")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"), computer.tile():
            computer.compute(fail)
    with computer.tile():
        assert computer.compute(torch.get_num_threads)[0] == 2


def test_free_memory_is_kept_and_given_back() -> None:
    code = """
        from pipeline.heap import Heap

        def resident():
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) >> 10

        heap = Heap()
        before = resident()
        blocks = [bytearray(4 << 20) for _ in range(50)]
        last = bytearray(1000)  # what lies behind the blocks
        blocks.clear()
        kept = resident() - before
        heap.give_back()
        print(kept, resident() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    kept, left = map(int, done.stdout.split())
    assert kept > 150 and left < 50  # MiB, of 200
