"""A short sample of the kill trials; `python -m tests.chaos` runs as many as time allows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.chaos.harness import Outcome, possible, summary, trial
from tests.chaos.stage import Stage
from tests.chaos.strikes import KINDS

SEED = 20261123


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    stage = Stage(tmp_path_factory.mktemp("chaos") / "stage")
    yield stage
    stage.close()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_struck_run_ends_in_the_same_bytes(stage: Stage, kind: str) -> None:
    if reason := possible(stage)[kind]:
        pytest.skip(reason)
    outcome = trial(stage, kind, SEED)
    assert outcome.same and not outcome.partial, outcome
    assert outcome.good, outcome


def test_the_summary_tells_what_went_wrong() -> None:
    done = [
        Outcome("node", 1, most=6, struck=True, same=True, redone=4),
        Outcome("node", 2, most=6, faults=["not all was published within 240 s"]),
    ]
    assert not done[1].good and done[0].good
    assert summary(done).splitlines()[-1] == "| node | 2 | 1 | 1 | 0 | 1 | 4 | 6 |"
