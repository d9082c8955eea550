"""Ray Train around the loop: processes, restarts, where checkpoints go, what the driver hears."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs
import ray
from ray.exceptions import RayError
from ray.train import (
    CheckpointConfig,
    FailureConfig,
    Result,
    RunConfig,
    ScalingConfig,
    TrainingFailedError,
    UserCallback,
)
from ray.train.torch import TorchConfig, TorchTrainer
from torch import Tensor

from pipeline import events
from pipeline.errors import UsageError
from pipeline.events import Event
from pipeline.finetune.job import Job
from pipeline.finetune.loop import train
from pipeline.finetune.state import Course, load_state
from pipeline.ray_session import Share
from pipeline.storage import describe, is_local, open_filesystem

_POLL_SECONDS = 0.5
_KEPT = 2  # checkpoints
# Workers stay in the driver's folder, so that relative addresses hold; less is printed and sent.
_RAY_TRAIN = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


class Board:
    """An actor on which processes leave events for the driver."""

    def __init__(self) -> None:
        self._events: list[Event] = []

    def put(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        taken, self._events = self._events, []
        return taken


class _Watch(UserCallback):  # type: ignore[misc]
    """Tells the board of processes that died."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        rank, error = next(iter(worker_exceptions.items()))
        self._board.put.remote(events.TrainingInterrupted(f"process {rank}: {describe(error)}"))


@dataclass(frozen=True)
class Outcome:
    """What a training left: the best averaged weights by name, and how it went."""

    best: dict[str, Tensor]
    course: Course
    steps: int


def fit(
    job: Job,
    share: Share,
    place: str,
    name: str,
    max_failures: int,
    emit: Callable[[Event], None],
) -> Outcome:
    """Train, or go on with the training of that name; needs a Ray session.

    Args:
        job: what to train.
        share: what each process gets.
        place: folder or prefix of the states of trainings.
        name: of this one; the same name goes on where it stopped.
        max_failures: deaths of a process to go on after.
        emit: hears of events, in this thread.

    Raises:
        UsageError: it failed too often, or the store refused its state.
    """
    board = ray.remote(Board).options(num_cpus=0).remote()  # type: ignore[attr-defined]
    trainer = TorchTrainer(
        train,
        train_loop_config={"job": job, "board": board},
        torch_config=TorchConfig(backend="nccl" if share.device == "cuda" else "gloo"),
        scaling_config=_scaling(share),
        run_config=RunConfig(
            name=name,
            **_storage(place),
            failure_config=FailureConfig(max_failures=max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=_KEPT),
            callbacks=[_Watch(board)],  # type: ignore[list-item]
        ),
    )
    with _settled():
        result = _followed(trainer, board, emit)
    assert result.checkpoint is not None  # the loop reports before its first step
    with result.checkpoint.as_directory() as folder:
        state, best, course = load_state(Path(folder))
    return Outcome(best, course, int(state["steps"]))


def _scaling(share: Share) -> ScalingConfig:
    resources = {"CPU": share.cpus}
    if share.device == "cuda":
        resources["GPU"] = share.gpus
    return ScalingConfig(
        num_workers=share.workers,
        use_gpu=share.device == "cuda",
        resources_per_worker=resources,
    )


def _storage(place: str) -> dict[str, Any]:
    """Ray Train's way to a folder or to any store that fsspec opens."""
    filesystem, path = open_filesystem(place)
    if is_local(filesystem):
        return {"storage_path": path}
    handler = pyarrow.fs.FSSpecHandler(filesystem)
    return {"storage_path": path, "storage_filesystem": pyarrow.fs.PyFileSystem(handler)}


def _followed(trainer: TorchTrainer, board: Any, emit: Callable[[Event], None]) -> Result:
    """Run to the end in a thread, while this one passes events on."""
    ended: list[Result | BaseException] = []

    def run() -> None:
        try:
            ended.append(trainer.fit())
        except BaseException as error:  # raised below, in the thread that waits
            ended.append(error)

    thread = threading.Thread(target=run, name="ray-train", daemon=True)
    thread.start()
    while True:
        thread.join(_POLL_SECONDS)
        alive = thread.is_alive()
        for event in _heard(board):
            emit(event)
        if not alive:
            break
    [end] = ended
    if isinstance(end, (TrainingFailedError, RayError)):
        raise UsageError(f"training failed: {_cause(end)}; the same command goes on with it")
    if isinstance(end, BaseException):
        raise end
    return end


def _heard(board: Any) -> list[Event]:
    """Nothing where Ray is lost: the thread that trains has the error."""
    try:
        taken: list[Event] = ray.get(board.take.remote())
    except RayError:
        return []
    return taken


def _cause(error: BaseException) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    return describe(next(iter(failures.values()), error))


@contextmanager
def _settled() -> Iterator[None]:
    """Ray Train's own switches for the time of a training."""
    before = {name: os.environ.get(name) for name in _RAY_TRAIN}
    os.environ |= _RAY_TRAIN
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
