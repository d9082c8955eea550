"""Ray's memory monitor ends an actor; the run gives its tiles to another."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.exceptions import OutOfMemoryError

from pipeline.actors import ActorPool, Failure, Seat, Work
from pipeline.grid import Tile
from pipeline.ledger import TileRecord
from pipeline.ray_session import ray_session
from pipeline.scene_job import SceneJob
from pipeline.worker import Prepared
from tests.test_actors import Moody, dispatch, job

SPARE = 3 << 29  # bytes that may still be taken before Ray acts
GREED = 3 << 30  # what the actor would take

pytestmark = pytest.mark.slow


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    memory = psutil.virtual_memory()
    if memory.available < GREED + SPARE:
        pytest.skip("not enough free memory to take some on purpose")
    share = (memory.total - memory.available + SPARE) / memory.total
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{share:.4f}")
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "100")
    with ray_session(None):
        yield


class Greedy(Moody):
    """Takes memory at the first try of one tile, until it is stopped."""

    def work(self, job: SceneJob, tile: Tile | None) -> Prepared | TileRecord | Failure:
        result = super().work(job, tile)
        if tile is not None and tile.key == "1.1" and self._calls(job, "1.1") == 1:
            hoard = [b"x" * (64 << 20) for _ in range(GREED >> 26)]
            (Path(job.uri) / "never-stopped").write_text(str(len(hoard)))
        return result


def test_an_actor_that_takes_too_much_is_replaced(
    watched: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    causes: list[Exception] = []
    bury = ActorPool._bury

    def seen(pool: ActorPool, seat: Seat, error: Exception) -> list[Work]:
        causes.append(error)
        return bury(pool, seat, error)

    monkeypatch.setattr(ActorPool, "_bury", seen)
    journal = dispatch([job("scene", tmp_path)], workers=1, actor=Greedy)
    assert any(isinstance(cause, OutOfMemoryError) for cause in causes)
    assert journal.failed == {}
    assert len(journal.done["scene"]) == 16
    assert not (tmp_path / "never-stopped").exists()
