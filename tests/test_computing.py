"""Who computes with how many threads, and what memory a worker's tiles take and leave."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, BrokenBarrierError, Lock
from typing import Any

import pytest
import torch

from pipeline import heap, worker
from pipeline.computing import Computer
from pipeline.footprint import IN_FLIGHT, results_held, tiles_in_flight
from tests.archives import SCALE_FACTOR, counts, planned, write_model
from tests.scenes import write_zarr

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


def test_a_gpu_gets_a_tile_of_each_cpu_beside_its_own() -> None:
    assert [tiles_in_flight(cpus, 0) for cpus in (1, 8)] == [IN_FLIGHT, IN_FLIGHT]
    assert [tiles_in_flight(cpus, 1) for cpus in (1, 2, 8)] == [IN_FLIGHT, IN_FLIGHT, 10]
    assert tiles_in_flight(4.0, 0.5) == 6


def test_one_tile_in_flight_at_least_is_still_as_it_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tiles more than are in flight, the results of which would all be held at a time."""
    write_zarr(tmp_path / "in" / "a.zarr", counts(40, 40), scale_factor=SCALE_FACTOR)
    working, _, _, plan = planned(
        str(tmp_path / "in"), str(tmp_path / "out"), write_model(tmp_path / "net.safetensors")
    )
    [job] = [scene.job for scene in plan.work]
    assert job is not None
    lock, held, most = Lock(), 0, 0

    def counted(work: Callable[..., Any], before: int, after: int) -> Callable[..., Any]:
        def counting(*given: Any, **named: Any) -> Any:
            nonlocal held, most
            with lock:
                held += before
                most = max(most, held)
            if after:
                met.wait(timeout=20)  # nobody writes before as many results as may be are there
            done = work(*given, **named)
            with lock:
                held += after
            return done

        return counting

    met = Barrier(results_held(IN_FLIGHT))
    monkeypatch.setattr(worker, "resolve_tile", counted(worker.resolve_tile, 1, 0))
    monkeypatch.setattr(worker, "write_tile", counted(worker.write_tile, 0, -1))
    working.prepare(job)
    with ThreadPoolExecutor(IN_FLIGHT + 2) as pool:
        records = list(pool.map(lambda tile: working.process(job, tile), job.grid))
    assert len(records) == 9 and held == 0
    assert most == results_held(IN_FLIGHT)


def test_free_memory_goes_back_once_the_process_has_grown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size, returned = 100, []
    monkeypatch.setattr(heap, "resident_bytes", lambda: size)
    monkeypatch.setattr(heap.Heap, "_return", lambda self: returned.append(size))
    kept = heap.Heap()

    def tiles(count: int, of: int) -> list[int]:
        nonlocal size
        size = of
        returned.clear()
        for _ in range(count):
            kept.after_tile()
        return list(returned)

    assert tiles(96, 100) == []
    assert tiles(96, 102) == []
    assert tiles(96, 110) == [110] * 3  # at most once in 32 tiles
    kept.give_back()
    assert tiles(96, 200) == []  # another scene's size is as good


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
