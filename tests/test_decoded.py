"""Decoded chunks: every window right, every chunk read once while there is room, by one thread."""

from __future__ import annotations

import mmap
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.readers import decoded
from pipeline.readers.decoded import DecodedChunks

SHAPE, CHUNK = (3, 70, 90), (3, 16, 20)
CONTENT = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE)
BYTES = mmap.PAGESIZE  # of a chunk, which is a little smaller


@pytest.fixture(autouse=True)
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For twelve chunks, all of it free."""
    monkeypatch.setattr(decoded, "KEPT_BYTES", 12 * BYTES)
    decoded._kept.clear()
    yield
    decoded._kept.clear()


class Source:
    """Windows of `CONTENT`, by how often each chunk was read."""

    def __init__(self, shape: tuple[int, ...] = SHAPE, chunk: tuple[int, ...] = CHUNK) -> None:
        self.chunk, self.reads, self.windows = chunk, Counter[tuple[int, ...]](), 0
        self.chunks = DecodedChunks(self.read, shape, chunk, CONTENT.itemsize)

    def read(self, window: tuple[slice, ...]) -> np.ndarray:
        self.windows += 1
        spans = [
            range(part.start // side, -(-part.stop // side))
            for part, side in zip(window, self.chunk, strict=True)
        ]
        self.reads.update(product(*spans))
        return CONTENT[window]


def window(rows: tuple[int, int], columns: tuple[int, int]) -> tuple[slice, ...]:
    return slice(0, 3), slice(*rows), slice(*columns)


@settings(max_examples=100, deadline=None)
@given(data=st.data(), chunk=st.sampled_from([CHUNK, (1, 33, 90), (2, 8, 16), (5, 70, 30)]))
def test_every_window_is_right(data: st.DataObject, chunk: tuple[int, ...]) -> None:
    source = Source(chunk=chunk)
    for _ in range(4):
        ends = [sorted(data.draw(st.tuples(*[st.integers(0, size)] * 2))) for size in SHAPE]
        part = tuple(slice(*pair) for pair in ends)
        assert np.array_equal(source.chunks.window(part), CONTENT[part])
    assert sum(each.nbytes for each in decoded._kept.values()) <= decoded.KEPT_BYTES


def test_neighbours_read_what_is_new_in_one_piece() -> None:
    source = Source()
    source.chunks.window(window((10, 40), (15, 45)))  # 3 x 3 chunks
    assert source.windows == 1 and len(source.reads) == 9
    source.chunks.window(window((10, 40), (35, 65)))  # a column of them is new
    assert source.windows == 2 and len(source.reads) == 12
    assert set(source.reads.values()) == {1}


def test_what_is_new_in_a_corner_is_read_in_few_pieces() -> None:
    source = Source()
    source.chunks.window(window((0, 30), (0, 35)))  # 2 x 2 of 3 x 3
    source.chunks.window(window((0, 40), (0, 50)))
    assert source.windows == 1 + 2
    assert set(source.reads.values()) == {1} and len(source.reads) == 9


def test_the_oldest_chunks_go_and_other_arrays_have_their_own() -> None:
    first, second = Source(), Source()
    part = window((0, 30), (0, 35))
    first.chunks.window(part)
    for left in (0, 40):
        second.chunks.window(window((0, 64), (left, left + 35)))
    assert np.array_equal(first.chunks.window(part), CONTENT[part])
    assert first.reads[0, 0, 0] == 2 and second.reads[0, 0, 0] == 1


def test_windows_within_one_chunk_read_it_once() -> None:
    source = Source()
    for part in (window((2, 9), (3, 8)), window((0, 16), (0, 20))):
        assert np.array_equal(source.chunks.window(part), CONTENT[part])
    assert source.windows == 1


def test_too_much_to_keep_is_read_as_it_is() -> None:
    source, part = Source(), window((1, 70), (0, 90))
    for _ in range(2):
        assert np.array_equal(source.chunks.window(part), CONTENT[part])
    assert source.windows == 2 and not decoded._kept


def test_small_chunks_count_as_the_pages_that_they_take() -> None:
    source = Source(chunk=(1, 1, 1))
    for columns, windows in ((12, 1), (12, 1), (13, 2), (13, 3)):
        part = (slice(0, 1), slice(0, 1), slice(0, columns))
        assert np.array_equal(source.chunks.window(part), CONTENT[part])
        assert source.windows == windows
    assert len(decoded._kept) == 12


def test_threads_wait_for_a_chunk_that_another_reads() -> None:
    source, begun = Source(), threading.Barrier(4)

    def work(_: int) -> np.ndarray:
        begun.wait(timeout=10)
        return source.chunks.window(window((10, 40), (15, 45)))

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, range(4)))
    assert all(np.array_equal(each, CONTENT[:, 10:40, 15:45]) for each in found)
    assert set(source.reads.values()) == {1}


def test_who_waits_reads_itself_where_the_other_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    source, waits = Source(), threading.Event()
    read, failures = source.chunks._read, []

    def once_failing(part: tuple[slice, ...]) -> np.ndarray:
        if not failures:
            failures.append(part)
            waits.wait(timeout=10)
            raise OSError("the network went away")
        return read(part)

    monkeypatch.setattr(source.chunks, "_read", once_failing)
    part = window((10, 40), (15, 45))
    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(source.chunks.window, part)
        while not failures:
            pass
        waiting = pool.submit(source.chunks.window, part)
        waits.set()
        assert np.array_equal(waiting.result(timeout=20), CONTENT[part])
        with pytest.raises(OSError, match="went away"):
            failing.result(timeout=20)
    assert not source.chunks._coming
