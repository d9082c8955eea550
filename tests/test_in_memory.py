"""`pipeline.super_resolve`: in memory, with the numbers of a run."""

from __future__ import annotations

import json
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr
import zarr

import pipeline
from pipeline import RunSettings, SceneError, UsageError, in_memory, open_scene
from tests.archives import SCALE_FACTOR, counts, publish
from tests.scenes import wavelengths, write_geotiff, write_zarr

BY_RUN_ALONE = {
    "fingerprint", "source", "source_version", "run_id", "run_started", "published", "tiles",
    "tiles_kept_from_earlier_runs", "device", "precision", "seams",
}  # fmt: skip


# As the worker of `publish` has: sums in another order end in other last digits.
pytestmark = pytest.mark.usefixtures("one_thread")


def gappy(rows: int = 44, columns: int = 37, bands: int = 12) -> np.ndarray:
    values = counts(rows, columns, bands)
    values[:, :5, :7] = -32768
    values[3, 20:22, 20:24] = -32768
    return values


def published(source: str, folder: Path, model: Path, **options: object) -> xr.Dataset:
    publish(source, str(folder), model, **options)
    [store] = folder.glob("*.zarr")
    return xr.open_zarr(store, decode_coords="all").load()


@pytest.mark.parametrize(
    ("bands", "options"),
    [
        (12, {}),  # windows of the spectrum
        (9, {"conserve": True}),  # the model's own bands
        (12, {"attention": "global", "dtype": "float32", "normalise": "bands"}),
        (12, {"uncertainty": True}),
        (9, {"conserve": True, "ensemble": True, "uncertainty": True}),
    ],
)
def test_the_numbers_are_those_of_a_run(
    tmp_path: Path, model: Path, bands: int, options: dict[str, object]
) -> None:
    uri = write_zarr(
        tmp_path / "scene.zarr", gappy(bands=bands), scale_factor=SCALE_FACTOR, _FillValue=-32768
    )
    theirs = published(uri, tmp_path / "out", model, **options)
    ours = pipeline.super_resolve(
        open_scene(uri),
        model,
        tile=16,
        precision="fp32",
        **options,  # type: ignore[arg-type]
    )
    assert np.isnan(ours["reflectance"].values).any()
    made = json.loads(json.dumps(ours.attrs.pop("sr_archive")))
    record = theirs.attrs.pop("sr_archive")
    assert record.keys() - made.keys() == BY_RUN_ALONE
    assert made == {name: record[name] for name in made}
    assert theirs.attrs.pop("scene_id") and ours.attrs == theirs.attrs
    xr.testing.assert_identical(ours, theirs)
    assert {k: v.dtype for k, v in ours.items()} == {k: v.dtype for k, v in theirs.items()}


def test_georeferencing_and_masks_are_those_of_a_run(tmp_path: Path, model: Path) -> None:
    uri = write_geotiff(tmp_path / "scene.tif", gappy(30, 20), nodata=-32768)
    theirs = published(uri, tmp_path / "out", model)
    ours = open_scene(uri).sr.super_resolve(model=model, tile=16, precision="fp32")
    assert ours["spatial_ref"].attrs == theirs["spatial_ref"].attrs
    for name in ("x", "y", "quality", "reflectance", "wavelength"):
        assert np.array_equal(ours[name], theirs[name], equal_nan=True), name


def test_positions_of_a_swath_are_those_of_a_run(tmp_path: Path, model: Path) -> None:
    uri = write_zarr(tmp_path / "scene.zarr", counts(30, 20, 20), scale_factor=SCALE_FACTOR)
    rows, columns = np.mgrid[:30, :20]
    group = zarr.open_group(uri)
    for name, degrees in (("lat", 50 - 0.01 * rows), ("lon", 179.9 + 0.01 * columns)):
        group.create_array(name, data=degrees, dimension_names=["y", "x"])
    theirs = published(uri, tmp_path / "out", model, bands="match", outside="upsample")
    ours = pipeline.super_resolve(
        open_scene(uri).load(), model, tile=16, precision="fp32", bands="match", outside="upsample"
    )
    assert {"lat", "lon", "band_role"} <= ours.coords.keys() and ours["lon"].shape == (120, 80)
    xr.testing.assert_identical(ours.drop_attrs(), theirs.drop_attrs())


def by_hand(rows: int = 20, columns: int = 18, bands: int = 9) -> xr.Dataset:
    values = (SCALE_FACTOR * counts(rows, columns, bands)).astype(np.float32)
    dims = ("band", "y", "x")
    return xr.Dataset({"reflectance": (dims, values)}, {"wavelength": ("band", wavelengths(bands))})


def test_a_scene_made_by_hand(model: Path) -> None:
    made = pipeline.super_resolve(by_hand(), model)
    assert dict(made.sizes) == {"band": 9, "y": 80, "x": 72}
    assert made["reflectance"].dtype == np.float32
    assert "spatial_ref" not in made.coords and bool(np.isfinite(made["reflectance"]).all())
    turned = by_hand().transpose("y", "x", "band")
    xr.testing.assert_equal(pipeline.super_resolve(turned, model), made)


def test_the_given_scene_is_not_changed(model: Path) -> None:
    scene, same = by_hand(), by_hand()
    pipeline.super_resolve(scene, model)
    xr.testing.assert_identical(scene, same)
    assert scene["reflectance"].chunks is None


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda s: s.isel(band=0), {}, "band, y, x; here is reflectance"),
        (lambda s: s["reflectance"], {}, "a Dataset, not DataArray"),
        (lambda s: s, {"model": "none.safetensors"}, "none.safetensors"),
        (lambda s: s, {"precision": "fp23"}, "perhaps fp32"),
        (lambda s: s, {"tile": 1}, "tile: "),
        (lambda s: s, {"device": "gpu"}, "device: 'gpu' is neither cpu nor cuda"),
        (lambda s: s, {"device": "cuda:99"}, "there is no cuda:99 here"),
    ],
)
def test_what_cannot_be_used_is_one_line(
    model: Path, change: object, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        pipeline.super_resolve(change(by_hand()), **{"model": model, **options})  # type: ignore


def test_too_few_bands_are_named(model: Path) -> None:
    with pytest.raises(SceneError, match="too-few-bands"):
        pipeline.super_resolve(by_hand(bands=5), model)


def test_without_wavelengths_bands_are_taken_in_order_or_refused(model: Path) -> None:
    """As a run does with a source that states none."""
    unnamed = by_hand().drop_vars("wavelength")
    found = pipeline.super_resolve(unnamed, model)
    assert found.attrs["sr_archive"]["bands_kind"] == "index" and "wavelength" not in found.coords
    more = by_hand(bands=12).drop_vars("wavelength")
    for policy, scene in (("match", more), ("resample", unnamed)):
        with pytest.raises(SceneError, match=r"band-mismatch.*wavelength") as caught:
            pipeline.super_resolve(scene, model, bands=policy)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_refused(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(in_memory, "_LIMITS", (limit, tmp_path / "none"))
    limit.write_text("max\n")
    pipeline.super_resolve(by_hand(), model)
    limit.write_text(f"{300 << 20}\n")
    with pytest.raises(ValueError, match=r"takes about .* 0\.3 are there.*sr-archive run"):
        pipeline.super_resolve(by_hand(), model)


def test_a_larger_scene_needs_more(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound grows with the result, and nothing of a scene is read to find it."""
    monkeypatch.setattr(in_memory, "_available_memory", lambda: 1 << 40)
    huge = xr.Dataset({"reflectance": (("band", "y", "x"), da.zeros((200, 30_000, 30_000)))})
    with pytest.raises(ValueError, match=r"takes about 3[0-9]{4}"):
        pipeline.super_resolve(huge, model)
    with pytest.raises(ValueError, match=r"takes about 4[0-9]{4}"):
        pipeline.super_resolve(huge, model, uncertainty=True)


def test_the_result_lies_in_memory_and_may_be_changed_and_stored(
    tmp_path: Path, model: Path
) -> None:
    scene = by_hand()
    scene["reflectance"].encoding = {"dtype": "int16", "scale_factor": SCALE_FACTOR}
    made = pipeline.super_resolve(scene, model)
    assert isinstance(made["reflectance"].variable._data, np.ndarray)
    made["reflectance"][0, 0, 0] = 0.5
    assert float(made["reflectance"][0, 0, 0]) == 0.5
    made.to_zarr(tmp_path / "made.zarr", consolidated=False)
    again = xr.open_zarr(tmp_path / "made.zarr", consolidated=False, decode_coords="all")
    xr.testing.assert_allclose(again, made, rtol=0, atol=1e-9)
    assert again.attrs == json.loads(json.dumps(made.attrs))


def test_options_have_the_defaults_of_a_run() -> None:
    defaults = RunSettings(source="-", output="-")
    function = in_memory.super_resolve
    for name, value in (function.__kwdefaults__ or {}).items():
        if name != "device":
            found = getattr(defaults, name)
            assert (tuple(found) if isinstance(found, list) else found) == value, name


def test_bands_and_ndvi() -> None:
    scene = by_hand(bands=9).assign_coords(
        wavelength=("band", np.linspace(500, 900, 9)), good_band=("band", np.arange(9) != 4)
    )
    assert scene.sr.nearest_band(555) == 1
    assert scene.sr.nearest_band(701) in (3, 5)  # 700 nm is a bad band
    red, nir = (scene["reflectance"].values[bands].mean(0) for bands in ([3], [6, 7, 8]))
    assert np.allclose(scene.sr.ndvi(), (nir - red) / (nir + red))
    unknown = scene.assign_coords(wavelength=scene["wavelength"].where(scene["wavelength"] > 520))
    assert unknown.sr.nearest_band(500) == 1  # the first states none
    with pytest.raises(UsageError, match="no good band between 690 and 710"):
        scene.sr.mean_between(690, 710)
    with pytest.raises(UsageError, match="no wavelengths"):
        scene.drop_vars("wavelength").sr.ndvi()


def test_ndvi_has_gaps_where_the_scene_has() -> None:
    scene = by_hand(bands=9).assign_coords(wavelength=("band", np.linspace(500, 900, 9)))
    scene["reflectance"][3, 2, 2] = np.nan
    scene["reflectance"][:, 5, 5] = 0.0
    gaps = np.argwhere(np.isnan(scene.sr.ndvi().values)).tolist()
    assert gaps == [[2, 2], [5, 5]]


def test_a_picture_in_natural_colours() -> None:
    ramp = np.linspace(0.1, 0.5, 40)[:, None] * np.ones(30)
    planes = np.stack([np.full_like(ramp, 0.3), ramp[::-1], ramp, np.zeros_like(ramp)])
    planes[1, :4, :5] = np.nan
    scene = xr.Dataset(
        {"reflectance": (("band", "y", "x"), planes)},
        {"wavelength": ("band", [460.0, 550.0, 650.0, 900.0])},
    )
    picture = scene.sr.rgb()
    assert picture.shape == (40, 30, 3) and picture.dtype == np.uint8
    red, green, blue = picture.transpose(2, 0, 1)
    assert (picture[:4, :5] == 0).all() and (blue[4:] == 128).all()
    assert red[2, 20] < 20 < 240 < red[38, 20] and green[38, 20] < 20 < 240 < green[2, 20]
    assert np.array_equal(scene.transpose("y", "x", "band").sr.rgb(), picture)
    with pytest.raises(UsageError, match="no good band"):
        scene.assign_coords(good_band=("band", np.zeros(4, bool))).sr.rgb()
