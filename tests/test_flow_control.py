"""A flow run is cancelled, runs out of its time, or is begun again; real server, worker and Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.prefect_local import LocalPrefect
from infra.processes import free_port
from tests.flow_runs import DONE, Archive, FlowRun, tile_actors, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return Archive.write(tmp_path_factory.mktemp("archive"))


@pytest.fixture
def stopped(prefect: LocalPrefect, archive: Archive, tmp_path: Path) -> Iterator[FlowRun]:
    """A run that is at work on its scene; afterwards nothing of it may be left."""
    run = FlowRun.start(prefect, archive, tmp_path / "output", workers=1)
    run.wait_for_tiles()
    yield run
    assert not list(tile_actors(prefect))


def test_cancelling_frees_the_actors_and_keeps_the_work(
    prefect: LocalPrefect, archive: Archive, stopped: FlowRun
) -> None:
    assert list(tile_actors(prefect))
    stopped.cancel()
    wait_until(lambda: not list(tile_actors(prefect)), "end of the actors")
    assert stopped.wait_for_end()["type"] == "CANCELLED"
    # Prefect's server learns of the ends of task runs by events, which come in their own time.
    wait_until(lambda: stopped.scene_states == {"scene": "Cancelled"}, "end of the scene's task")
    assert not stopped.published
    assert not list(stopped.output.glob("_sr-archive/leases/*.json")), (
        "the lease was not given back"
    )
    kept = stopped.tiles
    again = FlowRun.start(prefect, archive, stopped.output)
    state = again.wait_for_end()
    assert (state["type"], state["message"]) == ("COMPLETED", DONE)
    assert again.tiles_kept >= kept
    wait_until(lambda: again.scene_states == {"scene": "Completed"}, "end of the scene's task")


def test_a_run_stops_when_its_time_is_over(
    prefect: LocalPrefect, archive: Archive, tmp_path: Path
) -> None:
    """Its time is over before it is done, however fast the machine is; nothing is tried again."""
    run = FlowRun.start(prefect, archive, tmp_path / "output", time_limit_hours=1e-4)
    state = run.wait_for_end()
    assert (state["type"], state["name"]) == ("FAILED", "TimedOut")
    assert state["message"] == "stopped after 0.0001 h; run again to go on"
    assert not run.published
    assert not list(tile_actors(prefect))


def test_a_run_whose_store_is_away_is_begun_again(
    prefect: LocalPrefect, archive: Archive, tmp_path: Path
) -> None:
    away = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "SR_ARCHIVE_STORE_RETRY_SECONDS": "1",
    }
    lost = {"source": "s3://bucket/scenes", "retries": 1, "retry_delay_seconds": 0.0}
    run = FlowRun.start(prefect, archive, tmp_path / "output", away, **lost)
    state = run.wait_for_end()
    assert state["type"] == "FAILED"
    assert "s3://bucket/scenes" in state["message"] and "\n" not in state["message"]
    wait_until(lambda: any("begun again in 0 s" in line for line in run.log), "its line in the log")
