"""Many scenes and many tiles on a small scale; `benchmarks.soak` and `.dispatch` do it in full."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.dispatch import IdleActor, Meter, plan_scenes
from benchmarks.soak import soak
from pipeline.actors import ActorPool
from pipeline.dispatch import Admission, Dispatcher, Handlers
from pipeline.ledger import TileRecord
from pipeline.ray_session import Share, ray_session
from pipeline.scene_job import SceneJob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.mark.long
def test_scene_after_scene_takes_no_more_memory_or_descriptors(tmp_path: Path) -> None:
    """What each scene may leave is its row in the report; an open scene, kept, is far more."""
    found = soak(tmp_path, 150, every=0.2)
    assert found.published == 150
    driver, actors, _ = found.at(145).held.growth(found.at(50).held)
    assert driver.megabytes < 4, "40 KB a scene"
    assert actors.megabytes < 15, "150 KB a scene"
    for grown in (driver, actors):
        assert grown.files < 10 and grown.threads < 10


def test_a_scene_of_a_million_tiles_costs_no_memory_before_they_are_done(tmp_path: Path) -> None:
    model, plan = plan_scenes(tmp_path, 1_000_000, 1)
    meter = Meter(every=500)

    def done(job: SceneJob, record: TileRecord) -> None:
        meter.tile(job, record)
        if meter.tiles == 2500:
            dispatcher.drop(job.scene_id)

    with ray_session(None):
        pool = ActorPool(model, Share("cpu", 1, 1.0, 0.0), actor=IdleActor)
        handlers = Handlers(meter.prepared, done, lambda work, reason: None, meter.failed)
        dispatcher = Dispatcher(pool, handlers, 1, lambda job: Admission("go"))
        [scene] = plan.work
        assert scene.job is not None and scene.tiles == 1_000_000
        dispatcher.add(scene.job)
        dispatcher.run()
        pool.close()
    first, *_, last = (mark.held.driver for mark in meter.marks)
    assert meter.tiles >= 2500
    assert (last - first).megabytes < 20, "one byte for each of a million tiles is 1 MB"
