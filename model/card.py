"""The card: what a checkpoint is, in words and numbers that travel with its weights."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.config import SSPSRConfig


class CardError(ValueError):
    """The card is missing, is not JSON, or contradicts itself."""


class Architecture(BaseModel):
    """`SSPSRConfig` as the card stores it."""

    model_config = ConfigDict(extra="forbid")

    bands: int
    scale: int
    group_size: int
    group_overlap: int
    features: int
    blocks: int
    residual_scale: float
    shared_branch: bool

    def config(self) -> SSPSRConfig:
        return SSPSRConfig(**self.model_dump())


class Normalisation(BaseModel):
    """How physical values reached the network's [0, 1] in training.

    `reflectance`: used as they are (1 is a perfectly white surface).
    `full-scale`: integers divided by `divisor`.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["reflectance", "full-scale"] = "reflectance"
    divisor: float = Field(1.0, gt=0)


class Card(BaseModel):
    """Description of a checkpoint; JSON in the safetensors metadata.

    Attributes:
        name: short name, unique in a registry.
        architecture: the network's config.
        wavelengths: band centres, nm; None where unknown.
        fwhm: full widths at half maximum, nm; None where unknown.
        normalisation: how training values reached [0, 1].
        training_data: data sets with their source and terms of use.
        training: optimiser, steps, degradation, seed: what repeats the training.
        licence: SPDX name for the weights.
        metrics: figures per evaluation, e.g. {"cave/test x4": {"psnr": 38.1, ...}}.
        notes: limits the user must know.
    """

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    architecture: Architecture
    wavelengths: list[float] | None = None
    fwhm: list[float] | None = None
    normalisation: Normalisation = Normalisation(divisor=1.0)
    training_data: list[str] = []
    training: dict[str, str | int | float | bool] = {}
    licence: str = "unknown"
    metrics: dict[str, dict[str, float]] = {}
    notes: list[str] = []

    @model_validator(mode="after")
    def _lengths(self) -> Card:
        for name in ("wavelengths", "fwhm"):
            values = getattr(self, name)
            if values is not None and len(values) != self.architecture.bands:
                raise ValueError(f"{len(values)} {name} for {self.architecture.bands} bands")
        return self

    @classmethod
    def parse(cls, text: str) -> Card:
        """Read a card from JSON.

        Raises:
            CardError: one line that names the first fault.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "card"
            raise CardError(f"the card is not valid: {where}: {first['msg']}") from None
