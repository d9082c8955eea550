"""The band policies from plan to published scene, without Ray: bands, roles, seams, records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from model import degradation, load_checkpoint
from pipeline import UsageError, open_scene
from pipeline.calibration import Calibration, calibrate, network_input
from pipeline.enlarging import REACH, enlarge
from pipeline.grid import Window
from pipeline.integrity import verify_scene
from pipeline.plan import make_plan
from pipeline.provenance import RunFacts, provenance
from pipeline.quality import scene_figures
from pipeline.scene_job import Model, OutputOptions
from pipeline.settings import RunSettings
from pipeline.worker import Worker
from tests.archives import counts, write_model
from tests.scenes import listed, write_envi
from tests.test_model import make_card, make_net
from tests.test_tile import compiled, make_scene, smooth, tiled, untiled

FINE = [490.0 + 5 * band for band in range(22)]  # the model's 500 to 580 nm are bands 2, 4, ... 18
OURS = list(range(2, 19, 2))
CPU = torch.device("cpu")


def publish(
    source: Path, output: Path, checkpoint: Path, **options: object
) -> tuple[xr.Dataset, Calibration]:
    """Plan, prepare, all tiles, publish, as the driver does it; one scene, one process."""
    given = RunSettings.from_options(
        {"source": str(source), "output": str(output), "model": str(checkpoint)}
        | {"tile": 16, "precision": "fp32", **options}
    )
    model = Model.of(*load_checkpoint(given.model))
    planned = make_plan(given, model).scenes[0]
    job = planned.job
    assert job is not None, planned.note
    worker = Worker(model.data, "cpu", 2, "fp32")
    assert worker.prepare(job).note == planned.note
    for tile in job.grid:
        worker.process(job, tile)
    store = job.store()
    data = store.calibration()
    assert data is not None
    calibration = Calibration.from_bytes(data)
    facts = RunFacts("run", "now", ("cpu",), ("fp32",))
    records = store.ledger()
    figures = scene_figures(records, calibration, job.grid.scale)
    store.publish(provenance(job, model, facts, calibration, figures, tiles_kept=0), records)
    assert verify_scene(store, deep=True) == []
    return xr.open_zarr(output / f"{job.scene_id}.zarr"), calibration


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One int16 scene of 22 bands, band 20 bad, with a hole."""
    folder = tmp_path_factory.mktemp("source")
    values = counts(21, 26, bands=22)
    values[:, 3:6, 7:9] = -9999
    good = [int(band != 20) for band in range(22)]
    write_envi(
        folder,
        values,
        wavelength=listed(FINE),
        fwhm=listed([6.5] * 22),
        wavelength_units="nanometers",
        bbl=listed(good),
        data_ignore_value=-9999,
        reflectance_scale_factor=10000,
    )
    return folder


def test_match_takes_the_model_s_bands_and_fills_the_rest(
    source: Path, checkpoint: Path, tmp_path: Path
) -> None:
    opened, calibration = publish(source, tmp_path, checkpoint, bands="match")
    assert opened.sizes["band"] == 22 and "band_role" not in opened.coords
    assert np.flatnonzero(opened["good_band"].values).tolist() == OURS
    values = opened["reflectance"].values
    assert np.isnan(np.delete(values, OURS, axis=0)).all()
    gaps = np.isnan(open_scene(str(source / "scene.hdr"))["reflectance"].values[OURS])
    assert np.array_equal(np.isnan(values[OURS]), gaps.repeat(4, 1).repeat(4, 2))
    facts = opened.attrs["sr_archive"]
    assert facts["bands_kind"] == "match" and facts["bands_worst_nm"] == 0.0
    assert facts["bands_upsampled"] == [] and "fill" in facts["bands_note"]
    assert "each band scaled" in calibration.gain_rule


def test_match_upsamples_the_rest_and_tells_which(
    source: Path, checkpoint: Path, tmp_path: Path
) -> None:
    opened, calibration = publish(
        source, tmp_path / "both", checkpoint, bands="match", outside="upsample"
    )
    rest = [band for band in range(22) if band not in [*OURS, 20]]
    assert opened.attrs["sr_archive"]["bands_upsampled"] == rest
    role = opened["band_role"]
    names = role.attrs["flag_meanings"].split()
    assert [names[flag] for flag in role.values] == calibration.bands.roles(22)
    assert names[role.values[20]] == "fill" and not opened["good_band"].values[20]
    scene = open_scene(str(source / "scene.hdr"))["reflectance"].values
    holes = np.isnan(scene).repeat(4, 1).repeat(4, 2)[rest]
    values = opened["reflectance"].values
    assert np.array_equal(np.isnan(values[rest]), holes)
    whole = degradation.upsample(torch.from_numpy(np.nan_to_num(scene[rest])), 4).numpy()
    far = np.ones((21, 26), dtype=bool)
    far[1:8, 5:11] = False  # within the kernel's reach of the hole
    far = far.repeat(4, 0).repeat(4, 1)
    assert np.abs(values[rest] - whole)[:, far].max() <= 0.5e-4 + 1e-6  # half a count
    alone, _ = publish(source, tmp_path / "alone", checkpoint, bands="match")
    assert np.array_equal(alone["reflectance"].values[OURS], values[OURS], equal_nan=True)


def test_resample_publishes_the_model_s_bands(
    source: Path, checkpoint: Path, tmp_path: Path
) -> None:
    opened, calibration = publish(source, tmp_path, checkpoint, bands="resample")
    assert opened.sizes["band"] == 9 and opened["good_band"].values.all()
    assert opened["wavelength"].values.tolist() == FINE[2:19:2]
    assert np.allclose(opened["fwhm"].values, 10.0, atol=0.1)
    encoding = opened["reflectance"].encoding
    assert encoding["dtype"] == np.int16 and encoding["scale_factor"] == 1e-4
    assert calibration.bands.kind == "resample" == opened.attrs["sr_archive"]["bands_kind"]
    assert "each band scaled" in calibration.gain_rule
    assert "resampled to the model's 9" in opened.attrs["sr_archive"]["bands_note"]
    values = opened["reflectance"].values
    assert np.isnan(values[:, 12:24, 28:36]).all() and np.isfinite(values[:, 24:, :]).all()


def test_every_option_of_the_bands_is_in_the_fingerprint(
    source: Path, checkpoint: Path, tmp_path: Path
) -> None:
    model = Model.of(*load_checkpoint(str(checkpoint)))
    options: list[dict[str, object]] = [
        {"bands": "match"},
        {"bands": "match", "outside": "upsample"},
        {"bands": "match", "tolerance": 3.0},
        {"bands": "resample"},
    ]
    prints = set()
    for each in options:
        given = RunSettings(source=str(source), output=str(tmp_path), **each)  # type: ignore[arg-type]
        plan = make_plan(given, model)
        job = plan.scenes[0].job
        assert job is not None and job.source_bands == 22
        assert job.bands == (9 if each["bands"] == "resample" else 22)
        prints.add(job.fingerprint)
    assert len(prints) == len(options)


def test_options_that_contradict_are_refused() -> None:
    where = {"source": "a", "output": "b"}
    with pytest.raises(UsageError, match="needs --bands match"):
        RunSettings.from_options({**where, "bands": "windows", "outside": "upsample"})
    with pytest.raises(UsageError, match="needs --bands match"):
        RunSettings.from_options({**where, "outside": "upsample"})
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="tolerance: "):
            RunSettings.from_options({**where, "tolerance": wrong})
    fine = RunSettings.from_options({**where, "bands": "match", "outside": "upsample"})
    assert OutputOptions.of(fine).outside == "upsample"


def wavelengths(scene: xr.Dataset, centres: list[float]) -> xr.Dataset:
    return scene.assign_coords(wavelength=("band", np.array(centres)))


@pytest.mark.parametrize("tile", [9, 16, 40])
def test_upsampled_bands_have_no_seams(tile: int) -> None:
    net = make_net()
    values = smooth(22, 33, 37)
    values[:, 14:19, 15:18] = np.nan
    scene = wavelengths(make_scene(values, bad=(20,)), FINE)
    calibration = calibrate(
        scene, compiled(net), make_card(net), policy="match", outside="upsample"
    )
    parts, whole = tiled(scene, calibration, net, tile), untiled(scene, calibration, net)
    assert np.array_equal(np.isnan(parts), np.isnan(whole)) and np.isnan(parts[20]).all()
    assert np.nanmax(np.abs(parts - whole)) <= 1e-6


@settings(deadline=None)
@given(st.data())
def test_a_part_is_enlarged_as_the_whole(data: st.DataObject) -> None:
    scale = data.draw(st.sampled_from([2, 3, 4, 8]))
    rows, columns = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 24))
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    bottom = data.draw(st.integers(top + 1, rows))
    right = data.draw(st.integers(left + 1, columns))
    margin = data.draw(st.integers(REACH, 6))
    values = np.random.default_rng(rows * columns).random((3, rows, columns), np.float32) * 1e4
    core = Window(top, bottom, left, right)
    read = Window(
        max(0, top - margin), min(rows, bottom + margin),
        max(0, left - margin), min(columns, right + margin),
    )  # fmt: skip
    part = enlarge(values[:, *read.slices], core.within(read), scale, CPU)
    whole = degradation.upsample(torch.from_numpy(values), scale).numpy()
    assert np.allclose(part, whole[:, *core.scaled(scale).slices], rtol=1e-6, atol=1e-2)


def test_a_scene_in_descending_order_comes_out_as_in_ascending_order() -> None:
    net = make_net()
    values = smooth(9, 30, 28)
    centres = FINE[2:19:2]
    up, down = (wavelengths(make_scene(values[::step]), centres[::step]) for step in (1, -1))
    results = [
        tiled(scene, calibrate(scene, compiled(net), make_card(net)), net, 16)
        for scene in (up, down)
    ]
    assert np.abs(results[0] - results[1][::-1]).max() <= 1e-6


def test_a_bad_band_among_the_matched_is_interpolated_along_the_model() -> None:
    net = make_net()
    values = smooth(22, 30, 28)
    scene = wavelengths(make_scene(values, bad=(6, 5, 7)), FINE)
    calibration = calibrate(scene, compiled(net), make_card(net), policy="match", tolerance=2.0)
    assert 6 in calibration.bands.windows[0].bands and 6 not in calibration.bands.used
    seen = network_input(values, calibration)
    assert np.allclose(seen[6], (seen[4] + seen[8]) / 2)
    assert not seen[5].any()  # nothing looks at it
    own = calibrate(
        scene, compiled(net), make_card(net), policy="match", tolerance=2.0, normalise="bands"
    )
    seen = network_input(values, own)
    assert np.allclose(seen[6], (seen[4] + seen[8]) / 2) and seen.max() < 2
    assert np.isnan(tiled(scene, calibration, net, 16)[6]).all()
