"""Gaps are filled from their neighbours only, alike in every tile, and not without end."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.errors import SceneError
from pipeline.nodata import FILL_DEPTH, check_gaps, fill_gaps


def ramp(rows: int = 40, columns: int = 40) -> np.ndarray:
    values = np.linspace(0.1, 0.9, columns, dtype=np.float32)
    return np.broadcast_to(values, (2, rows, columns)).copy()


def test_valid_values_are_untouched() -> None:
    values = ramp()
    values[0, 10:20, 10:20] = np.nan
    filled = fill_gaps(values, np.zeros(2, np.float32))
    valid = np.isfinite(values)
    assert np.array_equal(filled[valid], values[valid])
    assert np.isfinite(filled).all()


def test_fill_comes_from_neighbours_and_then_from_the_background() -> None:
    values = ramp()
    values[:, :, 10:] = np.nan
    filled = fill_gaps(values, np.full(2, -5.0, np.float32))
    edge = values[0, 0, 9]
    assert abs(filled[0, 20, 10] - edge) < 0.03
    assert (filled[:, :, 10 + FILL_DEPTH :] == -5.0).all()
    assert (filled[:, :, 10 : 10 + FILL_DEPTH] > 0).all()


def test_fill_is_the_same_in_every_window() -> None:
    """What a tile's halo sees is what the neighbour's core sees."""
    random = np.random.default_rng(1)
    values = random.random((3, 60, 60), dtype=np.float32)
    values[:, random.random((60, 60)) < 0.3] = np.nan
    values[1, 20:45, 10:50] = np.nan
    background = np.full(3, 0.5, np.float32)
    whole = fill_gaps(values, background)
    part = fill_gaps(values[:, 15:55, 5:45], background)
    inside = slice(FILL_DEPTH, -FILL_DEPTH)
    assert np.array_equal(part[:, inside, inside], whole[:, 15:55, 5:45][:, inside, inside])


def test_scattered_missing_values_are_refused() -> None:
    values = ramp()
    values[np.random.default_rng(0).random(values.shape) < 0.3] = np.nan
    with pytest.raises(SceneError, match="not-finite") as caught:
        check_gaps(values)
    assert caught.value.code == "not-finite"


def test_salt_and_pepper_pixels_are_refused() -> None:
    values = ramp()
    values[:, np.random.default_rng(0).random((40, 40)) < 0.4] = np.nan
    with pytest.raises(SceneError, match="touch a gap"):
        check_gaps(values)


def test_a_nodata_border_and_a_dead_column_are_fine() -> None:
    values = ramp()
    values[:, :25] = np.nan
    values[0, :, 7] = np.nan
    check_gaps(values)
    check_gaps(np.full((2, 8, 8), np.nan, np.float32))  # no valid pixel is another fault


def test_dead_detector_elements_of_many_bands_are_fine() -> None:
    """Each band has one dead column, in all nearly every pixel lacks some band."""
    values = np.repeat(ramp()[:1], 30, axis=0)
    for band in range(30):
        values[band, :, band] = np.nan
    check_gaps(values)
    filled = fill_gaps(values, np.zeros(30, np.float32))
    assert np.abs(filled - ramp()[0]).max() < 0.03
