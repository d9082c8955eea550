"""The flow on a real Prefect server with a process worker, and its parts without one."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import xarray as xr
import yaml

from flows.artifacts import OUTPUT_KEY, SCENES_KEY, SUMMARY_KEY, summary
from flows.listener import FINETUNE_PROGRESS_KEY, PROGRESS_KEY, PrefectListener
from flows.sr_archive import sr_archive
from flows.sr_finetune import CURVES_KEY, sr_finetune
from flows.sr_finetune import SUMMARY_KEY as SUMMARY_KEY_OF_FINETUNING
from infra.prefect_local import DEPLOYMENT, NEW_ACQUISITIONS, ROOT, LocalPrefect
from infra.processes import StartError
from infra.simulate import SceneSpec, simulate_archive
from model import SSPSR, Card, SSPSRConfig, load_checkpoint, save_checkpoint
from model.card import Architecture
from pipeline import events
from pipeline.errors import UsageError
from pipeline.finetune.settings import FinetuneSettings
from pipeline.run_report import RunReport, SceneRow
from pipeline.settings import RunSettings

FINETUNE_DEPLOYMENT = "sr-finetune/default"
TRAINING_SCENES = (SceneSpec("large_fields", "fields", 48, 64, "geotiff", 1),)
SCENES = (
    SceneSpec("small_fields", "fields", 24, 16, "geotiff", 1),
    SceneSpec("small_coast", "coast", 24, 24, "zarr", 3, nodata_corner=True),
)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    simulate_archive(folder, tmp_path / "truth", SCENES)
    (folder / "broken.tif").write_bytes(b"II*\0 and nothing more")
    return folder


def deploy_run(
    prefect: LocalPrefect, *parameters: str, deployment: str = DEPLOYMENT
) -> subprocess.CompletedProcess[str]:
    """The command that the documents give to operators."""
    options = [part for parameter in parameters for part in ("-p", parameter)]
    command = [sys.executable, "-m", "prefect", "deployment", "run", deployment, *options]
    return subprocess.run(
        [*command, "--watch"],
        cwd=ROOT,
        env=prefect.environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )


def artifacts(prefect: LocalPrefect, key: str) -> list[dict[str, Any]]:
    """Of the last flow run."""
    of_run = {"any_": [last_run(prefect)["id"]]}
    query = {"artifacts": {"key": {"any_": [key]}, "flow_run_id": of_run}}
    found: list[dict[str, Any]] = prefect.request("/artifacts/filter", query)
    return found


def last_run(prefect: LocalPrefect) -> dict[str, Any]:
    query = {"sort": "EXPECTED_START_TIME_DESC", "limit": 1}
    runs = prefect.request("/flow_runs/filter", query)
    run: dict[str, Any] = runs[0]
    return run


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_deployed_run_publishes_and_leaves_artifacts(
    prefect: LocalPrefect, archive: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    done = deploy_run(prefect, f"source={archive}", f"output={output}")
    assert done.returncode == 0, done.stdout + done.stderr

    state = last_run(prefect)["state"]
    assert state["type"] == "COMPLETED"
    assert state["message"] == "2 published, 0 skipped, 1 quarantined (broken)"

    for spec in SCENES:
        scene = xr.open_zarr(output / f"{spec.scene_id}.zarr")
        assert scene["reflectance"].shape == (31, 4 * spec.rows, 4 * spec.columns)
        assert np.isfinite(scene["reflectance"].values).any()

    (table,) = artifacts(prefect, SCENES_KEY)
    assert "small_coast" in table["data"]
    assert "quarantined" in table["data"]
    (progress,) = artifacts(prefect, PROGRESS_KEY)
    assert float(progress["data"]) == 100.0
    assert "2 published" in progress["description"]
    (text,) = artifacts(prefect, SUMMARY_KEY)
    assert "xarray.open_zarr" in text["data"] and "data:image/png;base64," in text["data"]
    (link,) = artifacts(prefect, OUTPUT_KEY)
    assert str(output) in link["data"]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(420)
def test_a_deployed_fine_tuning_leaves_a_model_and_artifacts(
    prefect: LocalPrefect, tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    simulate_archive(archive, tmp_path / "truth", TRAINING_SCENES)
    (archive / "broken.tif").write_bytes(b"II*\0 and nothing more")
    parent, out = tmp_path / "parent.safetensors", tmp_path / "models"
    net = SSPSR(SSPSRConfig(31, 4, features=32, blocks=1))
    architecture = Architecture(**net.config.to_dict())
    save_checkpoint(parent, net, Card(name="small", architecture=architecture))
    given = {"source": archive, "out": out, "parent": parent, "name": "mine", "epochs": 4}
    parameters = [f"{name}={value}" for name, value in given.items()]
    done = deploy_run(prefect, *parameters, deployment=FINETUNE_DEPLOYMENT)
    assert done.returncode == 0, done.stdout + done.stderr

    state = last_run(prefect)["state"]
    assert state["type"] == "COMPLETED"
    assert state["message"].startswith("mine, ") and "against bicubic" in state["message"]
    assert load_checkpoint(out / "mine.safetensors")[1].name == "mine"
    (picture,) = artifacts(prefect, CURVES_KEY)
    assert picture["data"].startswith("data:image/svg+xml;base64,")
    (progress,) = artifacts(prefect, FINETUNE_PROGRESS_KEY)
    assert float(progress["data"]) == 100.0
    (text,) = artifacts(prefect, SUMMARY_KEY_OF_FINETUNING)
    assert "left out: broken" in text["data"] and "| bicubic |" in text["data"]


@pytest.mark.slow
@pytest.mark.timeout(420)
def test_a_bad_option_fails_with_one_line(prefect: LocalPrefect, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    done = deploy_run(prefect, f"source={missing}", f"output={tmp_path / 'output'}")
    assert done.returncode != 0
    state = last_run(prefect)["state"]
    assert state["type"] == "FAILED"
    assert str(missing) in state["message"]
    assert "\n" not in state["message"]
    assert not (tmp_path / "output").exists()


def test_the_deployments_fit_the_flows() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    flows = (sr_archive, sr_archive, sr_finetune)
    for deployment, flow in zip(deployments, flows, strict=True):
        path, _, name = deployment["entrypoint"].partition(":")
        assert (ROOT / path).is_file()
        assert name == flow.fn.__name__
        assert set(deployment.get("parameters", {})) <= set(flow.parameters.properties)
        known = (DEPLOYMENT, NEW_ACQUISITIONS, FINETUNE_DEPLOYMENT)
        assert f"{flow.name}/{deployment['name']}" in known


def test_every_setting_is_a_described_parameter() -> None:
    parameters = sr_archive.parameters.properties
    of_flow = {"fail_on_quarantine", "retries", "retry_delay_seconds", "time_limit_hours"}
    assert set(RunSettings.model_fields) | of_flow == set(parameters)
    assert all(parameter.get("description") for parameter in parameters.values())
    assert sr_archive.parameters.required == ["source", "output"]
    parameters = sr_finetune.parameters.properties
    assert set(FinetuneSettings.model_fields) == set(parameters)
    assert all(parameter.get("description") for parameter in parameters.values())
    assert sr_finetune.parameters.required == ["source", "out"]


def test_absent_parameters_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SR_ARCHIVE_TILE", "48")
    given = {"source": "a", "output": "b", "tile": None, "dtype": "float32"}
    settings = RunSettings.from_options(given)
    assert (settings.tile, settings.dtype) == (48, "float32")
    with pytest.raises(UsageError, match=r"^tile: "):
        RunSettings.from_options({**given, "tile": 3})


def test_the_summary_names_only_the_first_quarantined() -> None:
    rows = [SceneRow(f"s{number}", "quarantined", "truncated: short") for number in range(7)]
    report = RunReport("run", "2026-01-01T00:00:00", [SceneRow("good", "published"), *rows])
    assert summary(report) == "1 published, 0 skipped, 7 quarantined (s0, s1, s2, s3, s4, ...)"


def test_the_listener_survives_a_server_that_is_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object, **__: object) -> None:
        raise ConnectionError("no server")

    monkeypatch.setattr("flows.listener.create_progress_artifact", lambda **_: uuid4())
    monkeypatch.setattr("flows.listener.update_progress_artifact", away)
    with caplog.at_level(logging.INFO):
        listener = PrefectListener(logging.getLogger("flow"))
        for event in (
            events.RunPlanned("run", scenes=1, tiles=2, tiles_kept=0, pixel_bands=20),
            events.SceneStarted("s", tiles=2, tiles_kept=0),
            events.TileFinished("s", "0.0", pixel_bands=10, seconds=0.1),
            events.TileRetried("s", "0.1", attempt=1, reason="worker died"),
            events.SceneFinished("s", "quarantined", "tile-failed: 0.1"),
            events.RunFinished("run", published=0, skipped=0, quarantined=1, seconds=1.0),
        ):
            listener(event)
    assert "no server" in caplog.text
    assert "s: quarantined, tile-failed: 0.1" in caplog.text


def test_progress_is_a_share_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[float] = []
    clock = SimpleNamespace(monotonic=iter(range(0, 1000, 10)).__next__)
    monkeypatch.setattr("flows.listener.time", clock)
    monkeypatch.setattr("flows.listener.create_progress_artifact", lambda **_: uuid4())
    monkeypatch.setattr(
        "flows.listener.update_progress_artifact",
        lambda _, progress, description: sent.append(progress),
    )
    listener = PrefectListener(logging.getLogger("flow"))
    listener(events.RunPlanned("run", scenes=1, tiles=4, tiles_kept=2, pixel_bands=20))
    for _ in range(2):
        listener(events.TileFinished("s", "0.0", pixel_bands=10, seconds=0.1))
    listener(events.RunFinished("run", published=1, skipped=0, quarantined=0, seconds=1.0))
    assert sent == [0.0, 50.0, 100.0, 100.0]


def test_a_taken_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "infra.serve", "--port", str(port)]
        done = subprocess.run(
            [*command, "--home", str(tmp_path)],
            cwd=ROOT,
            env=os.environ.copy(),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 2
        assert f"port {port} is in use" in done.stderr
        assert "Traceback" not in done.stderr
        with pytest.raises(StartError, match="in use"):
            LocalPrefect(tmp_path, port).start()
