"""Prefect's server and worker are killed under a run; no tile that is finished is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.sr_archive import SCENES_KEY
from infra.prefect_local import DEPLOYMENT, LocalPrefect
from tests.archives import SCALE_FACTOR, counts, write_model
from tests.scenes import write_zarr

SIDE = 160  # 100 tiles, so that a run is struck before its end
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
LONGEST = 240.0
DONE = "1 published, 0 skipped, 0 quarantined"
SKIPPED = "0 published, 1 skipped, 0 quarantined"

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


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

    @property
    def tiles_kept(self) -> int:
        """Of an earlier run, by the table that this one left."""
        query = {"artifacts": {"key": {"any_": [SCENES_KEY]}, "flow_run_id": {"any_": [self.id]}}}
        (table,) = self.prefect.request("/artifacts/filter", query)
        (row,) = json.loads(table["data"])
        return int(row["kept"])

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
    assert (state["type"], state["message"]) == ("COMPLETED", DONE)
    assert run.published


def test_a_run_outlives_its_worker(prefect: LocalPrefect, archive: Archive, tmp_path: Path) -> None:
    run = FlowRun.start(prefect, archive, tmp_path / "output")
    run.wait_for_tiles()
    kill(prefect, "worker")
    state = run.wait_for_end()
    assert (state["type"], state["message"]) == ("COMPLETED", DONE)
    prefect.restart("worker")
    again = FlowRun.start(prefect, archive, tmp_path / "output").wait_for_end()
    assert (again["type"], again["message"]) == ("COMPLETED", SKIPPED)


def test_what_died_with_its_worker_is_resumed(
    prefect: LocalPrefect, archive: Archive, tmp_path: Path
) -> None:
    """As a machine that loses its power: the worker, the flow run and its Ray at once."""
    lost = FlowRun.start(prefect, archive, tmp_path / "output")
    lost.wait_for_tiles()
    worker = psutil.Process(prefect.pid("worker"))
    for process in (worker, *worker.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    kept = lost.tiles
    assert not lost.published
    prefect.restart("worker")
    run = FlowRun.start(prefect, archive, tmp_path / "output")
    state = run.wait_for_end()
    assert (state["type"], state["message"]) == ("COMPLETED", DONE)
    assert run.published
    assert run.tiles_kept >= kept
