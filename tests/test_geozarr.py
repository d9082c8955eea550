"""Attributes of the Zarr conventions, and what readers make of a store that has them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
import rioxarray  # noqa: F401
import xarray as xr
import zarr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from pipeline.geozarr import (
    MULTISCALES,
    PROJ,
    SPATIAL,
    multiscales_attributes,
    overview_box,
    spatial_attributes,
)
from pipeline.grid import scaled_coordinates
from pipeline.overviews import overview_name
from pipeline.readers.georeference import Grid, grid_coords

NORTH_UP = Affine(30.0, 0.0, 364095.0, 0.0, -30.0, 5809965.0)
TURNED = Affine.translation(5e5, 4e6) @ Affine.rotation(30) @ Affine.scale(7.3, -7.3)
GDAL = tuple(map(int, rasterio.__gdal_version__.split(".")[:2]))
ROWS, COLUMNS, SCALE = 9, 7, 2  # 18 x 14: odd at the second level
WKT = pyproj.CRS(32633).to_wkt()


def box(affine: Affine = NORTH_UP, crs: str | None = "EPSG:32633") -> GeoBox:
    return GeoBox((ROWS * SCALE, COLUMNS * SCALE), affine, crs)


def names(attributes: dict[str, Any]) -> list[str]:
    return [convention["name"] for convention in attributes["zarr_conventions"]]


def test_a_grid_in_full() -> None:
    found = spatial_attributes(box())
    assert names(found) == ["proj", "spatial"]
    assert found["spatial:transform"] == [30.0, 0.0, 364095.0, 0.0, -30.0, 5809965.0]
    assert found["spatial:bbox"] == [364095.0, 5809965.0 - 540, 364095.0 + 420, 5809965.0]
    assert found["spatial:shape"] == [18, 14]
    assert found["spatial:dimensions"] == ["y", "x"] and found["spatial:registration"] == "pixel"
    assert found["proj:code"] == "EPSG:32633"
    assert pyproj.CRS(found["proj:wkt2"]) == pyproj.CRS(32633)
    assert json.loads(json.dumps(found)) == found


def test_conventions_are_declared_as_released() -> None:
    """Identity by UUID; the addresses name the release that is followed."""
    for convention, name, start in (
        (PROJ, "proj", "f17cb550"),
        (SPATIAL, "spatial", "689b58e2"),
        (MULTISCALES, "multiscales", "d35379db"),
    ):
        assert convention["name"] == name and convention["uuid"].startswith(start)
        assert convention["schema_url"].endswith(
            f"/zarr-conventions/{name}/refs/tags/v0.1/schema.json"
        )
        assert convention["spec_url"].endswith(f"/zarr-conventions/{name}/blob/v0.1/README.md")


def test_bounds_of_a_turned_grid_hold_all_corners() -> None:
    found = spatial_attributes(box(TURNED))
    bounds = rasterio.transform.array_bounds(18, 14, TURNED)
    np.testing.assert_allclose(found["spatial:bbox"], bounds, rtol=0, atol=1e-9)
    assert found["spatial:transform"] == list(TURNED)[:6]


def test_what_is_unknown_is_left_out() -> None:
    assert spatial_attributes(None) == {}
    only_grid = spatial_attributes(box(crs=None))
    assert names(only_grid) == ["spatial"] and not any("proj:" in key for key in only_grid)
    only_crs = spatial_attributes(None, WKT)
    assert names(only_crs) == ["proj"] and only_crs["proj:code"] == "EPSG:32633"
    custom = pyproj.CRS("+proj=tmerc +lon_0=13.37 +k=0.99991 +ellps=GRS80 +units=m").to_wkt()
    assert "proj:code" not in spatial_attributes(None, custom)
    assert multiscales_attributes([], (18, 14), box()) == spatial_attributes(box())


def test_levels() -> None:
    found = multiscales_attributes([2, 4, 8], (18, 14), box())
    assert names(found) == ["multiscales", "proj", "spatial"]
    # With a layout, the group itself must state neither.
    assert "spatial:transform" not in found and "spatial:shape" not in found
    layout = found["multiscales"]["layout"]
    assert [level["asset"] for level in layout] == [
        "reflectance",
        *(f"overviews/{factor}/reflectance" for factor in (2, 4, 8)),
    ]
    assert "derived_from" not in layout[0]
    assert [level["derived_from"] for level in layout[1:]] == [
        level["asset"] for level in layout[:-1]
    ]
    assert [level["spatial:shape"] for level in layout] == [[18, 14], [9, 7], [5, 4], [3, 2]]
    for level, factor in zip(layout, (1, 2, 4, 8), strict=True):
        assert level["spatial:transform"] == [
            *(30.0 * factor, 0.0, 364095.0),
            *(0.0, -30.0 * factor, 5809965.0),
        ]
    assert all(level["transform"]["scale"] == [1.0, 2.0, 2.0] for level in layout[1:])
    assert found["multiscales"]["resampling_method"] == "average"


def test_levels_of_a_swath_have_no_transform() -> None:
    found = multiscales_attributes([2, 4], (18, 14), variable="quality", axes=2)
    assert names(found) == ["multiscales"]
    assert set(found["multiscales"]["layout"][0]) == {"asset"}
    assert found["multiscales"]["layout"][1]["transform"]["scale"] == [2.0, 2.0]


@pytest.mark.parametrize("levels", [[2, 3], [2, 2], [1], [4, 2]])
def test_levels_must_derive_from_each_other(levels: list[int]) -> None:
    with pytest.raises(ValueError, match="not a multiple"):
        multiscales_attributes(levels, (18, 14), box())


def test_a_grid_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="array"):
        multiscales_attributes([2], (18, 15), box())


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.sampled_from([2, 4, 8, 16, 3]))
def test_a_level_loses_no_pixel(rows: int, columns: int, factor: int) -> None:
    level = overview_box(GeoBox((rows, columns), TURNED, None), factor)
    assert tuple(level.shape) == (-(-rows // factor), -(-columns // factor))
    assert level.affine @ (0, 0) == TURNED @ (0, 0)
    np.testing.assert_allclose(level.affine @ (1, 1), TURNED @ (factor, factor), rtol=1e-12)


def scene(grid: Grid | None, swath: bool = False) -> xr.Dataset:
    """A scene's coordinates as the readers give them."""
    coords = grid_coords(grid, (ROWS, COLUMNS))
    return xr.Dataset(coords=coords, attrs={"source": "test"})


def write_output(path: Path, source: xr.Dataset, zarr_format: int, **extra: Any) -> xr.Dataset:
    """An output with two overviews, written by xarray as the product is."""
    coordinates: dict[str, Any] = dict(scaled_coordinates(source, SCALE)) | extra
    values = np.arange(2 * 18 * 14, dtype="int16").reshape(2, 18, 14)
    variable = xr.Variable(("band", "y", "x"), values)
    if "spatial_ref" in coordinates:
        variable.attrs["grid_mapping"] = "spatial_ref"
        variable.attrs["_CRS"] = {"wkt": coordinates["spatial_ref"].attrs["crs_wkt"]}
    dataset = xr.Dataset({"reflectance": variable}, coordinates)
    for coordinate in dataset.coords.values():
        coordinate.encoding = {"_FillValue": None} if coordinate.dtype.kind == "f" else {}
    dataset.to_zarr(path, mode="w", zarr_format=zarr_format, consolidated=False)  # type: ignore[call-overload]
    return dataset


def write_levels(path: Path, source: xr.Dataset, grid: GeoBox, zarr_format: int) -> None:
    root: Any = zarr.open_group(str(path), mode="r+")
    root.attrs.update(multiscales_attributes([2, 4], (18, 14), grid))
    root["reflectance"].attrs.update(spatial_attributes(grid))
    for factor in (2, 4):
        level = overview_box(grid, factor)
        values = np.zeros((2, *level.shape), dtype="int16")
        variable = xr.Variable(("band", "y", "x"), values, {"grid_mapping": "spatial_ref"})
        dataset = xr.Dataset(
            {"reflectance": variable},
            dict(scaled_coordinates(source, SCALE, factor)),
            spatial_attributes(level),
        )
        dataset.to_zarr(
            path,
            group=overview_name(factor),
            mode="w",
            zarr_format=zarr_format,  # type: ignore[call-overload]
            consolidated=False,
        )


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("affine", [NORTH_UP, TURNED])
def test_readers_agree_with_the_attributes(
    tmp_path: Path, affine: Affine, zarr_format: int
) -> None:
    source = scene(Grid(tuple(affine.to_gdal()), WKT))
    write_output(tmp_path / "s.zarr", source, zarr_format)
    fine = GeoBox((ROWS, COLUMNS), affine, WKT).zoom_out(1 / SCALE)
    write_levels(tmp_path / "s.zarr", source, fine, zarr_format)
    root: Any = zarr.open_group(str(tmp_path / "s.zarr"), mode="r")
    for level in root.attrs["multiscales"]["layout"]:
        array = root[level["asset"]]
        group = str(Path(level["asset"]).parent)
        opened = xr.open_zarr(
            tmp_path / "s.zarr", group="" if group == "." else group, consolidated=False
        )
        assert list(array.shape[1:]) == level["spatial:shape"]
        stated = level["spatial:transform"]
        there = opened["reflectance"].rio
        for recalc in (False, affine.b == 0):  # by spatial_ref, and by x and y where they tell
            found = list(there.transform(recalc=recalc))[:6]
            np.testing.assert_allclose(found, stated, rtol=0, atol=1e-9)
        assert there.crs.to_epsg() == 32633
    assert root["reflectance"].attrs["spatial:transform"] == list(fine.affine)[:6]


def opened_by_gdal(path: Path) -> Any:
    return rasterio.open(f'ZARR:"{path}":/reflectance')


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_gdal_on_the_plain_layout(tmp_path: Path) -> None:
    """GDAL 3.10 finds north-up and south-up grids by x and y. A rotated one it opens without a
    place, which is no wrong one: it knows neither CF's GeoTransform nor these conventions."""
    for affine, placed in (
        (NORTH_UP, True),
        (Affine(30, 0, 5e5, 0, 30, 4e6), True),
        (TURNED, False),
    ):
        source = scene(Grid(tuple(affine.to_gdal()), WKT))
        write_output(tmp_path / "s.zarr", source, 2)
        grid = GeoBox((18, 14), affine @ Affine.scale(0.5), WKT)
        write_levels(tmp_path / "s.zarr", source, grid, 2)
        with opened_by_gdal(tmp_path / "s.zarr") as file:
            assert file.crs.to_epsg() == 32633 and file.shape == (18, 14)
            if placed:
                expected = tuple(affine @ Affine.scale(0.5))
                np.testing.assert_allclose(tuple(file.transform), expected, rtol=0, atol=1e-9)
            elif GDAL < (3, 13):
                assert file.transform.is_identity


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_gdal_on_a_plain_swath(tmp_path: Path) -> None:
    """GDAL opens it and its positions, as rasters of their own, and places neither."""
    lat, lon = np.mgrid[50:50.1:18j, 10:10.1:14j]
    extra = {"lat": (("y", "x"), lat), "lon": (("y", "x"), lon)}
    written = write_output(tmp_path / "s.zarr", scene(None), 2, **extra)
    with opened_by_gdal(tmp_path / "s.zarr") as file:
        assert file.transform.is_identity and file.crs is None
        assert np.array_equal(file.read(), written["reflectance"].values)
    with rasterio.open(f'ZARR:"{tmp_path / "s.zarr"}":/lat') as file:
        assert np.array_equal(file.read(1), lat)
    reopened = xr.open_zarr(tmp_path / "s.zarr", consolidated=False)
    assert {"lat", "lon"} <= set(reopened["reflectance"].coords)
