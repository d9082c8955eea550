"""A short sample of the kill trials; `python -m tests.chaos` runs as many as time allows."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from pipeline.ray_session import ray_session
from tests.chaos.harness import STRIKES, Stage, trial

SEED = 20261123

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with ray_session(None):
        address = ray.get_runtime_context().gcs_address
        yield Stage(tmp_path_factory.mktemp("chaos") / "stage", address)


@pytest.mark.parametrize("kind", sorted(STRIKES))
def test_a_struck_run_ends_in_the_same_bytes(stage: Stage, kind: str) -> None:
    outcome = trial(stage, kind, STRIKES[kind], SEED)
    assert outcome.same and not outcome.partial, outcome
    assert outcome.good, outcome
