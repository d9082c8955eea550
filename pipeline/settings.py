"""A command's options in one class, shared by the command line, the environment and the flow."""

from __future__ import annotations

import types
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

from pydantic import Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from pipeline.errors import UsageError, closest
from pipeline.storage import redact

Attention = Literal["scene", "global"]
Devices = Literal["auto", "cpu", "cuda", "mixed"]
Precision = Literal["auto", "fp32", "bf16"]  # as in model.inference, without loading torch
Bands = Literal["auto", "match", "resample", "windows"]
Outside = Literal["fill", "upsample"]
Normalise = Literal["auto", "reflectance", "scene", "bands"]
Mask = Literal[
    "none",
    "cloud",
    "cloud_shadow",
    "cirrus",
    "haze",
    "snow",
    "water",
    "saturated",
    "defective",
    "defective_band",
]
Layout = Literal["sharded", "plain"]
Protocol = Literal["wald", "cave", "chikusei", "pavia"]
Degrading = Literal["bicubic", "mtf"]
Positive = Annotated[int, Field(ge=1)]
Tile = Annotated[int, Field(ge=8, le=1024)]  # LR pixels
Share = Annotated[float, Field(gt=0, le=1)]  # of a GPU
Tolerance = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]  # nm
Fraction = Annotated[float, Field(gt=0)]
Borders = Annotated[int, Field(ge=0, le=1000)]
LeaseSeconds = Annotated[float, Field(ge=3, le=3600)]


class Settings(BaseSettings):
    """What the options of all commands share: where they come from, and how a bad one is said."""

    @classmethod
    def from_options(
        cls, options: Mapping[str, Any], defaults: Mapping[str, Any] = MappingProxyType({})
    ) -> Self:
        """Settings from given options, then from the environment, then from defaults.

        Args:
            options: by name; those that are None or empty lists were not given.
            defaults: an operator's own, by name.

        Raises:
            UsageError: one line that names the option.
        """
        given = {name: value for name, value in options.items() if value not in (None, [])}
        try:
            return cls(**{**defaults, **EnvSettingsSource(cls)(), **given})
        except ValidationError as error:
            first = error.errors()[0]
            field = str(first["loc"][0]) if first["loc"] else ""
            name = cls.option_name(field) if field else "options"
            if first["type"] == "missing":
                variable = f"{cls.model_config['env_prefix']}{field}".upper()
                raise UsageError(
                    f"{name} is needed: on the command line, as {variable}, or in a file (--help)"
                ) from None
            value = redact(repr(first["input"]))
            meant = closest(str(first["input"]), cls.choices(field))
            raise UsageError(f"{name}: {first['msg']} (got {value}){meant}") from None

    @classmethod
    def choices(cls, field: str) -> tuple[str, ...]:
        """The words that a setting can be, or that its list can hold; none if it can be any."""
        known = cls.model_fields.get(field)
        for kind in plain_types(known.annotation) if known else ():
            inner = get_args(kind)[0] if get_origin(kind) is list else kind
            if get_origin(inner) is Literal:
                return tuple(str(choice) for choice in get_args(inner))
        return ()

    @classmethod
    def option_name(cls, field: str) -> str:
        """A setting's name on the command line, without dashes before it."""
        known = cls.model_fields.get(field)
        extra = known.json_schema_extra if known is not None else None
        named = extra.get("option") if isinstance(extra, dict) else None
        return str(named or field.replace("_", "-"))


def plain_types(annotation: Any) -> tuple[Any, ...]:
    """The types of an annotation, without None."""
    union = get_origin(annotation) in (Union, types.UnionType)
    kinds = get_args(annotation) if union else (annotation,)
    return tuple(kind for kind in kinds if kind is not type(None))


class RunSettings(Settings):
    """Options of `sr-archive run`; each may come from `SR_ARCHIVE_<NAME>` in the environment."""

    model_config = SettingsConfigDict(env_prefix="SR_ARCHIVE_", extra="forbid")

    source: str = Field(description="Folder, bucket prefix or single scene: a path or fsspec URL.")
    output: str = Field(description="Folder or bucket prefix for <scene_id>.zarr: a path or URL.")
    model: str = Field(
        "starter", description="Checkpoint (.safetensors or published .pth), or registry:FOLDER."
    )
    tile: Tile = Field(64, description="LR pixels along a tile's side.")
    workers: Positive | None = Field(None, description="Ray actors; default: one per GPU.")
    cpus_per_worker: Positive | None = Field(
        None, description="CPUs that each worker asks Ray for; default: its part of all."
    )
    gpus_per_worker: Share | None = Field(
        None,
        description="GPU, or part of one, that each worker asks Ray for, though it may be there "
        "only later (autoscaling); default: its part of all.",
    )
    devices: Devices = Field(
        "auto",
        description="Where tiles run: on GPUs if there are any, or as said; mixed: on GPUs and on "
        "nodes without one.",
    )
    precision: Precision = Field(
        "auto", description="bf16 where the processor has matrix units for it, else fp32."
    )
    attention: Attention = Field(
        "scene", description="Pooling of channel attention: frozen per scene, or per tile."
    )
    bands: Bands = Field("auto", description="What to do with bands that are not the model's.")
    outside: Outside = Field(
        "fill",
        description="With bands match, good bands that the model lacks: left out, or by bicubic.",
    )
    tolerance: Tolerance | None = Field(
        None,
        description="Largest wavelength difference of a match, nm; default: half a band step.",
    )
    normalise: Normalise = Field(
        "auto",
        description="How values reach [0, 1]: as they are, by one factor, or one per band.",
    )
    mask: list[Mask] = Field(
        ["defective"],
        description="Quality flags of the source whose pixels are treated as nodata; 'none': none.",
    )
    conserve: bool = Field(
        False, description="Change results as little as makes them degrade to the scene again."
    )
    ensemble: bool = Field(
        False,
        description="The result is the mean over the 8 flips and turns of each tile; takes 8 times "
        "the network's work.",
    )
    uncertainty: bool = Field(
        False,
        description="Also publish by how much the results of the 8 flips and turns of each tile "
        "differ, as the array reflectance_spread; takes 8 times the network's work.",
    )
    max_inconsistency: Fraction | None = Field(
        None,
        description="Set scenes aside whose degraded result differs from the scene by more than "
        "this part of its root mean square.",
    )
    seam_borders: Borders = Field(
        2,
        description="Borders between tiles of each scene, at most, that are computed again across "
        "and compared before it is published; 0: none.",
    )
    dtype: Literal["source", "float32"] = Field("source", description="Type of the output values.")
    layout: Layout = Field("sharded", description="plain: unsharded Zarr v2, for GDAL before 3.13.")
    asset: str | None = Field(
        None, description="Of a STAC source: key of the asset that is the scene."
    )
    include: list[str] = Field(default_factory=list, description="Scene ids to keep (globs).")
    exclude: list[str] = Field(default_factory=list, description="Scene ids to leave out (globs).")
    stale: Literal["replace", "keep"] = Field(
        "replace", description="A published scene whose source, model or options changed."
    )
    max_attempts: Positive = Field(3, description="Tries per tile before its scene is set aside.")
    lease_seconds: LeaseSeconds = Field(
        120.0,
        description="How long a run that stopped without a word keeps its scenes from other runs.",
    )
    ray_address: str | None = Field(None, description="Join this Ray cluster; default: start one.")

    @field_validator("outside")
    @classmethod
    def _of_a_match(cls, value: Outside, info: ValidationInfo) -> Outside:
        if value == "upsample" and info.data.get("bands", "match") != "match":
            raise ValueError("upsample needs --bands match")
        return value

    @field_validator("source", "output", "model")
    @classmethod
    def _not_empty(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("must not be empty")
        return value


class PlanSettings(RunSettings):
    """Options of `sr-archive plan`."""

    estimate: bool = Field(
        False, description="Measure some tiles here, and estimate time, bytes, requests, cost."
    )
    estimate_seconds: float = Field(
        60.0, ge=1, le=3600, description="About how long --estimate may measure."
    )
    prices: str | None = Field(
        None, description="With --estimate: TOML or JSON file of prices, for the cost."
    )

    @field_validator("prices")
    @classmethod
    def _of_an_estimate(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None and not info.data.get("estimate", True):
            raise ValueError("needs --estimate")
        return value
