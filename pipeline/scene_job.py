"""One scene as work to be done: the model, the options, and all that a worker must know of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from model import SSPSR, Card
from model.checkpoint import pack, weights_digest
from model.receptive_field import halo
from pipeline.catalog import SceneRef
from pipeline.grid import TileGrid
from pipeline.refinement import Refinement
from pipeline.settings import (
    Attention,
    Bands,
    Layout,
    Mask,
    Normalise,
    Outside,
    Precision,
    RunSettings,
)
from pipeline.storage import redact
from pipeline.store import SceneStore


@dataclass(frozen=True)
class OutputOptions:
    """The options that determine an output's values and bytes."""

    tile: int
    precision: Precision
    attention: Attention
    bands: Bands
    normalise: Normalise
    mask: tuple[Mask, ...]
    conserve: bool
    dtype: Literal["source", "float32"]
    layout: Layout
    outside: Outside = "fill"
    tolerance: float | None = None
    ensemble: bool = False
    uncertainty: bool = False

    @classmethod
    def of(cls, settings: RunSettings) -> OutputOptions:
        given = {name: getattr(settings, name) for name in cls.__dataclass_fields__}
        mask = tuple(sorted(set(settings.mask) - {"none"}))
        return cls(**given | {"mask": mask})

    @property
    def refinement(self) -> Refinement:
        return Refinement(self.conserve, self.ensemble, self.uncertainty)


@dataclass(frozen=True)
class Model:
    """A loaded checkpoint as the job handles it: bytes for the workers, facts for the plan."""

    data: bytes
    card: Card
    digest: str
    halo: int

    @classmethod
    def of(cls, net: SSPSR, card: Card) -> Model:
        return cls(pack(net, card), card, weights_digest(net), halo(net.config))


@dataclass(frozen=True)
class SceneJob:
    """One scene to super-resolve; all that a worker must know of it.

    Attributes:
        bands: of the output.
        source_bands: of the source, which are more or fewer if it is resampled.
        parts, listed: of `SceneRef`.
        holder: token of the run that works on it, which must have its lease; empty asks for none.
    """

    scene_id: str
    uri: str
    version: str
    fingerprint: str
    output: str
    options: OutputOptions
    grid: TileGrid
    bands: int
    code_version: str
    source_bands: int = 0
    parts: tuple[str, ...] = ()
    listed: bool = True
    holder: str = ""

    def store(self) -> SceneStore:
        return SceneStore(self.output, self.scene_id)

    @property
    def pixel_bands(self) -> int:
        rows, columns = self.grid.output_size
        return rows * columns * self.bands

    def pixel_bands_of(self, key: str) -> int:
        """HR pixels x bands of one tile, by its key."""
        row, column = (int(part) for part in key.split("."))
        tile = self.grid.tile
        height = min(tile, self.grid.height - row * tile)
        width = min(tile, self.grid.width - column * tile)
        return height * width * self.grid.scale**2 * self.bands


def code_version() -> str:
    """The version of this product, part of every fingerprint."""
    try:
        return version("sr-archive")
    except PackageNotFoundError:  # run from a working directory, as a Ray job may be
        return "uninstalled"


def fingerprint_of(ref: SceneRef, model: Model, options: OutputOptions) -> str:
    """Hash of all that determines an output: source version, weights, options, code version."""
    facts = {
        "source": redact(ref.uri),
        "version": ref.version,
        "weights": model.digest,
        "card": hashlib.sha256(model.card.model_dump_json().encode()).hexdigest(),
        "options": asdict(options),
        "code": code_version(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
