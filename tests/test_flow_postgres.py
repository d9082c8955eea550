"""Prefect's server on Postgres, as a team has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.prefect_local import LocalPrefect
from infra.processes import free_port
from tests import postgres
from tests.flow_runs import DONE, Archive, FlowRun


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_deployed_run_on_postgres(tmp_path: Path) -> None:
    programs = postgres.programs()
    if programs is None:
        pytest.skip("no Postgres on this machine: install postgresql")
    home = tmp_path / "prefect"
    with (
        postgres.running(programs) as server,
        LocalPrefect(home, free_port(), database=server.url) as prefect,
    ):
        run = FlowRun.start(prefect, Archive.write(tmp_path), tmp_path / "output")
        state = run.wait_for_end()
        assert (state["type"], state["message"]) == ("COMPLETED", DONE)
        assert run.scene_states == {"scene": "Completed"}
        assert server.query("SELECT state_type FROM flow_run") == "COMPLETED\n"
    assert not (home / "prefect.db").exists()
