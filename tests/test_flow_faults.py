"""Prefect's server and worker are killed under a run; no tile that is finished is lost."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import psutil
import pytest

from infra.prefect_local import LocalPrefect
from tests.flow_runs import DONE, SKIPPED, Archive, FlowRun, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return Archive.write(tmp_path_factory.mktemp("archive"))


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
    # Nobody is left to say that the first run is dead; an automation finds out and begins it again.
    wait_until(lambda: lost.state["type"] == "COMPLETED", "the end of the lost flow run", 400)
    assert lost.state["message"] == SKIPPED
