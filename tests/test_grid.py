"""Tiles cover the scene once, shards are whole, and the finer grid covers the same ground."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pyproj
import pytest
import rasterio
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint

from pipeline import open_scene
from pipeline.arrays import MAX_CHUNK, chunk_side
from pipeline.errors import SceneError
from pipeline.grid import TileGrid, geobox_of, scaled_coordinates
from pipeline.readers.georeference import Grid, grid_coords
from tests.scenes import cube, write_geotiff

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


UTM, DEGREES = "EPSG:32633", "EPSG:4326"
ALIGNED = {
    "north-up": (Affine(30.0, 0.0, 364095.0, 0.0, -30.0, 5809965.0), UTM),
    "south-up": (Affine(30.0, 0.0, 364095.0, 0.0, 30.0, 5e6), UTM),
    "east to west": (Affine(-3.7, 0.0, 364095.3, 0.0, -3.7, 5809965.1), UTM),
    "geographic": (Affine(2.7e-4, 0.0, 13.04, 0.0, -2.7e-4, 52.43), DEGREES),
    "geographic, fine": (Affine(1e-7, 0.0, 13.04, 0.0, -1e-7, 52.43), DEGREES),
    "across 180": (Affine(20 / 37, 0.0, 170.0, 0.0, -0.1, 10.0), DEGREES),
    "across -180": (Affine(20 / 37, 0.0, -190.0, 0.0, -0.1, 10.0), DEGREES),
    "0 to 360": (Affine(360 / 37, 0.0, 0.0, 0.0, -180 / 29, 90.0), DEGREES),
    "no CRS": (Affine(0.3, 0.0, -12.0, 0.0, -0.3, 7.0), None),
}
TURNED = Affine.translation(5e5, 4e6) @ Affine.rotation(30) @ Affine.scale(7.3, -7.3)
SKEWED = {
    "turned by 30 degrees": TURNED,
    "sheared": TURNED @ Affine.shear(12, 5),
    "turned by 90 degrees": Affine(0.0, 30.0, 5e5, 30.0, 0.0, 4e6),
    "a small shear": Affine(30.0, 0.0, 5e5, 1e-3, -30.0, 4e6),
    "fine and sheared": Affine(1e-6, 0.0, 13.0, 5e-7, -1e-6, 52.0),
}


def read(affine: Affine, crs: str | None, rows: int = 29, columns: int = 37) -> xr.Dataset:
    """A scene's coordinates as the readers give them."""
    wkt = None if crs is None else pyproj.CRS(crs).to_wkt()
    grid = Grid(tuple(affine.to_gdal()), wkt)
    return xr.Dataset(coords=grid_coords(grid, (rows, columns)), attrs={"source": "here"})


def exact(affine: Affine, row: Fraction, column: Fraction) -> tuple[Fraction, Fraction]:
    """Where an LR index, counted from the corner, lies, without any rounding."""
    a, b, c, d, e, f = (Fraction(value) for value in tuple(affine)[:6])
    return a * column + b * row + c, d * column + e * row + f


def transform_of(fine: dict[str, xr.Variable]) -> Affine:
    text = fine["spatial_ref"].attrs["GeoTransform"]
    return Affine.from_gdal(*(float(value) for value in text.split()))


def check_corners(fine: dict[str, xr.Variable], affine: Affine, scale: int) -> None:
    """All HR corners and some HR centres by the stated transform, to a millionth of an HR pixel."""
    stated, size = transform_of(fine), max(map(abs, (affine.a, affine.b))) / scale
    for row in (0.0, 0.5, 14.5 * scale, 29 * scale - 0.5, 29.0 * scale):
        for column in (0.0, 0.5, 18.5 * scale, 37 * scale - 0.5, 37.0 * scale):
            there = stated @ (column, row)
            wanted = exact(affine, Fraction(row) / scale, Fraction(column) / scale)
            for value, target in zip(there, wanted, strict=True):
                assert abs(Fraction(value) - target) < 1e-6 * size


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ALIGNED)
def test_centres_and_corners_of_aligned_grids(name: str, scale: int) -> None:
    affine, crs = ALIGNED[name]
    fine = scaled_coordinates(read(affine, crs), scale)
    check_corners(fine, affine, scale)
    x, y = fine["x"].values, fine["y"].values
    assert (x.size, y.size) == (37 * scale, 29 * scale)
    for index in (0, 1, x.size // 2, x.size - 1):
        wanted, _ = exact(affine, Fraction(0), Fraction(2 * index + 1, 2 * scale))
        assert abs(Fraction(x[index]) - wanted) < 1e-6 * abs(affine.a) / scale
    for index in (0, 1, y.size // 2, y.size - 1):
        _, wanted = exact(affine, Fraction(2 * index + 1, 2 * scale), Fraction(0))
        assert abs(Fraction(y[index]) - wanted) < 1e-6 * abs(affine.e) / scale
    assert (np.sign(np.diff(x)) == np.sign(affine.a)).all()  # never jumps back at 180
    by_rasterio = rasterio.transform.xy(transform_of(fine), [0, y.size - 1], [0, x.size - 1])
    np.testing.assert_allclose(by_rasterio, [x[[0, -1]], y[[0, -1]]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize("name", SKEWED)
def test_centres_and_corners_of_skewed_grids(name: str, scale: int) -> None:
    affine = SKEWED[name]
    fine = scaled_coordinates(read(affine, UTM), scale)
    check_corners(fine, affine, scale)
    assert fine["x"].attrs["units"] == fine["y"].attrs["units"] == "1"
    assert fine["x"].values[[0, -1]].tolist() == [0.5, 37 * scale - 0.5]


@pytest.mark.parametrize("name", ["north-up", "across 180", "turned by 30 degrees"])
def test_overviews_keep_the_corner(name: str) -> None:
    affine, crs = ALIGNED[name] if name in ALIGNED else (SKEWED[name], UTM)
    fine = scaled_coordinates(read(affine, crs), 2, overview=4)  # 58 x 74 to 15 x 19
    assert (fine["y"].size, fine["x"].size) == (15, 19)
    stated = transform_of(fine)
    for row, column in ((0, 0), (15, 19)):
        wanted = exact(affine, Fraction(2 * row), Fraction(2 * column))
        np.testing.assert_allclose(stated @ (column, row), [*map(float, wanted)], rtol=1e-14)
    centre = stated @ (0.5, 0.5) if name in ALIGNED else (0.5, 0.5)
    assert (fine["x"].values[0], fine["y"].values[0]) == pytest.approx(centre, rel=1e-14)


def test_a_turned_grid_lies_where_proj_says() -> None:
    """Distances on the ground between true HR centres and those by the stated transform."""
    stated = transform_of(scaled_coordinates(read(TURNED, UTM), 4))
    column, row = np.meshgrid(np.arange(148) + 0.5, np.arange(116) + 0.5)
    to_degrees = pyproj.Transformer.from_crs(UTM, DEGREES, always_xy=True)
    ours = to_degrees.transform(*(stated @ (column, row)))
    angle, size = np.deg2rad(30), 7.3 / 4
    x = 5e5 + size * (np.cos(angle) * column + np.sin(angle) * row)
    y = 4e6 + size * (np.sin(angle) * column - np.cos(angle) * row)
    apart = pyproj.Geod(ellps="WGS84").inv(*ours, *to_degrees.transform(x, y))[2]
    assert np.max(apart) < 1e-6 * size


def test_no_error_adds_up_along_a_long_axis() -> None:
    affine = Affine(0.1, 0.0, 364095.1, 0.0, -0.1, 5809965.3)
    fine = scaled_coordinates(read(affine, UTM, 1, 1_000_000), 3)
    x = fine["x"].values
    for index in (0, 1_234_567, 2_999_999):
        wanted, _ = exact(affine, Fraction(0), Fraction(2 * index + 1, 6))
        assert abs(Fraction(x[index]) - wanted) < 1e-6 * 0.1 / 3


def test_longitudes_that_jump_in_the_source_run_on() -> None:
    """The transform decides, not a source's longitudes that were wrapped at 180."""
    scene = read(ALIGNED["across 180"][0], DEGREES)
    wrapped = scene.assign_coords(x=("x", (scene["x"].values + 180) % 360 - 180))
    x = scaled_coordinates(wrapped, 4)["x"].values
    assert (np.diff(x) > 0).all() and x[0] > 170 and 189.8 < x[-1] < 190


def test_a_crs_without_transform_is_carried() -> None:
    scene = xr.Dataset(coords=grid_coords(Grid(None, pyproj.CRS(UTM).to_wkt()), (3, 5)))
    assert geobox_of(scene) is None
    fine = scaled_coordinates(scene, 4)
    assert pyproj.CRS(fine["spatial_ref"].attrs["crs_wkt"]).to_epsg() == 32633
    assert "GeoTransform" not in fine["spatial_ref"].attrs
    assert fine["x"].attrs["units"] == "1" and fine["x"].values[-1] == 19.5


def test_ground_control_points_make_no_grid(tmp_path: Path) -> None:
    """A grid is not guessed from points; the reader says that it did not use them."""
    points = [
        GroundControlPoint(row, column, 13 + column / 100, 52 - row / 100)
        for row in (0, 9)
        for column in (0, 11)
    ]
    path = write_geotiff(tmp_path / "points.tif", cube(), crs=None, transform=None)
    with rasterio.open(path, "r+") as file:
        file.gcps = (points, rasterio.crs.CRS.from_epsg(4326))
    scene = open_scene(path)
    assert "ground control points" in scene.attrs["reader_notes"]
    fine = scaled_coordinates(scene, 2)
    assert set(fine) == {"x", "y"} and fine["x"].values[0] == 0.5


@pytest.mark.parametrize(
    "text", ["0 0 0 0 0 0", "1 2 0 2 2 0", "nan 1 0 0 0 1", "0 1 0 0 0 inf", "1 2 3", "a b c d e f"]
)
def test_a_transform_that_is_no_grid_is_said(text: str) -> None:
    scene = read(TURNED, UTM)
    scene["spatial_ref"].attrs["GeoTransform"] = text
    with pytest.raises(SceneError, match=r"here: GeoTransform .* is no grid: correct or remove it"):
        scaled_coordinates(scene, 4)


def test_a_crs_that_cannot_be_understood_is_said() -> None:
    scene = read(TURNED, UTM)
    scene["spatial_ref"].attrs["crs_wkt"] = "PROJCRS[" * 50
    with pytest.raises(SceneError, match="here: the CRS cannot be understood"):
        geobox_of(scene)
