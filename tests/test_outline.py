"""Footprints against other ways to the same place, and what RFC 7946 asks of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio.warp
import shapely
import xarray as xr
from affine import Affine

from pipeline import open_scene
from pipeline.errors import SceneError
from pipeline.outline import bounding_box, footprint
from pipeline.readers.georeference import Grid, grid_coords
from tests.scenes import real

ROWS, COLUMNS = 40, 60
UTM = Affine(30.0, 0.0, 364095.0, 0.0, -30.0, 5809965.0)
TURNED = Affine.translation(5e5, 4e6) @ Affine.rotation(30) @ Affine.scale(7.3, -7.3)


def gridded(affine: Affine, crs: int | str | None) -> xr.Dataset:
    wkt = None if crs is None else pyproj.CRS(crs).to_wkt()
    return xr.Dataset(coords=grid_coords(Grid(tuple(affine.to_gdal()), wkt), (ROWS, COLUMNS)))


def as_swath(affine: Affine, crs: int) -> xr.Dataset:
    """The same pixels, known by latitude and longitude alone."""
    column, row = np.meshgrid(np.arange(COLUMNS) + 0.5, np.arange(ROWS) + 0.5)
    to_degrees = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    lon, lat = to_degrees.transform(*(affine @ (column, row)))
    return xr.Dataset(coords={"lat": (("y", "x"), lat), "lon": (("y", "x"), lon)})


def polygons(geometry: Any) -> list[shapely.Polygon]:
    """The parts, each checked against RFC 7946."""
    assert geometry is not None
    shape = shapely.geometry.shape(geometry)
    parts = list(getattr(shape, "geoms", [shape]))
    for part in parts:
        assert part.is_valid and part.area > 0
        assert part.exterior.is_ccw and part.exterior.coords[0] == part.exterior.coords[-1]
        west, south, east, north = part.bounds
        assert -180 <= west < east <= 180 and -90 <= south < north <= 90
    return parts


@pytest.mark.parametrize("make", [gridded, as_swath])
@pytest.mark.parametrize("affine", [UTM, Affine(30, 0, 364095, 0, 30, 5e6), TURNED])
def test_utm(make: Any, affine: Affine) -> None:
    geometry = footprint(make(affine, 32633))
    (found,) = polygons(geometry)
    edges = {"type": "Polygon", "coordinates": [outer_edge(affine)]}
    expected = shapely.geometry.shape(rasterio.warp.transform_geom(32633, 4326, edges))
    difference = found.symmetric_difference(expected).area
    assert difference < 1e-5 * expected.area  # degrees are rounded to a millimetre
    np.testing.assert_allclose(bounding_box(geometry), expected.bounds, rtol=0, atol=1e-7)


def outer_edge(affine: Affine, steps: int = 101) -> list[tuple[float, float]]:
    """Points along the outer edge of the pixels, by hand."""
    part = np.linspace(0, 1, steps)
    corners = [
        *((COLUMNS * t, 0) for t in part),
        *((COLUMNS, ROWS * t) for t in part),
        *((COLUMNS * (1 - t), ROWS) for t in part),
        *((0, ROWS * (1 - t)) for t in part),
    ]
    return [affine @ corner for corner in corners]


@pytest.mark.parametrize("west", [170.0, -190.0])
def test_geographic_grid_across_the_antimeridian(west: float) -> None:
    geometry = footprint(gridded(Affine(20 / COLUMNS, 0, west, 0, -0.1, 10), 4326))
    parts = polygons(geometry)
    assert sorted(part.bounds for part in parts) == [
        pytest.approx((-180, 6, -170, 10)),
        pytest.approx((170, 6, 180, 10)),
    ]
    assert bounding_box(geometry) == pytest.approx([170, 6, -170, 10])


def test_longitudes_from_0_to_360() -> None:
    geometry = footprint(gridded(Affine(0.1, 0, 200, 0, -0.1, 10), 4326))
    (found,) = polygons(geometry)
    assert found.bounds == pytest.approx((-160, 6, -154, 10))


@pytest.mark.parametrize("make", [gridded, as_swath])
def test_utm_across_the_antimeridian(make: Any) -> None:
    geometry = footprint(make(Affine(300, 0, 2.55e5, 0, -300, 5e6), 32601))
    parts = polygons(geometry)
    assert len(parts) == 2
    west, south, east, north = bounding_box(geometry)
    assert 179.8 < west < 180 and -180 < east < -179.8 and 45.0 < south < north < 45.2


@pytest.mark.parametrize("make", [gridded, as_swath])
@pytest.mark.parametrize(("crs", "pole"), [(3413, 90.0), (3031, -90.0)])
def test_around_a_pole(make: Any, crs: int, pole: float) -> None:
    geometry = footprint(make(Affine(1000, 0, -2.9e4, 0, -1000, 2.1e4), crs))
    west, south, east, north = bounding_box(geometry)
    assert (west, east) == (-180, 180) and pole in (south, north)
    assert abs(abs(south + north) - 180) < 1
    covered = shapely.union_all(polygons(geometry))
    inside = shapely.Point(40.0, pole - np.sign(pole) * 0.15)
    assert covered.contains(inside) and not covered.contains(shapely.Point(40.0, pole * 0.98))


@pytest.mark.parametrize("make", [gridded, as_swath])
def test_no_place_no_footprint(make: Any) -> None:
    nowhere = xr.Dataset(coords=grid_coords(None, (ROWS, COLUMNS)))
    assert footprint(nowhere) is None
    scene = make(UTM, 32633)
    if "lat" in scene.coords:
        assert footprint(scene.assign_coords(lat=scene["lat"] * np.nan)) is None
        assert footprint(scene.isel(y=[0])) is None


def test_a_grid_that_is_not_on_earth() -> None:
    assert footprint(gridded(UTM, None)) is None
    assert footprint(gridded(Affine(0.1, 0, 10, 0, -0.1, 10), "IAU_2015:30100")) is None  # Moon
    local = (
        'ENGCRS["site",EDATUM["peg"],CS[Cartesian,2],AXIS["x",east],AXIS["y",north],UNIT["m",1]]'
    )
    assert footprint(gridded(UTM, local)) is None
    assert footprint(gridded(Affine(0.1, 0, 10, 0, 0.1, 88), 4326)) is None  # beyond the pole


def test_a_transform_that_is_no_grid() -> None:
    scene = gridded(UTM, 32633)
    scene["spatial_ref"].attrs["GeoTransform"] = "0 0 0 0 0 0"
    with pytest.raises(SceneError, match="no grid"):
        footprint(scene)


def test_positions_with_gaps_at_the_border() -> None:
    """A swath within a frame of nodata, as after a rotation: what remains is outlined."""
    scene = as_swath(UTM, 32633)
    row, column = np.mgrid[0:ROWS, 0:COLUMNS]
    inside = np.abs(row - 19.5) / 19.5 + np.abs(column - 29.5) / 29.5 < 1
    scene["lat"] = scene["lat"].where(inside)
    (found,) = polygons(footprint(scene))
    (whole,) = polygons(footprint(as_swath(UTM, 32633)))
    assert whole.contains(found) and 0.44 < found.area / whole.area < 0.52
    centre = shapely.Point(float(scene["lon"][20, 30]), float(scene["lat"][20, 30]))
    assert found.contains(centre)


def test_fill_values_are_no_positions() -> None:
    scene = as_swath(UTM, 32633)
    scene["lat"][0, 0] = -9999.0
    (found,) = polygons(footprint(scene))
    assert found.bounds[1] > 52


def test_hostile_positions_are_outlined_or_not_but_never_raise() -> None:
    rng = np.random.default_rng(0)
    for size in range(2, 30):
        lat, lon = rng.uniform(-90, 90, (size, size)), rng.uniform(-360, 360, (size, size))
        lat[rng.random(lat.shape) < 0.3] = np.nan
        for degrees in ((lat, lon), (lat * 0, lon * 0), (lat * 0 + 90, lon)):
            planes = {
                name: (("y", "x"), plane)
                for name, plane in zip(("lat", "lon"), degrees, strict=True)
            }
            geometry = footprint(xr.Dataset(coords=planes))
            if geometry is not None:
                assert np.abs(bounding_box(geometry)).max() <= 180


def test_real_scene() -> None:
    with open_scene(real("enmap_potsdam/enmap_potsdam_A_64x96.tif")) as scene:
        geometry = footprint(scene)
        affine = Affine.from_gdal(*map(float, scene["spatial_ref"].attrs["GeoTransform"].split()))
        crs, sizes = scene["spatial_ref"].attrs["crs_wkt"], scene.sizes
    bounds = rasterio.transform.array_bounds(sizes["y"], sizes["x"], affine)
    expected = rasterio.warp.transform_bounds(crs, 4326, *bounds, densify_pts=33)
    np.testing.assert_allclose(bounding_box(geometry), expected, rtol=0, atol=1e-6)  # type: ignore[arg-type]
    (found,) = polygons(geometry)
    assert found.distance(shapely.Point(13.06, 52.40)) < 0.2  # Potsdam
