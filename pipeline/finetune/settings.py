"""All options of `sr-archive finetune`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import SettingsConfigDict

from pipeline.settings import Degrading, Mask, Normalise, Settings

Bands = Literal["auto", "sensor", "windows"]

DEFAULT_BUDGET = 1800.0
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smh]?)")
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(value: Any) -> Any:
    """600s, 30m or 2h as seconds."""
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return value if not isinstance(value, str) else float("nan")
    return float(match[1]) * _UNITS[match[2]]


class FinetuneSettings(Settings):
    """Options of `sr-archive finetune`; each may come from `SR_ARCHIVE_FINETUNE_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="SR_ARCHIVE_FINETUNE_", extra="forbid")

    source: str = Field(description="Folder, bucket prefix or single scene: a path or fsspec URL.")
    parent: str = Field(
        "starter",
        description="Checkpoint to start from (.safetensors or published .pth).",
        json_schema_extra={"option": "from"},
    )
    out: str = Field(description="Folder or prefix of the new checkpoint, its records and state.")
    name: str | None = Field(
        None, description="Name of the new checkpoint; default: made of the two sources'."
    )
    scale: Literal[2, 4, 8] | None = Field(
        None, description="Upsampling factor of the new model; default: that of --from."
    )
    bands: Bands = Field(
        "auto",
        description="Bands of the new model: all of the sensor's, or as many as --from has, which "
        "then runs over windows of the spectrum; auto: windows where the sensor has more.",
    )
    budget: Annotated[float, BeforeValidator(_seconds)] | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="How long to train: 600s, 30m or 2h; default: 30m.",
    )
    epochs: int | None = Field(
        None, ge=1, description="Train for so many passes over the training pixels instead."
    )
    workers: int | None = Field(
        None, ge=1, description="Training processes; default: one per GPU, or per processor."
    )
    use_gpu: bool = Field(False, description="Train on GPUs.")
    degradation: Degrading = Field(
        "bicubic", description="How LR is made of HR: as published, or by the sensor's MTF."
    )
    mtf: float | None = Field(
        None, gt=0, lt=1, description="With mtf: the sensor's MTF at Nyquist, e.g. 0.3."
    )
    normalise: Normalise = Field(
        "auto", description="How values reach [0, 1]; give a run the same. auto suits both."
    )
    mask: list[Mask] = Field(
        ["defective"],
        description="Quality flags of the source whose pixels are treated as nodata; 'none': none.",
    )
    holdout: float = Field(
        0.25, gt=0, le=0.5, description="Share that is never trained on: of scenes, or of each."
    )
    holdout_scene: list[str] = Field(
        default_factory=list, description="Hold out these scene ids (globs) instead."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Of split, patches and augmentation.")
    batch: int = Field(4, ge=1, le=256, description="Patches per step and process.")
    patch: int = Field(
        16, ge=3, le=128, description="LR pixels along a patch's side; less where scenes are small."
    )
    learning_rate: float = Field(
        2e-4, gt=0, le=1, allow_inf_nan=False, description="Peak of the schedule."
    )
    angle: float = Field(
        0.1, ge=0, le=100, allow_inf_nan=False, description="Weight of the spectral angle's loss."
    )
    patience: int = Field(
        10, ge=1, description="Stop after so many validations without a better PSNR."
    )
    report_seconds: float = Field(
        60.0, gt=0, allow_inf_nan=False, description="Between two validations and checkpoints."
    )
    report_steps: int | None = Field(
        None, ge=1, description="Validate and checkpoint every so many steps instead."
    )
    memory: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="GB of pixels that a process keeps at most."
    )
    max_failures: int = Field(3, ge=0, description="Deaths of a process to go on after.")
    registry: str | None = Field(
        None, description="Folder of models whose `latest` moves there if the new one is better."
    )
    licence: str = Field("unknown", description="SPDX name of the licence of the new weights.")
    asset: str | None = Field(
        None, description="Of a STAC source: key of the asset that is the scene."
    )
    include: list[str] = Field(default_factory=list, description="Scene ids to keep (globs).")
    exclude: list[str] = Field(default_factory=list, description="Scene ids to leave out (globs).")
    ray_address: str | None = Field(None, description="Join this Ray cluster; default: start one.")

    @field_validator("source", "parent", "out")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}", value):
            raise ValueError("only letters, digits, '.', '_' and '-', at most 120 of them")
        return value

    @field_validator("epochs")
    @classmethod
    def _one_end(cls, value: int | None, info: Any) -> int | None:
        if value is not None and info.data.get("budget") is not None:
            raise ValueError("give a budget or epochs, not both")
        return value

    @field_validator("mtf")
    @classmethod
    def _of_the_sensor(cls, value: float | None, info: Any) -> float | None:
        if value is not None and info.data.get("degradation") == "bicubic":
            raise ValueError("bicubic has none of its own: add --degradation mtf")
        return value

    @model_validator(mode="after")
    def _mtf_given(self) -> Self:
        if self.degradation == "mtf" and self.mtf is None:
            raise ValueError("--degradation mtf needs the sensor's MTF at Nyquist: --mtf 0.3")
        return self

    @property
    def seconds(self) -> float | None:
        """The budget in seconds; None where epochs are counted."""
        if self.epochs is not None:
            return None
        return DEFAULT_BUDGET if self.budget is None else self.budget
