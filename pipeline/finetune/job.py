"""What a training process is told: plain values, the same after a restart."""

from __future__ import annotations

from dataclasses import dataclass

from model.augmentation import Augmentation
from model.trainer import TrainingOptions
from pipeline.finetune.settings import Bands
from pipeline.grid import Window
from pipeline.settings import Degrading, Mask, Normalise


@dataclass(frozen=True)
class Part:
    """A block of a scene, in the scene's own pixels, and where the scene lies."""

    scene_id: str
    uri: str
    window: Window


@dataclass(frozen=True)
class Pixels:
    """How patches are made of scenes.

    Attributes:
        bands: of the model; see `FinetuneSettings.bands`.
        scene_bands: how many a scene has.
        normalise, mask: as in a run.
        patch: LR pixels along a patch's side.
        batch: patches per step and process.
        degradation, mtf: how LR is made of HR.
        cache_bytes: pixels that a process keeps at most.
        seed: of what is drawn.
    """

    bands: Bands
    scene_bands: int
    normalise: Normalise
    mask: tuple[Mask, ...]
    patch: int
    batch: int
    degradation: Degrading
    mtf: float
    cache_bytes: int
    seed: int


@dataclass(frozen=True)
class Ending:
    """When training is over.

    Attributes:
        seconds: of training, over all restarts; None where steps are counted.
        steps: in all; None where seconds are.
        patience: validations without a better PSNR.
    """

    seconds: float | None
    steps: int | None
    patience: int

    def progress(self, seconds: float, steps: int) -> float:
        """How much of the training is done, in [0, 1]."""
        done = seconds / self.seconds if self.seconds else steps / (self.steps or 1)
        return min(1.0, done)


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        model: the packed checkpoint to start from, bands and scale as they will be.
        train, validation: what pairs are made of, and what says when to stop.
        threads: of one process.
        report_seconds, report_steps: between two validations and checkpoints.
    """

    model: bytes
    train: tuple[Part, ...]
    validation: tuple[Part, ...]
    pixels: Pixels
    options: TrainingOptions
    augmentation: Augmentation
    ending: Ending
    threads: int
    report_seconds: float
    report_steps: int | None
