"""Prefect's server or worker is killed under a run; the scenes end well, or in the next run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.prefect_local import DEPLOYMENT, LocalPrefect
from tests.archives import SCALE_FACTOR, array_bytes, counts, write_model
from tests.scenes import write_zarr

SIDE = 160  # 100 tiles, so that a run is struck before its end
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
LONGEST = 240.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Archive:
    source: Path
    model: Path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    folder = tmp_path_factory.mktemp("archive")
    write_zarr(folder / "source" / "scene.zarr", counts(SIDE, SIDE), scale_factor=SCALE_FACTOR)
    return Archive(folder / "source", write_model(folder))


@dataclass(frozen=True)
class FlowRun:
    """A run of the deployment."""

    prefect: LocalPrefect
    output: Path
    id: str

    @classmethod
    def start(cls, prefect: LocalPrefect, archive: Archive, output: Path) -> FlowRun:
        deployment = prefect.request(f"/deployments/name/{DEPLOYMENT}")["id"]
        given = {"source": archive.source, "output": output, "model": archive.model, "tile": 16}
        parameters = {name: str(value) for name, value in given.items()} | {"tile": 16}
        body = {"parameters": parameters}
        created = prefect.request(f"/deployments/{deployment}/create_flow_run", body)
        return cls(prefect, output, created["id"])

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.prefect.request(f"/flow_runs/{self.id}")["state"]
        return state

    @property
    def tiles(self) -> int:
        """In the ledger of an unfinished scene."""
        return len(list(self.output.glob("_sr-archive/scenes/scene/tiles/*.json")))

    @property
    def published(self) -> bool:
        return (self.output / "scene.zarr" / "zarr.json").exists()

    def wait_for_tiles(self) -> None:
        wait_until(lambda: self.tiles >= 3, "tiles")
        assert not self.published

    def wait_for_end(self) -> dict[str, Any]:
        wait_until(lambda: self.state["type"] in FINAL, "the end of the flow run")
        return self.state


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + LONGEST
    while not true():
        assert time.monotonic() < deadline, f"no {what} within {LONGEST:.0f} s"
        time.sleep(0.05)


def kill(prefect: LocalPrefect, name: str) -> None:
    os.kill(prefect.pid(name), signal.SIGKILL)


def kill_with_its_runs(prefect: LocalPrefect) -> None:
    """As a machine that fails: the worker, its flow runs, their Ray."""
    worker = psutil.Process(prefect.pid("worker"))
    for process in [*worker.children(recursive=True), worker]:
        process.kill()


def test_a_server_that_is_killed_does_not_disturb_a_run(
    prefect: LocalPrefect, archive: Archive, tmp_path: Path
) -> None:
    run = FlowRun.start(prefect, archive, tmp_path / "output")
    run.wait_for_tiles()
    kill(prefect, "server")
    before = run.tiles
    wait_until(lambda: run.tiles > before or run.published, "further tiles without a server")
    prefect.restart("server")
    state = run.wait_for_end()
    assert (state["type"], state["message"]) == (
        "COMPLETED",
        "1 published, 0 skipped, 0 quarantined",
    )
    assert run.published


def test_a_worker_that_is_killed_leaves_its_run_working(
    prefect: LocalPrefect, archive: Archive, tmp_path: Path
) -> None:
    run = FlowRun.start(prefect, archive, tmp_path / "output")
    run.wait_for_tiles()
    kill(prefect, "worker")
    state = run.wait_for_end()
    prefect.restart("worker")
    assert (state["type"], run.published) == ("COMPLETED", True)


def test_what_a_lost_machine_left_is_finished_by_the_next_run(
    prefect: LocalPrefect, archive: Archive, tmp_path: Path
) -> None:
    """The flow run that was lost stays `Running` in Prefect, and harms nobody."""
    lost = FlowRun.start(prefect, archive, tmp_path / "output")
    lost.wait_for_tiles()
    kill_with_its_runs(prefect)
    kept = lost.tiles
    assert kept >= 3 and not lost.published
    prefect.restart("worker")
    again = FlowRun.start(prefect, archive, tmp_path / "output")
    assert again.wait_for_end()["type"] == "COMPLETED" and again.published
    assert lost.state["type"] == "RUNNING"
    undisturbed = FlowRun.start(prefect, archive, tmp_path / "undisturbed")
    assert undisturbed.wait_for_end()["type"] == "COMPLETED"
    expected = array_bytes(tmp_path / "undisturbed" / "scene.zarr")
    assert array_bytes(tmp_path / "output" / "scene.zarr") == expected and expected
