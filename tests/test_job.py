"""The whole job on a real Ray: publish, skip, resume, quarantine, the same bytes everywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401
import scipy.io
import xarray as xr

from infra.local_s3 import LocalS3
from pipeline import UsageError, events, open_scene
from pipeline.integrity import verify_scene
from pipeline.job import run
from pipeline.publishing import Publisher
from pipeline.ray_session import ray_session
from pipeline.run_report import SceneRow
from pipeline.scene_job import SceneJob
from pipeline.seams import SeamCertificate
from pipeline.settings import RunSettings
from pipeline.store import SceneStore
from tests.archives import (
    array_bytes,
    command,
    counts,
    run_job,
    sr_archive,
    write_archive,
)
from tests.processes import running
from tests.scenes import real, write_envi, write_geotiff, write_zarr


@pytest.fixture(scope="module", autouse=True)
def ray_cluster(s3: LocalS3) -> Iterator[None]:
    """One Ray for the tests of this file, with the way to S3 in its workers' environment."""
    with ray_session(None):
        yield


@pytest.fixture(scope="module")
def output(archive: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, super-resolved once."""
    folder = tmp_path_factory.mktemp("output")
    report = run_job(archive, folder, model)
    assert report.exit_status == 0
    return folder


def test_actors_do_other_scenes_while_one_is_published(
    archive: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first publishing ends only when a tile of another scene is done after it began."""
    begun, later = threading.Event(), threading.Event()
    publish = Publisher.publish
    waited = []

    def held(self: Publisher, job: SceneJob, row: SceneRow, seams: SeamCertificate) -> None:
        if not begun.is_set():
            begun.set()
            waited.append(later.wait(60))
        publish(self, job, row, seams)

    def listen(event: events.Event) -> None:
        if isinstance(event, events.TileFinished) and begun.is_set():
            later.set()

    monkeypatch.setattr(Publisher, "publish", held)
    settings = RunSettings(source=str(archive), output=str(tmp_path), model=str(model), tile=16)
    report = run(settings, [listen])
    assert waited == [True]
    assert report.count("published") == 3


def test_every_scene_is_published(output: Path) -> None:
    for name, shape in {"tiff": (160, 208), "envi": (132, 80), "store": (96, 96)}.items():
        opened = xr.open_zarr(output / f"{name}.zarr")
        assert opened["reflectance"].shape == (12, *shape)
        assert verify_scene(SceneStore(str(output), name), deep=True) == []


def test_output_keeps_scale_nodata_bands_and_place(archive: Path, output: Path) -> None:
    source = open_scene(str(archive / "tiff.tif"))
    opened = xr.open_zarr(output / "tiff.zarr")
    encoding = opened["reflectance"].encoding
    assert encoding["dtype"] == np.int16 and encoding["scale_factor"] == 1e-4
    assert encoding["_FillValue"] == -32768
    gaps = np.isnan(opened["reflectance"].values)
    expected = np.isnan(source["reflectance"].values).repeat(4, 1).repeat(4, 2)
    expected[~opened["good_band"].values] = True
    assert np.array_equal(gaps, expected)
    assert opened["good_band"].values.tolist() == source["good_band"].values.tolist()
    assert np.array_equal(opened["wavelength"], source["wavelength"])
    assert np.array_equal(opened["fwhm"], source["fwhm"])
    assert opened.rio.crs.to_epsg() == 32633
    assert np.allclose(opened.rio.bounds(), source.rio.bounds(), rtol=0, atol=1e-6)
    assert opened.rio.transform().a == source.rio.transform().a / 4


def test_output_is_close_to_the_source_where_it_should_be(archive: Path, output: Path) -> None:
    """An untrained network is no good, but it may not shift, scale or flip the scene."""
    source = open_scene(str(archive / "store.zarr"))["reflectance"].values
    result = xr.open_zarr(output / "store.zarr")["reflectance"].values
    assert result.shape[1] == 4 * source.shape[1]
    assert np.isfinite(result).all()


def test_provenance_is_complete_and_holds_no_path_of_a_secret(output: Path, model: Path) -> None:
    facts = xr.open_zarr(output / "tiff.zarr").attrs["sr_archive"]
    for name in (
        "fingerprint", "source", "source_version", "model", "weights_sha256", "card", "scale",
        "options", "code_version", "packages", "device", "run_id", "run_started", "published",
        "bands_kind", "normalisation", "attention_statistics_sha256",
    ):  # fmt: skip
        assert facts[name] not in (None, ""), name
    assert facts["bands_kind"] == "windows" and facts["scale"] == 4


def test_a_second_run_does_nothing(archive: Path, output: Path, model: Path) -> None:
    before = array_bytes(output / "tiff.zarr")
    report = run_job(archive, output, model)
    assert [row.status for row in report.rows] == ["skipped"] * 3
    assert array_bytes(output / "tiff.zarr") == before


@pytest.fixture(scope="module")
def exact(archive: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`output` without bfloat16, which auto takes on some processors."""
    path = tmp_path_factory.mktemp("exact")
    run_job(archive, path, model, precision="fp32")
    return path


@pytest.mark.parametrize("tile", [13, 24, 48])
def test_any_tile_gives_the_same_values(
    archive: Path, exact: Path, model: Path, tmp_path: Path, tile: int
) -> None:
    run_job(archive, tmp_path, model, tile=tile, dtype="float32", precision="fp32")
    for name in ("tiff", "envi", "store"):
        ours = xr.open_zarr(tmp_path / f"{name}.zarr")["reflectance"].values
        theirs = xr.open_zarr(exact / f"{name}.zarr")["reflectance"].values
        # theirs is rounded to whole counts of 1e-4
        assert np.nanmax(np.abs(ours - theirs)) <= 0.5e-4 + 1e-6
        assert np.array_equal(np.isnan(ours), np.isnan(theirs))


def test_changed_source_model_or_options_replace(
    archive: Path, model: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "out"
    write_zarr_only(source, seed=4)
    assert statuses(run_job(source, target, model)) == {"one": "published"}
    first = array_bytes(target / "one.zarr")
    assert statuses(run_job(source, target, model, tile=24)) == {"one": "published"}
    assert statuses(run_job(source, target, model, tile=16)) == {"one": "published"}
    assert array_bytes(target / "one.zarr") == first
    write_zarr_only(source, seed=5)
    assert statuses(run_job(source, target, model, stale="keep")) == {"one": "skipped"}
    assert array_bytes(target / "one.zarr") == first
    assert statuses(run_job(source, target, model)) == {"one": "published"}
    assert array_bytes(target / "one.zarr") != first


def write_zarr_only(folder: Path, seed: int) -> None:
    folder.mkdir(exist_ok=True)
    write_zarr(folder / "one.zarr", counts(24, 30, seed=seed), scale_factor=1e-4)


def statuses(report: object) -> dict[str, str]:
    return {row.scene_id: row.status for row in report.rows}  # type: ignore[attr-defined]


def test_bad_scenes_are_set_aside_and_the_others_finish(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "out"
    write_archive(source)
    whole = Path(write_geotiff(source / "cut.tif", counts(64, 64), scale=1e-4)).read_bytes()
    (source / "cut.tif").write_bytes(whole[: len(whole) // 2])
    write_envi(source, counts(20, 20), name="headeronly")
    (source / "headeronly.img").unlink()
    write_geotiff(source / "rgb.tif", counts(30, 30, bands=3), tags=False)
    write_geotiff(source / "empty.tif", np.full((12, 30, 30), -32768, np.int16), nodata=-32768)
    ridden = counts(30, 30).astype(np.float32) * 1e-4
    ridden[np.random.default_rng(0).random(ridden.shape) < 0.3] = np.nan
    write_zarr(source / "ridden.zarr", ridden)
    scipy.io.savemat(source / "nothing.mat", {"text": "no cube"})
    (source / "noise.npz").write_bytes(os.urandom(4000))

    report = run_job(source, target, model)

    codes = {row.scene_id: row.reason.split(":")[0] for row in report.rows if row.reason}
    assert codes == {
        "cut": "truncated",
        "headeronly": "missing-data",
        "rgb": "too-few-bands",
        "empty": "no-valid-pixels",
        "ridden": "not-finite",
        "nothing": "no-cube",
        "noise": codes["noise"],
    }
    assert codes["noise"] in ("unreadable", "bad-header", "unsupported", "truncated")
    assert report.exit_status == 3
    assert {row.scene_id for row in report.rows if row.status == "published"} == {
        "tiff", "envi", "store",
    }  # fmt: skip
    record = json.loads((target / "_sr-archive" / "quarantine" / "rgb.json").read_text())
    assert record["code"] == "too-few-bands" and "9" in record["message"]
    for scene_id in codes:
        assert not (target / f"{scene_id}.zarr").exists()


def test_a_mended_scene_leaves_quarantine(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_envi(source, counts(20, 20), name="late")
    data = (source / "late.img").read_bytes()
    (source / "late.img").unlink()
    assert run_job(source, target, model).exit_status == 3
    (source / "late.img").write_bytes(data)
    assert run_job(source, target, model).exit_status == 0
    assert not list((target / "_sr-archive" / "quarantine").iterdir())


def test_two_sources_of_one_id_are_told_apart(model: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_geotiff(source / "same.tif", counts(20, 20), scale=1e-4)
    write_zarr(source / "same.zarr", counts(20, 20), scale_factor=1e-4)
    report = run_job(source, target, model)
    assert sorted(row.status for row in report.rows) == ["published", "quarantined"]
    duplicate = next(row for row in report.rows if row.status == "quarantined")
    assert duplicate.scene_id.startswith("same.duplicate-") and "duplicate-id" in duplicate.reason
    assert xr.open_zarr(target / "same.zarr")["reflectance"].shape == (12, 80, 80)


def test_a_killed_actor_is_replaced(model: Path, tmp_path: Path) -> None:
    """The process of an actor is killed once in mid-run; the run does not notice."""
    source = tmp_path / "source"
    source.mkdir()
    write_zarr(source / "big.zarr", counts(128, 128), scale_factor=1e-4)
    target = tmp_path / "out"
    killed: list[int] = []
    retried: list[events.TileRetried] = []

    def kill_once(event: events.Event) -> None:
        if isinstance(event, events.TileRetried):
            retried.append(event)
        if isinstance(event, events.TileFinished) and not killed:
            killed.append(next(running("ray::TileActor")).pid)
            os.kill(killed[0], signal.SIGKILL)

    settings = RunSettings(source=str(source), output=str(target), model=str(model), tile=16)
    report = run(settings, [kill_once])
    assert killed and retried
    assert report.exit_status == 0
    undisturbed = tmp_path / "undisturbed"
    run_job(source, undisturbed, model)
    assert array_bytes(target / "big.zarr") == array_bytes(undisturbed / "big.zarr")


@pytest.mark.slow
@pytest.mark.long  # the kill trials, of which some are in every integration, do the same
def test_a_killed_run_resumes_to_the_same_bytes(model: Path, tmp_path: Path) -> None:
    """SIGKILL to the driver at random moments; the last run completes what is left."""
    source, target = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_zarr(source / "big.zarr", counts(192, 192), scale_factor=1e-4)
    undisturbed = tmp_path / "undisturbed"
    run_job(source, undisturbed, model)
    arguments = command("run", source, target, "--model", model, "--tile", 16)
    tiles = target / "_sr-archive" / "scenes" / "big" / "tiles"
    random = np.random.default_rng()
    for goal in sorted(int(number) for number in random.integers(3, 120, 2)):
        process = subprocess.Popen(arguments, start_new_session=True, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if tiles.is_dir() and len(list(tiles.glob("*.json"))) >= goal:
                break
            time.sleep(0.02)
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        with pytest.raises(FileNotFoundError):
            xr.open_zarr(target / "big.zarr")
    # workers of the killed driver may outlive it for a moment and finish what they hold
    report = json.loads(sr_archive(*arguments[3:], "--json").stdout)
    row = report["rows"][0]
    assert row["status"] == "published"
    assert 3 <= row["tiles_kept"] < row["tiles"] == 144
    assert array_bytes(target / "big.zarr") == array_bytes(undisturbed / "big.zarr")


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM]
)
def test_an_interrupted_run_gives_back_what_it_holds(
    model: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """Ctrl-C, and what Kubernetes and Prefect send; Ray's own handler would abort the process."""
    source, target = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    write_zarr(source / "big.zarr", counts(192, 192), scale_factor=1e-4)
    process = subprocess.Popen(
        command("run", source, target, "--model", model, "--tile", 16),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # Shells start programs in the background with SIGINT ignored, these tests perhaps too.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not list(target.glob("_sr-archive/scenes/big/tiles/*.json")):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors == "interrupted; the same command goes on where this run stopped\n"
    assert not list(target.glob("_sr-archive/leases/*.json"))


def test_s3_gives_the_same_bytes(
    s3: LocalS3, archive: Path, output: Path, model: Path, tmp_path: Path
) -> None:
    base = f"s3://{s3.bucket}/job"
    filesystem = fsspec.filesystem("s3")
    filesystem.put(str(archive), f"{base}/source/", recursive=True)
    report = run_job(f"{base}/source/archive", f"{base}/out", model)
    assert report.exit_status == 0
    filesystem.get(f"{base}/out/", str(tmp_path / "copy") + "/", recursive=True)
    for name in ("tiff", "envi", "store"):
        assert array_bytes(tmp_path / "copy" / f"{name}.zarr") == array_bytes(
            output / f"{name}.zarr"
        )
        opened = xr.open_zarr(f"{base}/out/{name}.zarr")
        assert opened["reflectance"].sizes["band"] == 12
    again = run_job(f"{base}/source/archive", f"{base}/out", model)
    assert set(statuses(again).values()) == {"skipped"}


def test_gdal_reads_the_plain_layout(archive: Path, model: Path, tmp_path: Path) -> None:
    run_job(archive, tmp_path, model, layout="plain", include=["tiff"])
    with rasterio.open(f'ZARR:"{tmp_path / "tiff.zarr"}":/reflectance') as opened:
        assert opened.crs.to_epsg() == 32633
        expected = xr.open_zarr(tmp_path / "tiff.zarr").rio.transform()
        assert np.allclose(tuple(opened.transform), tuple(expected), rtol=0, atol=1e-6)
        ours = xr.open_zarr(tmp_path / "tiff.zarr", mask_and_scale=False)["reflectance"]
        assert np.array_equal(opened.read(4), ours[3].values)


def test_rotated_scene_keeps_its_corners(model: Path, tmp_path: Path) -> None:
    affine = rasterio.Affine.translation(5e5, 4e6) @ rasterio.Affine.rotation(31)
    affine = affine @ rasterio.Affine.scale(7.3, -7.3)
    (tmp_path / "in").mkdir()
    write_geotiff(tmp_path / "in" / "turned.tif", counts(20, 26), transform=affine)
    run_job(tmp_path / "in", tmp_path / "out", model)
    opened = xr.open_zarr(tmp_path / "out" / "turned.zarr")
    fine = rasterio.Affine.from_gdal(
        *(float(value) for value in opened["spatial_ref"].attrs["GeoTransform"].split())
    )
    for column, row in [(0, 0), (26, 0), (0, 20), (26, 20)]:
        assert np.allclose(fine @ (4 * column, 4 * row), affine @ (column, row), rtol=0, atol=1e-6)
    assert opened.rio.crs.to_epsg() == 32633


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "/nowhere.safetensors"}, "no checkpoint"),
        ({"source": "/nowhere/at/all"}, "nowhere"),
        ({"devices": "cuda"}, "no GPU"),
        ({"workers": 999}, "CPUs"),
    ],
)
def test_bad_options_stop_before_any_work(
    archive: Path, model: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    facts = {
        "source": str(archive),
        "output": str(tmp_path / "out"),
        "model": str(model),
        "tile": 16,
    }
    with pytest.raises(UsageError, match=message):
        run(RunSettings(**{**facts, **options}))  # type: ignore[arg-type]
    assert not list(tmp_path.glob("out/*.zarr"))


@pytest.mark.slow
def test_enmap_scene_as_accepted(tmp_path: Path) -> None:
    """The real scene with the shipped model: size, bands, place; read by xarray alone."""
    path = real("enmap_potsdam/enmap_potsdam_A_64x96.tif")
    report = sr_archive("run", path, tmp_path)
    assert report.returncode == 0, report.stderr
    opened = xr.open_zarr(tmp_path / "enmap_potsdam_A_64x96.zarr")
    assert dict(opened["reflectance"].sizes) == {"band": 224, "y": 256, "x": 384}
    assert np.isfinite(opened["wavelength"].values).all()
    empty = np.isnan(opened["reflectance"].values).all(axis=(1, 2))
    assert empty.sum() == 6 and not opened["good_band"].values[empty].any()
    with rasterio.open(path) as source:
        assert opened.rio.crs == source.crs
        assert np.allclose(opened.rio.bounds(), source.bounds, rtol=0, atol=1e-6)
