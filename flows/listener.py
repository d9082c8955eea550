"""Turn events of a run or a fine-tuning into a Prefect progress artifact and log lines."""

from __future__ import annotations

import logging
import time
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from pipeline.events import (
    Event,
    RunFinished,
    RunPlanned,
    SceneFinished,
    SceneStarted,
    TileFinished,
    TileRetried,
    TrainingFinished,
    TrainingInterrupted,
    TrainingProgress,
)
from pipeline.finetune.progress import message, state_line

PROGRESS_KEY = "sr-archive-progress"
FINETUNE_PROGRESS_KEY = "sr-finetune-progress"
_INTERVAL = 2.0  # seconds between two updates; each is a request to the server

Logger = logging.Logger | logging.LoggerAdapter[logging.Logger]


class ProgressArtifact:
    """A progress artifact of a flow run; made inside it."""

    def __init__(self, key: str, logger: Logger) -> None:
        self._logger = logger
        artifact = create_progress_artifact(progress=0.0, key=key, description="planning")
        assert isinstance(artifact, UUID)  # a coroutine only inside an event loop
        self._artifact = artifact
        self._updated = -_INTERVAL

    @property
    def is_due(self) -> bool:
        return time.monotonic() - self._updated >= _INTERVAL

    def send(self, progress: float, description: str) -> None:
        self._updated = time.monotonic()
        try:
            update_progress_artifact(
                self._artifact, progress=min(progress, 100.0), description=description
            )
        except Exception as error:  # whatever the server does, the job goes on
            self._logger.warning("the progress artifact was not updated: %s", error)


class FinetuneListener:
    """Listens to one fine-tuning; made inside a flow run, to which its artifact belongs."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._artifact = ProgressArtifact(FINETUNE_PROGRESS_KEY, logger)

    def __call__(self, event: Event) -> None:
        text = message(event)
        if text is not None:
            died = isinstance(event, TrainingInterrupted)
            self._logger.log(logging.WARNING if died else logging.INFO, "%s", text)
        match event:
            case TrainingProgress() if self._artifact.is_due:
                self._artifact.send(100.0 * event.share, state_line(event))
            case TrainingFinished():
                self._artifact.send(100.0, f"{event.steps} steps in {event.seconds:.0f} s")


class PrefectListener:
    """Listens to one run; made inside a flow run, to which its artifact belongs."""

    def __init__(self, logger: Logger) -> None:
        self._logger = logger
        self._artifact = ProgressArtifact(PROGRESS_KEY, logger)
        self._total = 0
        self._done = 0
        self._tiles = 0
        self._tiles_done = 0

    def __call__(self, event: Event) -> None:
        match event:
            case RunPlanned():
                self._planned(event)
            case SceneStarted():
                self._logger.info(
                    "%s: started, %d tiles, %d kept from an earlier run",
                    event.scene_id,
                    event.tiles,
                    event.tiles_kept,
                )
            case TileFinished():
                self._done += event.pixel_bands
                self._tiles_done += 1
                self._update()
            case TileRetried():
                self._logger.warning(
                    "%s: tile %s failed, attempt %d: %s",
                    event.scene_id,
                    event.tile,
                    event.attempt,
                    event.reason,
                )
            case SceneFinished():
                level = logging.WARNING if event.status == "quarantined" else logging.INFO
                reason = f", {event.reason}" if event.reason else ""
                self._logger.log(level, "%s: %s%s", event.scene_id, event.status, reason)
            case RunFinished():
                self._finished(event)

    def _planned(self, event: RunPlanned) -> None:
        self._total = event.pixel_bands
        self._tiles = event.tiles
        self._tiles_done = event.tiles_kept
        self._logger.info(
            "run %s: %d scenes, %d tiles, %d kept from an earlier run",
            event.run_id,
            event.scenes,
            event.tiles,
            event.tiles_kept,
        )
        self._update()

    def _update(self) -> None:
        if self._artifact.is_due:
            share = self._done / self._total if self._total else 0.0
            self._artifact.send(100.0 * share, f"{self._tiles_done} of {self._tiles} tiles")

    def _finished(self, event: RunFinished) -> None:
        self._artifact.send(
            100.0,
            f"{event.published} published, {event.skipped} skipped, "
            f"{event.quarantined} quarantined in {event.seconds:.0f} s",
        )
