"""Datasets of a user's own, and parts of scenes, become what the job relies on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from rasterio.transform import Affine

import pipeline
from pipeline import UsageError, open_scene
from pipeline.grid import geobox_of
from pipeline.handmade import as_scene, check_cube
from tests.archives import NODATA, SCALE_FACTOR, counts
from tests.scenes import TRANSFORM, wavelengths, write_geotiff, write_zarr
from tests.test_in_memory import by_hand

ROTATED = TRANSFORM @ Affine.rotation(30)
BANDS = 9
DIMS = ("band", "y", "x")


def taken(scene: xr.Dataset) -> xr.Dataset:
    check_cube(scene)
    return as_scene(scene, 16)


@pytest.fixture(params=[TRANSFORM, ROTATED], ids=["upright", "rotated"])
def placed(request: pytest.FixtureRequest, tmp_path: Path) -> xr.Dataset:
    path = tmp_path / "scene.tif"
    return open_scene(write_geotiff(path, counts(30, 20), transform=request.param))


def test_what_a_reader_returns_passes_unchanged(placed: xr.Dataset) -> None:
    xr.testing.assert_identical(taken(placed), placed)
    assert taken(placed)["reflectance"].encoding == placed["reflectance"].encoding


@pytest.mark.parametrize(
    ("cut", "corner", "step"),
    [
        ({"y": slice(10, 30), "x": slice(5, 15)}, (5, 10), 1),
        ({"y": [4], "x": [7]}, (7, 4), 1),
        ({"y": slice(0, 30, 2), "x": slice(1, 20, 2)}, (0.5, -0.5), 2),
    ],
)
def test_a_part_lies_where_it_was(
    placed: xr.Dataset, cut: dict[str, Any], corner: tuple[float, float], step: int
) -> None:
    whole, part = geobox_of(placed), geobox_of(taken(placed.isel(cut)))
    assert whole is not None and part is not None
    moved = whole.affine @ Affine.translation(*corner) @ Affine.scale(step)
    assert part.affine.almost_equals(moved, precision=1e-6)
    assert part.crs == whole.crs


def test_means_of_pixels_lie_where_the_pixels_were(placed: xr.Dataset) -> None:
    coarse = geobox_of(taken(placed.drop_vars("good_band").coarsen(x=2, y=3).mean()))
    whole = geobox_of(placed)
    assert coarse is not None and whole is not None
    assert coarse.affine.almost_equals(whole.affine @ Affine.scale(2, 3), precision=1e-6)


def test_a_part_super_resolved_lies_where_it_was(placed: xr.Dataset, model: Path) -> None:
    whole = geobox_of(pipeline.super_resolve(placed, model))
    part = geobox_of(pipeline.super_resolve(placed.isel(y=slice(8, 20), x=slice(3, 19)), model))
    assert whole is not None and part is not None
    moved = whole.affine @ Affine.translation(12, 32)
    assert part.affine.almost_equals(moved, precision=1e-6)


def test_pixels_picked_unevenly_have_no_grid(placed: xr.Dataset) -> None:
    picked = taken(placed.isel(x=[0, 1, 5]))
    assert geobox_of(picked) is None
    assert "not evenly spaced" in picked.attrs["reader_notes"]
    assert picked["spatial_ref"].attrs["crs_wkt"] == placed["spatial_ref"].attrs["crs_wkt"]


def test_centres_alone_are_a_grid(tmp_path: Path) -> None:
    scene = open_scene(write_geotiff(tmp_path / "scene.tif", counts(30, 20, BANDS)))
    only_crs = {"crs_wkt": scene["spatial_ref"].attrs["crs_wkt"]}
    less = scene.assign_coords(spatial_ref=((), 0, only_crs))
    xr.testing.assert_identical(taken(less), scene)
    assert geobox_of(taken(scene.drop_vars("spatial_ref"))).affine == TRANSFORM


def test_a_result_goes_through_netcdf(tmp_path: Path, model: Path) -> None:
    uri = write_geotiff(tmp_path / "scene.tif", counts(20, 18), scale=SCALE_FACTOR)
    fine = pipeline.super_resolve(open_scene(uri), model, uncertainty=True)
    with pytest.raises(TypeError, match="attr"):
        fine.to_netcdf(tmp_path / "nested.nc", engine="h5netcdf")
    fine.sr.for_netcdf().to_netcdf(tmp_path / "fine.nc", engine="h5netcdf")
    back = xr.open_dataset(tmp_path / "fine.nc", engine="h5netcdf", decode_coords="all")
    assert json.loads(back.attrs["sr_archive"]) == json.loads(json.dumps(fine.attrs["sr_archive"]))
    xr.testing.assert_identical(back.load().drop_attrs(), fine.drop_attrs())
    assert geobox_of(back) == geobox_of(fine) is not None


def test_a_scene_keeps_its_place_through_netcdf(tmp_path: Path) -> None:
    scene = open_scene(write_geotiff(tmp_path / "scene.tif", counts(30, 20, BANDS)))
    scene.to_netcdf(tmp_path / "scene.nc")
    with xr.open_dataset(tmp_path / "scene.nc") as again:
        assert "spatial_ref" in again.data_vars
        assert geobox_of(taken(again)) == geobox_of(scene)


def test_counts_with_attributes_are_what_a_run_reads(tmp_path: Path) -> None:
    values = counts(20, 18, BANDS)
    values[:, :3, :4] = NODATA
    packed = {"scale_factor": SCALE_FACTOR, "_FillValue": NODATA}
    theirs = open_scene(write_zarr(tmp_path / "scene.zarr", values, **packed))
    ours = taken(
        xr.Dataset(
            {"reflectance": (DIMS, values, packed)},
            {"wavelength": ("band", wavelengths(BANDS))},
        )
    )
    assert ours["reflectance"].encoding == theirs["reflectance"].encoding
    xr.testing.assert_identical(ours["wavelength"], theirs["wavelength"])
    assert np.array_equal(ours["reflectance"], theirs["reflectance"], equal_nan=True)
    assert np.isnan(ours["reflectance"].values).sum() == 12 * BANDS
    missing = by_hand().assign(reflectance=(DIMS, values, {"missing_value": np.int16(NODATA)}))
    assert np.isnan(taken(missing)["reflectance"].values[:, 0, 0]).all()


@pytest.mark.parametrize("unit", ["um", None])
def test_micrometres_become_nanometres(unit: str | None) -> None:
    attrs = {} if unit is None else {"units": unit}
    short = ("band", wavelengths(BANDS) / 1000, attrs)
    scene = taken(by_hand().assign_coords(wavelength=short, fwhm=("band", np.full(BANDS, 0.01))))
    assert np.allclose(scene["wavelength"], wavelengths(BANDS))
    assert scene["wavelength"].attrs["units"] == "nm"
    assert np.allclose(scene["fwhm"], 10)
    assert ("read as micrometres" in scene.attrs.get("reader_notes", "")) == (unit is None)


def test_wavelengths_may_be_a_variable() -> None:
    variable = by_hand().reset_coords("wavelength")
    assert "wavelength" in variable.data_vars
    xr.testing.assert_identical(taken(variable), taken(by_hand()))


def test_flags_in_memory_are_masked_as_lazy_ones(model: Path) -> None:
    flags = np.zeros((20, 18), np.uint16)
    flags[4:6, 7] = 128  # defective
    scene = by_hand().assign(quality_flags=(("y", "x"), flags))
    made = pipeline.super_resolve(scene, model)
    gaps = np.isnan(made["reflectance"].values).all(axis=0)
    assert gaps[16:24, 28:32].all() and gaps.sum() == 32
    xr.testing.assert_identical(pipeline.super_resolve(scene.chunk(x=5), model), made)
    for none in ("none", ()):
        unmasked = pipeline.super_resolve(scene, model, mask=none)  # type: ignore[arg-type]
        assert bool(np.isfinite(unmasked["reflectance"]).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["reflectance"], "a Dataset, not DataArray"),
        (lambda s: s.rename(reflectance="radiance"), "a variable reflectance with the dimensions"),
        (lambda s: s.isel(band=0), "band, y, x; here is reflectance"),
        (lambda s: s.rename(band="wl"), r"band, y, x; here is reflectance \('wl', 'y', 'x'\)"),
        (lambda s: s.isel(x=slice(0)), "empty"),
        (lambda s: s.astype("datetime64[ns]"), "not numbers"),
        (lambda s: s.assign_coords(wavelength=500.0), r"wavelength lies on \(\), not on band"),
        (lambda s: s.assign_coords(wavelength=("band", np.full(BANDS, np.nan))), "no numbers"),
        (lambda s: s.assign_coords(wavelength=("band", np.arange(BANDS))), "nm are needed"),
        (lambda s: s.assign_coords(good_band=("x", np.ones(18))), r"good_band lies on \(x\)"),
        (lambda s: s.assign_coords(spatial_ref=((), 0, {"crs_wkt": "?"})), "correct its WKT"),
        (
            lambda s: s.assign(reflectance=s["reflectance"].assign_attrs(scale_factor=1e-4)),
            "remove them if its values are physical",
        ),
    ],
)
def test_what_is_no_scene_is_one_line(change: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        taken(change(by_hand()))
    assert "\n" not in str(caught.value)
