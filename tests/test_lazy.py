"""Windows of lazy arrays: the same without dask, in one piece, and only where nothing was done."""

from __future__ import annotations

from typing import Any

import cloudpickle
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.readers import lazy as module
from pipeline.readers.lazy import lazy_array, picked, read

CONTENT = np.arange(3 * 40 * 50, dtype=np.float32).reshape(3, 40, 50)


class Counted:
    """Windows of `CONTENT`, counted."""

    shape, dtype, ndim = CONTENT.shape, CONTENT.dtype, 3

    def __init__(self) -> None:
        self.windows: list[tuple[Any, ...]] = []

    def __getitem__(self, key: tuple[Any, ...]) -> np.ndarray:
        return picked(key, self.shape, self._window)

    def _window(self, *window: slice) -> np.ndarray:
        assert all(part.step in (None, 1) for part in window)
        self.windows.append(window)
        return CONTENT[window]


ROWS, COLUMNS = slice(5, 30), slice(7, 44)


def test_a_window_is_read_in_one_piece() -> None:
    source = Counted()
    lazy = lazy_array(source, (3, 16, 16))
    assert np.array_equal(read(lazy, ROWS, COLUMNS), CONTENT[:, ROWS, COLUMNS])
    assert source.windows == [(slice(0, 3), ROWS, COLUMNS)]


def test_bands_may_be_part_of_a_window() -> None:
    source = Counted()
    lazy = lazy_array(source, (3, 16, 16))
    assert np.array_equal(read(lazy, slice(1, 3), ROWS, COLUMNS), CONTENT[1:3, ROWS, COLUMNS])
    assert source.windows == [(slice(1, 3), ROWS, COLUMNS)]


@pytest.mark.parametrize("change", [lambda lazy: lazy * 2, lambda lazy: lazy[::-1]])
def test_what_was_done_to_it_is_not_forgotten(change: Any) -> None:
    source = Counted()
    changed = change(lazy_array(source, (3, 16, 16)))
    assert np.array_equal(read(changed, ROWS, COLUMNS), change(CONTENT)[:, ROWS, COLUMNS])
    assert len(source.windows) == 6  # by dask, block by block


def test_arrays_of_others_and_of_other_processes_go_through_dask() -> None:
    lazy = lazy_array(Counted(), (3, 16, 16))
    sent = cloudpickle.loads(cloudpickle.dumps(lazy))
    for other in (da.from_array(CONTENT), sent):
        assert np.array_equal(read(other, ROWS, COLUMNS), CONTENT[:, ROWS, COLUMNS])
    name = lazy.name
    del lazy
    assert name not in module._sources


def test_windows_too_large_to_hold_twice_go_through_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST", 3 * 10 * 10 * 4)
    source = Counted()
    lazy = lazy_array(source, (3, 16, 16))
    read(lazy, slice(10, 20), slice(10, 20))
    assert len(source.windows) == 1
    read(lazy, slice(10, 20), slice(10, 21))
    assert len(source.windows) == 1 + 4


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_dask_may_ask_by_any_index(data: st.DataObject) -> None:
    def index(size: int) -> Any:
        ends = st.integers(-size, size) | st.none()
        steps = st.sampled_from([None, 1, 2, 3, -1, -2])
        return data.draw(
            st.builds(slice, ends, ends, steps)
            | st.integers(-size, size - 1)
            | st.lists(st.integers(-size, size - 1), max_size=4).map(lambda few: np.array(few, int))
        )

    lazy = lazy_array(Counted(), (3, 16, 16))
    expected, found = CONTENT, lazy
    for axis in (2, 1, 0):
        part = (slice(None),) * axis + (index(CONTENT.shape[axis]),)
        expected, found = expected[part], found[part]
    assert np.array_equal(found.compute(scheduler="synchronous"), expected)
