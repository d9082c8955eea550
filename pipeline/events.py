"""What happens in a run, as typed events; progress bars, logs and Prefect artifacts listen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RunPlanned:
    """The catalogue is read and every scene is either planned, skipped or quarantined."""

    run_id: str
    scenes: int
    tiles: int
    tiles_kept: int
    pixel_bands: int  # HR pixels x bands still to be written


@dataclass(frozen=True)
class SceneStarted:
    scene_id: str
    tiles: int
    tiles_kept: int


@dataclass(frozen=True)
class TileFinished:
    scene_id: str
    tile: str
    pixel_bands: int  # HR pixels x bands of this tile
    seconds: float


@dataclass(frozen=True)
class TileRetried:
    scene_id: str
    tile: str
    attempt: int
    reason: str


@dataclass(frozen=True)
class SceneHeld:
    """Another run has the scene, and may be dead; it is asked for again at the end."""

    scene_id: str
    reason: str


@dataclass(frozen=True)
class SceneFinished:
    """The end of one scene, whatever it was. `reason` is empty unless quarantined or skipped."""

    scene_id: str
    status: Literal["published", "skipped", "quarantined"]
    reason: str = ""


@dataclass(frozen=True)
class RunFinished:
    run_id: str
    published: int
    skipped: int
    quarantined: int
    seconds: float


@dataclass(frozen=True)
class TrainingPlanned:
    """A fine-tuning is about to begin. `areas` count blocks or scenes."""

    name: str
    scenes: int
    left_out: int
    train: int
    validation: int
    test: int
    by: str


@dataclass(frozen=True)
class TrainingStarted:
    """The processes are there; `steps_done` is not 0 where an earlier run is gone on with."""

    steps_done: int
    steps: int | None  # in all; None where a time is given
    seconds: float | None  # in all; None where steps are counted
    processes: int


@dataclass(frozen=True)
class TrainingProgress:
    steps: int
    share: float  # of the training, in [0, 1]
    seconds: float  # of training, over all restarts
    loss: float


@dataclass(frozen=True)
class TrainingValidated:
    """Figures on areas that do not train; PSNR in dB. A checkpoint follows."""

    steps: int
    seconds: float
    loss: float
    psnr: float
    bicubic: float  # PSNR of plain bicubic on the same areas
    best: bool


@dataclass(frozen=True)
class TrainingInterrupted:
    """A process died; all start again from the last checkpoint."""

    reason: str


@dataclass(frozen=True)
class TrainingSkipped:
    """Pixels of a scene cannot be read; others are trained on in their place."""

    scene_id: str
    reason: str


@dataclass(frozen=True)
class TrainingFinished:
    name: str
    steps: int
    seconds: float
    early: bool


Event = (
    RunPlanned
    | SceneStarted
    | TileFinished
    | TileRetried
    | SceneHeld
    | SceneFinished
    | RunFinished
    | TrainingPlanned
    | TrainingStarted
    | TrainingProgress
    | TrainingValidated
    | TrainingInterrupted
    | TrainingSkipped
    | TrainingFinished
)
Listener = Callable[[Event], None]
