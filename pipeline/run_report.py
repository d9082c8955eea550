"""What became of a run and of each of its scenes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline.plan import ScenePlan
from pipeline.storage import join, redact


@dataclass
class SceneRow:
    """What became of one scene in a run."""

    scene_id: str
    status: Literal["published", "skipped", "quarantined"]
    reason: str = ""
    note: str = ""
    tiles: int = 0
    tiles_kept: int = 0
    seconds: float = 0.0
    megapixel_bands: float = 0.0
    inconsistency: float | None = None  # RMS of degraded result minus scene, part of the scene's
    inconsistency_of_bicubic: float | None = None
    source: str = ""
    output: str = ""

    @classmethod
    def of(cls, scene: ScenePlan, output: str) -> SceneRow:
        """The row of a scene of which nothing is done yet."""
        return cls(
            scene.scene_id,
            "skipped",
            note="" if scene.code else scene.note,
            tiles=scene.tiles,
            tiles_kept=len(scene.done),
            megapixel_bands=0.0 if scene.job is None else round(scene.job.pixel_bands / 1e6, 3),
            source=redact(scene.uri),
            output=redact(join(output, f"{scene.scene_id}.zarr")),
        )


@dataclass
class RunReport:
    """What became of a run."""

    run_id: str
    started: str
    rows: list[SceneRow] = field(default_factory=list)
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)  # on the output and its catalogue

    @property
    def exit_status(self) -> int:
        return 3 if self.count("quarantined") else 0

    @property
    def counts(self) -> str:
        """How many scenes ended in which way, in words."""
        statuses = ("published", "skipped", "quarantined")
        return ", ".join(f"{self.count(status)} {status}" for status in statuses)

    def count(self, status: str) -> int:
        return sum(row.status == status for row in self.rows)
