"""A task run for each scene of a run, or for each batch of scenes where they are many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Failed

from pipeline.events import Event, RunFinished, RunPlanned, SceneFinished, SceneStarted

MOST_TASKS = 300  # of one run: a task run costs Prefect some 90 ms
_MOST_NAMED = 5

Ending = SimpleQueue[tuple[Callable[..., State[Any]], str]]


@task(name="scene", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False)
def scene_task(name: str, ending: Ending) -> State[Any]:
    """Stands for one scene, or for a batch, and lasts as long as they are worked on."""
    make_state, text = ending.get()
    return make_state(message=text)  # not before: Prefect orders states by their time


@dataclass(eq=False)
class _Batch:
    """The scenes that one task run stands for."""

    ending: Ending = field(default_factory=SimpleQueue)
    scenes: int = 0
    open: int = 0
    faults: list[str] = field(default_factory=list)

    def end(self) -> None:
        more = len(self.faults) - _MOST_NAMED
        text = "; ".join(self.faults[:_MOST_NAMED]) + (f"; {more} more" if more > 0 else "")
        self.ending.put((Failed, text) if text else (Completed, ""))


class SceneTasks:
    """Listens to a run inside a flow, whose task runner runs the tasks.

    Scenes that are skipped have none. A scene that is set aside fails its task run, with the
    reason; the state of the flow run does not depend on that.
    """

    def __init__(self) -> None:
        self._size = 1
        self._begun = 0
        self._filling: _Batch | None = None
        self._of: dict[str, _Batch] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case RunPlanned():
                self._size = -(-max(event.scenes, 1) // MOST_TASKS)
            case SceneStarted():
                self._enter(event.scene_id)
            case SceneFinished() if event.scene_id in self._of or event.status == "quarantined":
                self._leave(event)
            case RunFinished() if self._filling is not None and not self._filling.open:
                self._filling.end()
                self._filling = None

    def close(self) -> None:
        """End the task runs of a run that was stopped."""
        filling = [self._filling] if self._filling else []
        for batch in {*self._of.values(), *filling}:
            batch.ending.put((Cancelled, "the run was stopped; run again to go on"))
        self._of.clear()

    def _enter(self, scene_id: str) -> None:
        if scene_id in self._of:
            return
        batch = self._filling or self._begin(scene_id)
        batch.scenes += 1
        batch.open += 1
        self._of[scene_id] = batch
        self._filling = batch if batch.scenes < self._size else None

    def _begin(self, scene_id: str) -> _Batch:
        batch = _Batch()
        self._begun += 1
        last = self._begun * self._size
        name = scene_id if self._size == 1 else f"scenes {last - self._size + 1} to {last}"
        scene_task.submit(name, batch.ending)
        return batch

    def _leave(self, event: SceneFinished) -> None:
        self._enter(event.scene_id)
        batch = self._of.pop(event.scene_id)
        batch.open -= 1
        if event.status == "quarantined":
            batch.faults.append(
                event.reason if self._size == 1 else f"{event.scene_id}: {event.reason}"
            )
        if not batch.open and batch is not self._filling:
            batch.end()
