"""The simulated archive: repeatable, readable by the product's readers, and honest about itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import rasterio
import xarray as xr

from infra.landscapes import LANDSCAPES, MATERIALS, spectra
from infra.simulate import (
    EPSG,
    LR_PIXEL,
    NODATA,
    SCALE,
    WAVELENGTHS,
    SceneSpec,
    SimulatedScene,
    observe,
    simulate_archive,
    simulate_truth,
)
from pipeline.catalog import list_scenes
from pipeline.readers import open_scene

SMALL = (
    SceneSpec("small_fields", "fields", 24, 16, "geotiff", 1),
    SceneSpec("small_town", "town", 16, 24, "envi", 2),
    SceneSpec("small_coast", "coast", 24, 24, "zarr", 3, nodata_corner=True),
)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> list[SimulatedScene]:
    folder = tmp_path_factory.mktemp("simulated")
    return simulate_archive(folder / "scenes", folder / "truth", SMALL)


def test_the_catalogue_finds_all_scenes(archive: list[SimulatedScene]) -> None:
    catalogue = list_scenes(str(archive[0].path.parent))
    assert [scene.scene_id for scene in catalogue.scenes] == sorted(s.scene_id for s in SMALL)
    assert not catalogue.rejected


@pytest.mark.parametrize("number", range(len(SMALL)))
def test_the_readers_return_what_was_written(archive: list[SimulatedScene], number: int) -> None:
    scene, spec = open_scene(str(archive[number].path)), SMALL[number]
    counts = observe(spec, simulate_truth(spec))
    expected = np.where(counts == NODATA, np.nan, counts * 1e-4)
    np.testing.assert_allclose(scene["reflectance"].values, expected, atol=1e-6)
    np.testing.assert_allclose(scene["wavelength"], WAVELENGTHS)
    assert scene["good_band"].values.all()
    assert scene.rio.crs.to_epsg() == EPSG
    west, south, east, north = scene.rio.bounds()
    assert (east - west, north - south) == (spec.columns * LR_PIXEL, spec.rows * LR_PIXEL)


def test_every_file_says_that_it_is_simulated(archive: list[SimulatedScene]) -> None:
    paths = {scene.spec.format: scene.path for scene in archive}
    with rasterio.open(paths["geotiff"]) as file:
        assert file.tags()["simulated"] == "true"
    assert "Simulated scene" in paths["envi"].with_suffix(".hdr").read_text()
    assert xr.open_zarr(paths["zarr"]).attrs["simulated"] is True
    assert all(open_scene(str(path)).attrs["sensor"] == "simulated" for path in paths.values())


def test_the_same_seed_gives_the_same_scene() -> None:
    spec = SMALL[0]
    first, second = simulate_truth(spec), simulate_truth(spec)
    assert np.array_equal(first, second)
    assert np.array_equal(observe(spec, first), observe(spec, second))
    assert not np.array_equal(first, simulate_truth(replace(spec, seed=9)))


def test_the_observation_is_the_blurred_truth_with_little_noise(
    archive: list[SimulatedScene],
) -> None:
    truth = np.load(archive[0].truth)
    assert truth.shape == (len(WAVELENGTHS), 24 * SCALE, 16 * SCALE)
    blocks = truth.reshape(len(WAVELENGTHS), 24, SCALE, 16, SCALE).mean(axis=(2, 4))
    seen = open_scene(str(archive[0].path))["reflectance"].values
    assert 0.0005 < np.sqrt(np.mean((seen - blocks) ** 2)) < 0.02


def test_only_the_coast_has_nodata(archive: list[SimulatedScene]) -> None:
    for scene in archive:
        missing = np.isnan(open_scene(str(scene.path))["reflectance"].values)
        assert missing.any() == scene.spec.nodata_corner
        assert np.array_equal(missing.any(axis=0), missing.all(axis=0))


@pytest.mark.parametrize("name", sorted(LANDSCAPES))
def test_landscapes_are_physical(name: str) -> None:
    landscape = LANDSCAPES[name](np.random.default_rng(0), (64, 48))
    shares = landscape.shares
    assert shares.min() >= 0.0
    np.testing.assert_allclose(shares.sum(axis=0), 1.0, atol=1e-6)
    reflectance = landscape.reflectance(WAVELENGTHS)
    assert reflectance.shape == (len(WAVELENGTHS), 64, 48)
    assert 0.0 < reflectance.min() < reflectance.max() < 1.0


def test_spectra_have_the_shapes_of_their_materials() -> None:
    curves = dict(zip(MATERIALS, spectra(WAVELENGTHS), strict=True))
    green, red, edge = (int(np.abs(WAVELENGTHS - nm).argmin()) for nm in (550, 670, 700))
    vegetation = curves["vegetation"]
    assert vegetation[green] > vegetation[red]
    assert vegetation[edge] > 2 * vegetation[red]
    assert np.all(np.diff(curves["soil"]) > 0)
    assert curves["clear water"].argmax() < green
