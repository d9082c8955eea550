"""Which scenes a task run stands for, and how it ends; test_flow.py has them on a real server."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.client.schemas.objects import StateType

from flows import restarts
from flows.scene_tasks import MOST_TASKS, Ending, SceneTasks, scene_task
from pipeline.errors import UsageError
from pipeline.events import RunFinished, RunPlanned, SceneFinished, SceneStarted


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> dict[str, Ending]:
    """Task runs by name, without a server to run them."""
    found: dict[str, Ending] = {}
    monkeypatch.setattr(scene_task, "submit", found.__setitem__)
    return found


def planned(scenes: int) -> RunPlanned:
    return RunPlanned("run", scenes=scenes, tiles=scenes, tiles_kept=0, pixel_bands=1)


def finished(tasks: SceneTasks, *names: str, reason: str = "") -> None:
    for name in names:
        tasks(SceneFinished(name, "quarantined" if reason else "published", reason))


def state(ending: Ending) -> tuple[StateType, Any]:
    made = scene_task.fn("a task", ending)
    return made.type, made.message


def test_each_scene_has_a_task_run(begun: dict[str, Ending]) -> None:
    tasks = SceneTasks()
    tasks(planned(4))
    tasks(SceneFinished("old", "skipped", "published with the same fingerprint"))
    finished(tasks, "broken", reason="truncated: short")
    for name in ("a", "b"):
        tasks(SceneStarted(name, 1, 0))
    finished(tasks, "a")
    assert list(begun) == ["broken", "a", "b"]
    assert state(begun["broken"]) == (StateType.FAILED, "truncated: short")
    assert state(begun["a"]) == (StateType.COMPLETED, "")
    assert begun["b"].empty()
    tasks.close()
    assert state(begun["b"])[0] == StateType.CANCELLED


def test_many_scenes_share_task_runs(begun: dict[str, Ending]) -> None:
    tasks = SceneTasks()
    scenes = 2 * MOST_TASKS + 1  # three scenes in each batch
    tasks(planned(scenes))
    names = [f"s{number:04}" for number in range(scenes)]
    for name in names:
        tasks(SceneStarted(name, 1, 0))
    assert len(begun) == -(-scenes // 3) <= MOST_TASKS
    first, last = begun["scenes 1 to 3"], list(begun.values())[-1]
    finished(tasks, *names[:2])
    assert first.empty()
    finished(tasks, names[2], reason="no-valid-pixels: none")
    assert state(first) == (StateType.FAILED, "s0002: no-valid-pixels: none")
    finished(tasks, *names[3:])
    assert last.empty() == bool(scenes % 3), "the last batch is not full and may get more"
    tasks(RunFinished("run", published=scenes - 1, skipped=0, quarantined=1, seconds=1.0))
    assert state(last) == (StateType.COMPLETED, "")
    tasks.close()
    assert all(ending.empty() or ending is not first for ending in begun.values())


def test_a_flow_run_is_not_begun_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (0, 1, 3):
        monkeypatch.setattr(restarts.flow_run, "run_count", count, raising=False)
        restarts.refuse_endless_restarts(2)
    monkeypatch.setattr(restarts.flow_run, "run_count", 4, raising=False)
    with pytest.raises(UsageError, match=r"^begun 3 times and crashed each time"):
        restarts.refuse_endless_restarts(2)
