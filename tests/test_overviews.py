"""Overview levels: the mean of what is valid, and the same from tiles as from the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grid import TileGrid
from pipeline.overviews import coarser, halve, overview_factors


def plain_halve(values: np.ndarray) -> np.ndarray:
    bands, rows, columns = values.shape
    result = np.full((bands, -(-rows // 2), -(-columns // 2)), np.nan)
    for band, row, column in np.ndindex(*result.shape):
        part = values[band, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        part = part[np.isfinite(part)]
        if part.size:
            result[band, row, column] = part.mean(dtype=np.float64)
    return result


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    tile=st.sampled_from([8, 12, 16, 20]),
    gaps=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_levels_of_tiles_are_those_of_the_whole(
    size: tuple[int, int], tile: int, gaps: float
) -> None:
    grid = TileGrid(*size, tile, 2)
    random = np.random.default_rng(size[0])
    fine = random.random((2, *grid.output_size)).astype(np.float32)
    fine[random.random(fine.shape) < gaps] = np.nan
    whole = {1: fine}
    for factor in (2, 4):
        whole[factor] = plain_halve(whole[factor // 2])
        assert np.isnan(whole[factor]).all() == np.isnan(fine).all()
    written = {factor: np.zeros(array.shape[1:], int) for factor, array in whole.items()}
    for each in grid:
        window = grid.core(each).scaled(2)
        values = fine[:, *window.slices]
        for factor in (2, 4):
            values = halve(values)
            place = coarser(window, factor).slices
            written[factor][place] += 1
            np.testing.assert_allclose(values, whole[factor][:, *place], rtol=1e-5)
    assert all((count == 1).all() for factor, count in written.items() if factor > 1)


def test_levels_stop_where_they_are_small() -> None:
    assert overview_factors(TileGrid(1000, 1200, 64, 4)) == (2, 4, 8, 16)
    assert overview_factors(TileGrid(256, 256, 64, 4)) == (2, 4)
    assert overview_factors(TileGrid(32, 32, 64, 4)) == ()
    assert overview_factors(TileGrid(1000, 1000, 25, 3)) == ()


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 9, 8), (70, 32, 64)])
@pytest.mark.parametrize("gaps", [0.0, 0.3])
def test_pixels_are_added_in_one_order(shape: tuple[int, int, int], gaps: float) -> None:
    """Another order would round another way, and a level would not have the bytes it had."""
    random = np.random.default_rng(0)
    values = random.random(shape, dtype=np.float32)
    values[:2][random.random(values[:2].shape) < gaps] = np.nan
    beyond = [(0, 0), *((0, size % 2) for size in shape[1:])]
    padded = np.pad(values, beyond, constant_values=np.nan)
    valid = ~np.isnan(padded)
    total, count = (
        (part[:, 0::2, 0::2] + part[:, 1::2, 0::2]) + (part[:, 0::2, 1::2] + part[:, 1::2, 1::2])
        for part in (np.where(valid, padded, np.float32(0)), valid.astype(np.float32))
    )
    with np.errstate(invalid="ignore"):
        assert np.array_equal(halve(values), total / count, equal_nan=True)
