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


Event = (
    RunPlanned | SceneStarted | TileFinished | TileRetried | SceneHeld | SceneFinished | RunFinished
)
Listener = Callable[[Event], None]
