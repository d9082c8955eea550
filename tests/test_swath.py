"""HR positions of swaths against positions that were computed another way."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyproj
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.grid import TileGrid, Window
from pipeline.swath import MARGIN, upsample_positions

Array = npt.NDArray[np.float64]
GEOD = pyproj.Geod(ellps="WGS84")


def whole(rows: int, columns: int) -> Window:
    return Window(0, rows, 0, columns)


def centres(rows: int, columns: int, scale: int = 1) -> tuple[Array, Array]:
    """LR index (row, column) of the centres of HR pixels, 0 at the first LR centre."""
    y, x = (np.arange(n * scale) for n in (rows, columns))
    return tuple(np.meshgrid((y + 0.5) / scale - 0.5, (x + 0.5) / scale - 0.5, indexing="ij"))  # type: ignore[return-value]


def metres(lat: Array, lon: Array, true_lat: Array, true_lon: Array) -> Array:
    return np.asarray(GEOD.inv(lon, lat, true_lon, true_lat)[2])


def projected(affine: Affine, crs: int | str, row: Array, column: Array) -> tuple[Array, Array]:
    """Latitude and longitude of LR indices of an affine grid, through PROJ."""
    x, y = affine @ (column + 0.5, row + 0.5)
    lon, lat = pyproj.Transformer.from_crs(crs, 4326, always_xy=True).transform(x, y)
    return lat, lon


def error_of(position: Any, rows: int, columns: int, scale: int) -> Array:
    """Metres between what is interpolated from LR centres and the true HR centres."""
    lat, lon = upsample_positions(*position(*centres(rows, columns)), whole(rows, columns), scale)
    return metres(lat, lon, *position(*centres(rows, columns, scale)))


TURNED = Affine.translation(6.9e5, 7.4e6) @ Affine.rotation(33) @ Affine.scale(30, -30)
SHEARED = TURNED @ Affine.shear(12, 0)


@pytest.mark.parametrize("affine", [TURNED, SHEARED])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_affine_grid_to_a_millionth_of_a_pixel(affine: Affine, scale: int) -> None:
    error = error_of(lambda *at: projected(affine, 32633, *at), 20, 30, scale)
    assert error.max() * scale / 30 < 1e-6  # HR pixels, the scene's edges included


@pytest.mark.parametrize(
    ("crs", "affine"),
    [
        (32601, Affine(300, 0, 2.61e5, 0, -300, 5e6)),  # zone 1 begins at 180 degrees
        (3413, Affine(300, 0, -3e3, 0, -300, 3e3)),  # the north pole is where four pixels meet
        (3031, Affine(300, 0, -3.1e3, 0, -300, 2.9e3)),  # the south pole is inside a pixel
    ],
)
def test_neither_antimeridian_nor_pole_is_special(crs: int, affine: Affine) -> None:
    error = error_of(lambda *at: projected(affine, crs, *at), 20, 20, 4)
    assert error.max() < 1e-4  # metres, of HR pixels of 75 m
    _, lon = projected(affine, crs, *centres(20, 20))
    assert np.ptp(lon) > 300  # a mean of degrees would be far off


def scan(row: Array, column: Array) -> tuple[Array, Array]:
    """A whisk-broom like scan from 705 km: pixels of 1 km that grow to 4.8 km 55 degrees aside."""
    radius, height = 6371e3, 705e3
    angle = np.deg2rad((column - 676.5) * 110 / 1354)
    ground = radius * (np.arcsin((radius + height) / radius * np.sin(angle)) - angle)
    start_lon, start_lat, back = GEOD.fwd(
        np.full(row.shape, 10.0), np.full(row.shape, 60.0), np.full(row.shape, -12.0), row * 1000
    )
    lon, lat, _ = GEOD.fwd(start_lon, start_lat, np.asarray(back) + 180 + 90, ground)
    return np.asarray(lat), np.asarray(lon)


def test_the_edge_of_a_wide_scan() -> None:
    """What bending costs: a growing pixel is followed, a straight line between centres is not."""
    error = error_of(scan, 8, 1354, 4)
    assert error.max() < 0.01 * 4800 / 4  # a hundredth of an HR pixel there, half outside included
    assert np.median(error) < 1e-4 * 250
    lat, lon = scan(*centres(8, 1354))
    middle = metres(
        (lat[:, :-1] + lat[:, 1:]) / 2,
        (lon[:, :-1] + lon[:, 1:]) / 2,
        *scan(
            *(part[:, :-1] + step for part, step in zip(centres(8, 1354), (0, 0.5), strict=True))
        ),
    )
    assert middle.max() > 10 * error[8:-8, 8:-8].max()


def test_a_line_scanner_that_rolls() -> None:
    """Roll of 3 pixels over 60 lines, as of an aircraft: a thousandth of an HR pixel and less."""

    def rolling(row: Array, column: Array) -> tuple[Array, Array]:
        across = 2.0 * (column + 3 * np.sin(2 * np.pi * row / 60))
        return projected(Affine.translation(5e5, 5e6), 32633, -2.0 * row, across)

    assert error_of(rolling, 120, 40, 4).max() * 4 / 2 < 0.01


@given(
    rows=st.integers(2, 23),
    columns=st.integers(2, 23),
    tile=st.integers(1, 9),
    scale=st.sampled_from([2, 3, 4]),
    holes=st.floats(0, 0.5),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_tiles_make_the_whole_to_the_last_bit(
    rows: int, columns: int, tile: int, scale: int, holes: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    lat, lon = projected(TURNED, 32633, *centres(rows, columns))
    lat = lat + 1e-5 * rng.standard_normal(lat.shape)
    lat[rng.random(lat.shape) < holes] = np.nan
    expected = upsample_positions(lat, lon, whole(rows, columns), scale)
    grid = TileGrid(rows, columns, tile, scale)
    for each in grid:
        window, core = grid.window(each, MARGIN), grid.core(each)
        parts = upsample_positions(
            lat[window.slices], lon[window.slices], core.within(window), scale
        )
        for part, all_of_it in zip(parts, expected, strict=True):
            np.testing.assert_array_equal(part, all_of_it[core.scaled(scale).slices])


def neighbours(valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """LR pixels with a neighbour in their row and, among such pixels, one in their column."""
    padded = np.pad(valid, 1)
    beside = valid & (padded[1:-1, :-2] | padded[1:-1, 2:])
    return beside


@given(holes=st.floats(0, 0.6), seed=st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_gaps_keep_their_outline(holes: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    lat, lon = projected(TURNED, 32633, *centres(12, 14))
    true_lat, true_lon = projected(TURNED, 32633, *centres(12, 14, 4))
    valid = rng.random(lat.shape) >= holes
    lat[~valid] = np.nan
    fine_lat, fine_lon = upsample_positions(lat, lon, whole(12, 14), 4)
    beside = neighbours(valid)
    kept = beside & neighbours(beside.T).T
    expected = kept.repeat(4, axis=0).repeat(4, axis=1)
    np.testing.assert_array_equal(np.isfinite(fine_lat), expected)
    np.testing.assert_array_equal(np.isfinite(fine_lon), expected)
    if expected.any():
        error = metres(*(part[expected] for part in (fine_lat, fine_lon, true_lat, true_lon)))
        assert error.max() < 1e-3  # lines where only one neighbour is there; HR pixels of 7.5 m


def test_a_lone_pixel_has_no_direction() -> None:
    lat, lon = np.full((3, 3), np.nan), np.full((3, 3), 10.0)
    lat[1, 1] = 50.0
    assert np.isnan(upsample_positions(lat, lon, whole(3, 3), 2)[0]).all()
    line = np.linspace(50, 51, 6)[None]
    assert np.isnan(upsample_positions(line, line, whole(1, 6), 2)[0]).all()


@pytest.mark.parametrize("fill", [-9999.0, np.inf, 1e30, 90.5])
def test_fill_values_are_absent(fill: float) -> None:
    lat, lon = projected(TURNED, 32633, *centres(6, 6))
    lat[2, 3] = fill
    holes = np.isnan(upsample_positions(lat, lon, whole(6, 6), 4)[0])
    assert holes.sum() == 16 and holes[8:12, 12:16].all()


def test_the_turn_is_chosen() -> None:
    lat, lon = projected(Affine(300, 0, 2.61e5, 0, -300, 5e6), 32601, *centres(6, 20))
    usual, east = (upsample_positions(lat, lon, whole(6, 20), 4, west)[1] for west in (-180.0, 0.0))
    assert usual.min() < -179 and usual.max() < 180 and usual.max() > 179
    assert east.min() > 0 and np.ptp(east) < 1
    np.testing.assert_allclose(east % 360, usual % 360, rtol=0, atol=1e-12)
    shifted = upsample_positions(lat, lon % 360, whole(6, 20), 4)[1]
    np.testing.assert_allclose(shifted, usual, rtol=0, atol=1e-12)


def test_float32_positions_are_not_made_worse() -> None:
    """A file's rounding passes through: at most twice its own size, at the scene's corners."""
    lat, lon = projected(TURNED, 32633, *centres(20, 20))
    rounded = [part.astype(np.float32) for part in (lat, lon)]
    coarse = metres(*(part.astype(np.float64) for part in rounded), lat, lon).max()
    fine = metres(
        *upsample_positions(*rounded, whole(20, 20), 4),
        *projected(TURNED, 32633, *centres(20, 20, 4)),
    )
    assert fine[4:-4, 4:-4].max() < 1.3 * coarse and fine.max() < 5 * coarse


def test_arrays_must_hold_the_core() -> None:
    plane = np.zeros((4, 4))
    for latitude, longitude, core in (
        (plane, plane[:3], whole(3, 4)),
        (plane, plane, whole(4, 5)),
    ):
        with pytest.raises(ValueError, match="core"):
            upsample_positions(latitude, longitude, core, 2)
