"""Tiles cover the scene once, shards are whole, and the finer grid covers the same ground."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st

from pipeline.arrays import MAX_CHUNK, chunk_side
from pipeline.grid import TileGrid, scaled_coordinates

sizes = st.integers(1, 300)


@given(sizes, sizes, st.integers(8, 130), st.sampled_from([2, 4, 8]))
def test_cores_cover_the_scene_once(height: int, width: int, tile: int, scale: int) -> None:
    grid = TileGrid(height, width, tile, scale)
    seen = np.zeros((height, width), dtype=int)
    tiles = list(grid)
    for each in tiles:
        seen[grid.core(each).slices] += 1
    assert (seen == 1).all()
    assert len(tiles) == len(grid) == len({each.key for each in tiles})


@given(sizes, sizes, st.integers(8, 130), st.integers(0, 40))
def test_windows_hold_core_and_halo(height: int, width: int, tile: int, margin: int) -> None:
    grid = TileGrid(height, width, tile, 4)
    for each in grid:
        core, window = grid.core(each), grid.window(each, margin)
        assert window.top == max(0, core.top - margin)
        assert window.right == min(width, each.column * tile + tile + margin)
        inner = core.within(window)
        assert (inner.bottom - inner.top, inner.right - inner.left) == (
            core.bottom - core.top,
            core.right - core.left,
        )


@given(st.integers(8, 1024), st.sampled_from([2, 4, 8]))
def test_chunks_divide_shards(tile: int, scale: int) -> None:
    grid = TileGrid(1, 1, tile, scale)
    assert grid.shard == tile * scale
    assert grid.shard % chunk_side(grid.shard) == 0
    assert chunk_side(grid.shard) <= MAX_CHUNK


def georeferenced(affine: Affine, rows: int = 3, columns: int = 5) -> xr.Dataset:
    """A scene's coordinates as the readers give them."""
    geotransform = " ".join(repr(float(value)) for value in affine.to_gdal())
    return xr.Dataset(
        coords={
            "x": ("x", affine.c + affine.a * (np.arange(columns) + 0.5)),
            "y": ("y", affine.f + affine.e * (np.arange(rows) + 0.5)),
            "spatial_ref": ((), 0, {"GeoTransform": geotransform, "crs_wkt": "EPSG:32633"}),
        }
    )


def test_finer_grid_covers_the_same_ground() -> None:
    affine = Affine(30.0, 0.0, 364095.0, 0.0, -30.0, 5809965.0)
    fine = scaled_coordinates(georeferenced(affine), 4)
    assert fine["x"].size == 20 and fine["y"].size == 12
    assert fine["x"].values[0] == 364095.0 + 3.75  # not the LR centre, 364110
    assert fine["y"].values[-1] == pytest.approx(5809965.0 - 90 + 3.75, abs=1e-9)
    assert fine["spatial_ref"].attrs["GeoTransform"] == "364095.0 7.5 0.0 5809965.0 0.0 -7.5"


def test_rotated_grid_keeps_its_corners() -> None:
    affine = Affine.translation(5e5, 4e6) @ Affine.rotation(23.0) @ Affine.scale(7.3, -7.3)
    fine = scaled_coordinates(georeferenced(affine), 4)
    again = Affine.from_gdal(
        *(float(value) for value in fine["spatial_ref"].attrs["GeoTransform"].split())
    )
    for corner in [(0, 0), (5, 0), (0, 3), (5, 3)]:
        there = again @ (corner[0] * 4, corner[1] * 4)
        assert np.allclose(there, affine @ corner, rtol=0, atol=1e-6)
    assert fine["x"].attrs["units"] == "1"
    assert fine["x"].values[:2].tolist() == [0.5, 1.5]


def test_scene_without_georeferencing_counts_pixels() -> None:
    scene = xr.Dataset(coords={"x": ("x", [0.5, 1.5]), "y": ("y", [0.5])})
    fine = scaled_coordinates(scene, 2)
    assert set(fine) == {"x", "y"}
    assert fine["x"].values.tolist() == [0.5, 1.5, 2.5, 3.5]
