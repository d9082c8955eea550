"""What a published scene holds beside its values: positions, quality, overviews, figures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr
from typer.testing import CliRunner

from pipeline import cli
from pipeline.grid import Window
from pipeline.integrity import verify_scene
from pipeline.masks import STATUS
from pipeline.overviews import halve
from pipeline.ray_session import ray_session
from pipeline.stac.catalogue import catalogued
from pipeline.store import SceneStore
from pipeline.swath import upsample_positions
from tests.archives import NODATA, SCALE_FACTOR, counts, run_job
from tests.scenes import write_geotiff, write_zarr
from tests.stac_schemas import validate

ROWS, COLUMNS = 50, 70


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    with ray_session(None):
        yield


def positions() -> tuple[np.ndarray, np.ndarray]:
    """A bent swath across the antimeridian."""
    row, column = np.mgrid[:ROWS, :COLUMNS].astype(float)
    longitude = 179.9 + 3e-3 * column - 5e-4 * row + 1e-6 * column**2
    return 60 - 2e-3 * row - 3e-4 * column, (longitude + 180) % 360 - 180


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    holed = counts(ROWS, COLUMNS)
    holed[:, 10:14, 60:] = NODATA
    holed[3, :, 5] = NODATA
    write_geotiff(folder / "grid.tif", holed, scale=SCALE_FACTOR, nodata=NODATA)
    write_zarr(folder / "swath.zarr", counts(ROWS, COLUMNS, seed=1), scale_factor=SCALE_FACTOR)
    latitude, longitude = positions()
    xr.Dataset({"lat": (("y", "x"), latitude), "lon": (("y", "x"), longitude)}).to_zarr(
        folder / "swath.zarr", mode="a", consolidated=False
    )
    return folder


@pytest.fixture(scope="module", params=["sharded", "plain"])
def output(
    archive: Path,
    model: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    assert run_job(archive, folder, model, layout=request.param, tile=16).exit_status == 0
    return folder


def test_every_object_is_in_the_ledger(output: Path) -> None:
    for name in ("grid", "swath"):
        assert verify_scene(SceneStore(str(output), name), deep=True) == []


def test_a_swath_keeps_its_positions(output: Path) -> None:
    opened = xr.open_zarr(output / "swath.zarr")
    latitude, longitude = upsample_positions(*positions(), Window(0, ROWS, 0, COLUMNS), 4)
    assert np.array_equal(opened["lat"].values, latitude)
    assert np.array_equal(opened["lon"].values, longitude)
    assert set(opened["reflectance"].coords) >= {"lat", "lon"}
    assert opened["lat"].attrs["standard_name"] == "latitude"


def test_quality_tells_what_a_pixel_rests_on(output: Path) -> None:
    opened = xr.open_zarr(output / "grid.zarr")
    quality = opened["quality"].values
    assert quality.shape == (4 * ROWS, 4 * COLUMNS)
    coarse = quality[::4, ::4]
    assert np.array_equal(quality, coarse.repeat(4, 0).repeat(4, 1))
    assert (coarse[10:14, 60:] == STATUS["filled"]).all()
    assert (coarse[:10, 5] == STATUS["partly_filled"]).all()
    assert coarse[0, 6] == STATUS["influenced"]
    assert coarse[40, 40] == 0
    assert np.array_equal(
        quality == STATUS["filled"], np.isnan(opened["reflectance"].values).all(axis=0)
    )
    assert "filled" in opened["quality"].attrs["flag_meanings"]


def test_overviews_are_means_and_placed(output: Path) -> None:
    opened = xr.open_zarr(output / "grid.zarr")
    level = xr.open_zarr(output / "grid.zarr", group="overviews/2")
    expected = halve(opened["reflectance"].values.astype(np.float32))
    difference = np.abs(level["reflectance"].values - expected)
    assert np.array_equal(np.isnan(level["reflectance"].values), np.isnan(expected))
    assert np.nanmax(difference) <= 1.01 * SCALE_FACTOR  # rounded once more
    assert level.rio.transform().a == 2 * opened.rio.transform().a
    assert level.rio.bounds() == pytest.approx(opened.rio.bounds())
    layout = opened.attrs["multiscales"]["layout"]
    assert [entry["asset"] for entry in layout] == ["reflectance", "overviews/2/reflectance"]
    for entry in layout:
        assert (output / "grid.zarr" / entry["asset"]).is_dir()


def test_the_run_leaves_a_valid_catalogue(output: Path) -> None:
    for name in ("grid", "swath"):
        item = json.loads((output / "stac" / "items" / f"{name}.json").read_text())
        validate(item)
        assert item["properties"]["sr:consistency_relative_rmse"] > 0
        for asset in item["assets"].values():
            assert (output / "stac" / "items" / asset["href"]).resolve().exists()
    west, _, east, _ = item["bbox"]
    assert west > 179 and east < -179  # the swath lies across the antimeridian
    assert set(catalogued(str(output))) == {"grid", "swath"}


def test_a_catalogue_that_is_behind_is_made_good(output: Path) -> None:
    folder = output / "stac"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "items.parquet").unlink()
    (folder / "items" / "grid.json").unlink()
    (folder / "quicklooks" / "grid.png").unlink()
    done = CliRunner().invoke(cli.app, ["catalogue", str(output), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert sorted(report["written"]) == ["grid", "swath"] and report["notes"] == []
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    for path in before.keys() - {folder / "items.parquet"}:
        assert after[path] == before[path], path
    again = CliRunner().invoke(cli.app, ["catalogue", str(output)])
    assert "2 items: 0 written, 0 removed" in again.stdout


def test_a_scene_that_cannot_be_made_anew_leaves_the_catalogue(
    archive: Path, model: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(archive, source)
    run_job(source, tmp_path / "out", model, tile=32)
    values = counts(ROWS, COLUMNS)
    values[:] = NODATA
    write_geotiff(source / "grid.tif", values, scale=SCALE_FACTOR, nodata=NODATA)
    report = run_job(source, tmp_path / "out", model, tile=32)
    assert {row.scene_id: row.status for row in report.rows} == {
        "grid": "quarantined",
        "swath": "skipped",
    }
    # Set aside before anything was taken away: the scene of the old source stays, with its item.
    assert set(catalogued(str(tmp_path / "out"))) == {"grid", "swath"}
    SceneStore(str(tmp_path / "out"), "grid").unpublish()
    run_job(source, tmp_path / "out", model, tile=32)
    done = CliRunner().invoke(cli.app, ["catalogue", str(tmp_path / "out")])
    assert "1 items: 0 written, 1 removed" in done.stdout


def test_consistency_is_stated(output: Path) -> None:
    found = xr.open_zarr(output / "grid.zarr").attrs["sr_archive"]["consistency"]
    assert found["relative_rmse"] > 0 and found["bicubic"]["relative_rmse"] > 0
    assert len(found["rmse_per_band"]) == 12


def test_an_inconsistent_scene_is_set_aside_and_not_lost(
    archive: Path, model: Path, tmp_path: Path
) -> None:
    strict = run_job(archive, tmp_path, model, tile=32, include=["grid"], max_inconsistency=1e-7)
    [row] = strict.rows
    assert row.status == "quarantined" and row.reason.startswith("inconsistent: ")
    assert row.inconsistency is not None and "--max-inconsistency 1e-07" in row.reason
    assert not (tmp_path / "grid.zarr" / "zarr.json").exists()
    [again] = run_job(archive, tmp_path, model, tile=32, include=["grid"]).rows
    assert (again.status, again.tiles_kept) == ("published", again.tiles)
    assert again.inconsistency == row.inconsistency
    conserved = run_job(
        archive, tmp_path / "c", model, tile=32, include=["grid"], conserve=True,
        max_inconsistency=1e-4, dtype="float32",
    )  # fmt: skip
    assert conserved.exit_status == 0
