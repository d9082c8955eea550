"""Runs of the deployment on a real Prefect server, as the tests of flows start and watch them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil

from flows.artifacts import SCENES_KEY
from infra.prefect_local import DEPLOYMENT, LocalPrefect
from tests.archives import SCALE_FACTOR, counts, write_model
from tests.processes import running
from tests.scenes import write_zarr

SIDE = 160  # 100 tiles, so that a run is struck before its end
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
LONGEST = 240.0
DONE = "1 published, 0 skipped, 0 quarantined"
SKIPPED = "0 published, 1 skipped, 0 quarantined"


@dataclass(frozen=True)
class Archive:
    """A source of one scene, and a model for it."""

    source: Path
    model: Path

    @classmethod
    def write(cls, folder: Path) -> Archive:
        write_zarr(folder / "source" / "scene.zarr", counts(SIDE, SIDE), scale_factor=SCALE_FACTOR)
        return cls(folder / "source", write_model(folder))


@dataclass(frozen=True)
class FlowRun:
    """A run of the deployment."""

    prefect: LocalPrefect
    output: Path
    id: str

    @classmethod
    def start(
        cls,
        prefect: LocalPrefect,
        archive: Archive,
        output: Path,
        environment: Mapping[str, str] = MappingProxyType({}),
        **options: object,
    ) -> FlowRun:
        deployment = prefect.request(f"/deployments/name/{DEPLOYMENT}")["id"]
        given = {"source": archive.source, "output": output, "model": archive.model}
        parameters = {name: str(value) for name, value in given.items()} | {"tile": 16} | options
        body = {"parameters": parameters, "job_variables": {"env": dict(environment)}}
        created = prefect.request(f"/deployments/{deployment}/create_flow_run", body)
        return cls(prefect, output, created["id"])

    @property
    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.prefect.request(f"/flow_runs/{self.id}")["state"]
        return state

    @property
    def scene_states(self) -> dict[str, str]:
        """Of the task runs, by scene or batch."""
        body = {"flow_runs": {"id": {"any_": [self.id]}}}
        tasks = self.prefect.request("/task_runs/filter", body)
        return {task["name"]: task["state"]["name"] for task in tasks}

    @property
    def log(self) -> list[str]:
        """Its lines, as the server has them."""
        query = {"logs": {"flow_run_id": {"any_": [self.id]}}, "sort": "TIMESTAMP_ASC"}
        return [line["message"] for line in self.prefect.request("/logs/filter", query)]

    @property
    def tiles(self) -> int:
        """In the ledger of an unfinished scene."""
        return len(list(self.output.glob("_sr-archive/scenes/scene/tiles/*.json")))

    @property
    def tiles_kept(self) -> int:
        """Of an earlier run, by the table that this one left."""
        query = {"artifacts": {"key": {"any_": [SCENES_KEY]}, "flow_run_id": {"any_": [self.id]}}}
        (table,) = self.prefect.request("/artifacts/filter", query)
        (row,) = json.loads(table["data"])
        return int(row["kept"])

    @property
    def published(self) -> bool:
        return (self.output / "scene.zarr" / "zarr.json").exists()

    def cancel(self) -> None:
        """As `prefect flow-run cancel` does."""
        body = {"state": {"type": "CANCELLING"}}
        self.prefect.request(f"/flow_runs/{self.id}/set_state", body)

    def wait_for_tiles(self) -> None:
        wait_until(lambda: self.tiles >= 3, "tiles")
        assert not self.published

    def wait_for_end(self) -> dict[str, Any]:
        wait_until(lambda: self.state["type"] in FINAL, "the end of the flow run")
        return self.state


def wait_until(true: Callable[[], bool], what: str, longest: float = LONGEST) -> None:
    deadline = time.monotonic() + longest
    while not true():
        assert time.monotonic() < deadline, f"no {what} within {longest:.0f} s"
        time.sleep(0.05)


def tile_actors(prefect: LocalPrefect) -> Iterator[psutil.Process]:
    """Of all flow runs of the worker."""
    return running("TileActor", below=prefect.pid("worker"))
