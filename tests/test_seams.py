"""The seam certificate: tiles that meet are published with it, others are set aside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from pipeline.actors import ActorPool, Failure, TileActor
from pipeline.calibration import Calibration
from pipeline.errors import SceneError
from pipeline.grid import TileGrid, Window
from pipeline.job import run
from pipeline.ray_session import ray_session
from pipeline.scene_job import SceneJob
from pipeline.seams import SeamCertificate, borders_of, choose_borders
from pipeline.settings import RunSettings
from pipeline.store import CALIBRATION, SceneStore
from pipeline.worker import Worker
from tests.archives import SCALE_FACTOR, counts, planned, run_job, write_tiles
from tests.scenes import write_zarr

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One scene of 3 x 3 tiles of 16, the last ones narrow, with a gap on a border."""
    folder = tmp_path_factory.mktemp("source")
    values = counts(35, 41, bands=12)
    values[:, 14:18, 30:34] = -32768
    write_zarr(folder / "scene.zarr", values, scale_factor=SCALE_FACTOR, _FillValue=-32768)
    return folder


def worked(source: Path, output: Path, model: Path, **options: Any) -> tuple[Worker, SceneJob]:
    """All tiles written, nothing published."""
    worker, *_, plan = planned(str(source), str(output), model, **options)
    [scene] = plan.work
    assert scene.job is not None
    write_tiles(worker, scene.job)
    return worker, scene.job


def all_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.seams._TILES_PER_BORDER", 0.1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"conserve": True},
        {"dtype": "float32", "normalise": "bands"},
        {"layout": "plain"},
    ],
)
def test_tiles_of_frozen_attention_meet(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any
) -> None:
    all_borders(monkeypatch)
    worker, job = worked(source, tmp_path, model, **options)
    found = worker.certify(job, 100)
    assert found.borders == found.borders_of_scene == 12
    assert found.values > 12 * 10000
    assert found.largest_difference < 3e-6, found
    assert found.largest_physical <= (0 if job.options.dtype == "float32" else SCALE_FACTOR) + 1e-5
    assert found.checked("scene", ["fp32"])["bound"] == 5e-6


def test_attention_per_tile_leaves_seams_that_are_told(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_borders(monkeypatch)
    worker, job = worked(source, tmp_path, model, attention="global", dtype="float32")
    found = worker.certify(job, 100)
    assert found.largest_difference > 8e-6, found
    assert found.checked("global", ["fp32"])["bound"] is None
    with pytest.raises(SceneError, match="seams: computed across"):
        found.checked("scene", ["fp32"])


def test_a_tile_of_another_model_is_found(
    source: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a worker with damaged memory, or constants of another run."""
    all_borders(monkeypatch)
    worker, job = worked(source, tmp_path, model)
    context, output = worker._open(job)
    gains = context.calibration.gains * np.float32(1.02)
    strange = replace(context, calibration=replace(context.calibration, gains=gains))
    worker._scenes[job.fingerprint] = (strange, output)
    worker.process(job, next(iter(job.grid)))
    worker._scenes[job.fingerprint] = (context, output)
    with pytest.raises(SceneError, match="seams"):
        worker.certify(job, 100).checked("scene", ["fp32"])


def test_bounds_are_of_the_coarsest_precision() -> None:
    found = SeamCertificate(1, 1, 10, largest_difference=1e-3)
    assert found.checked("scene", ["fp32", "bf16"])["bound"] == 5e-3
    with pytest.raises(SceneError):
        found.checked("scene", ["fp32"])
    with pytest.raises(SceneError):
        replace(found, largest_difference=float("nan")).checked("scene", ["bf16"])


def test_borders_are_of_the_seed_alone_and_lie_between_tiles() -> None:
    grid = TileGrid(100, 75, 16, 4)
    assert borders_of(grid) == 7 * 4 + 6 * 5
    one = choose_borders(grid, 2, "a")
    assert one == choose_borders(grid, 2, "a") != choose_borders(grid, 2, "b")
    seen = set()
    for seed in range(60):
        [border] = choose_borders(grid, 1, str(seed))
        first, second = (tuple(map(int, key.split("."))) for key in border.tiles)
        assert (second[0] - first[0], second[1] - first[1]) in ((0, 1), (1, 0))
        strip = border.strip
        assert 0 <= strip.top < strip.bottom <= 100 and 0 <= strip.left < strip.right <= 75
        held = {
            (row // 16, column // 16)
            for row in range(strip.top, strip.bottom)
            for column in range(strip.left, strip.right)
        }
        assert held == {first, second}
        seen.add(border.tiles)
    assert len(seen) > 20


@pytest.mark.parametrize(("size", "borders"), [((16, 16), 0), ((5, 16), 0), ((17, 16), 1)])
def test_small_scenes(size: tuple[int, int], borders: int) -> None:
    chosen = choose_borders(TileGrid(*size, 16, 4), 2, "seed")
    assert len(chosen) == borders
    if borders:
        assert chosen[0].strip == Window(12, 17, 0, 16)


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    with ray_session(None):
        yield


def seams_of(output: Path) -> dict[str, Any]:
    with xr.open_zarr(output / "scene.zarr") as scene:
        found: dict[str, Any] = scene.attrs["sr_archive"]["seams"]
        return found


def test_a_run_publishes_the_certificate(
    ray_cluster: None, source: Path, model: Path, tmp_path: Path
) -> None:
    assert run_job(source, tmp_path / "a", model).exit_status == 0
    found = seams_of(tmp_path / "a")
    assert (found["borders"], found["borders_of_scene"]) == (1, 12)
    assert found["largest_difference"] <= found["bound"] and found["values"] > 1000
    assert run_job(source, tmp_path / "b", model, seam_borders=0).exit_status == 0
    none = seams_of(tmp_path / "b")
    assert (none["borders"], none["values"]) == (0, 0)


def test_a_run_sets_a_scene_with_seams_aside(
    ray_cluster: None, source: Path, model: Path, tmp_path: Path
) -> None:
    """Its tiles were made with other constants than those of the ledger; the run resumes it."""
    _, job = worked(source, tmp_path, model)
    store = SceneStore(str(tmp_path), job.scene_id)
    calibration = Calibration.from_bytes(store.calibration() or b"")
    gains = calibration.gains * np.float32(1.5)
    store.put_state(CALIBRATION, replace(calibration, gains=gains).to_bytes())
    options = {"tile": 16, "precision": "fp32"}
    settings = RunSettings(
        source=str(source),
        output=str(tmp_path),
        model=str(model),
        **options,  # type: ignore[arg-type]
    )
    report = run(settings)
    [row] = report.rows
    assert row.status == "quarantined" and row.reason.startswith("seams: "), row
    assert not (tmp_path / "scene.zarr" / "zarr.json").exists()
    report = run(settings.model_copy(update={"seam_borders": 0}))
    assert report.rows[0].status == "published"


class MortalActor(TileActor):
    """Dies at its first comparison of borders."""

    def certify(self, job: SceneJob, borders: int) -> SeamCertificate | Failure:
        mark = Path(job.output) / "died"
        if not mark.exists():
            mark.touch()
            os._exit(1)
        return super().certify(job, borders)


def test_an_actor_that_dies_over_borders_is_replaced(
    ray_cluster: None,
    source: Path,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.job.ActorPool", partial(ActorPool, actor=MortalActor))
    report = run_job(source, tmp_path, model)
    assert (tmp_path / "died").exists()
    assert report.exit_status == 0, report.rows
    assert seams_of(tmp_path)["borders"] == 1
