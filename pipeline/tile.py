"""One tile: read it with its halo, super-resolve its core, encode and write its shard."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from model.degradation import bicubic
from model.inference import Engine
from pipeline.arrays import VARIABLE, OutputScene
from pipeline.calibration import Calibration
from pipeline.encoding import Encoded, ValueEncoding, ValueRange
from pipeline.enlarging import repeat_pixels
from pipeline.grid import Tile, TileGrid, Window
from pipeline.ledger import TileRecord
from pipeline.masks import QUALITY, Flags, pixel_quality, read_flags
from pipeline.nodata import fill_gaps
from pipeline.overviews import coarser, halve, overview_name
from pipeline.quality import TileQuality, measure_tile
from pipeline.refinement import ONE_PASS, Refinement
from pipeline.resolving import Resolved, core_extents, margin_of, super_resolve
from pipeline.spread import SPREAD, encode_spread
from pipeline.swath import POSITIONS, Positions, read_positions, upsample_positions
from pipeline.values import Values, read_window


@dataclass(frozen=True)
class SceneContext:
    """Everything that the tiles of one scene share inside one worker.

    Attributes:
        engines: of `scene_engines`.
        overviews: factors of the levels that tiles write.
        refinement: what is done beyond one pass of the network.
    """

    scene: xr.Dataset
    grid: TileGrid
    calibration: Calibration
    encoding: ValueEncoding
    engines: tuple[Engine, ...]
    overviews: tuple[int, ...] = ()
    refinement: Refinement = ONE_PASS

    @property
    def margin(self) -> int:
        """LR pixels read around a core."""
        return margin_of(self.engines[0], conserve=self.refinement.conserve)


@dataclass(frozen=True)
class TileInput:
    """What a tile is made of.

    Attributes:
        values: `(bands, rows, cols)` physical of the core and what lies around it, NaN in gaps.
        core: in the pixels of `values`.
        flags: `(rows, cols)` of the core, where the source has quality layers.
        positions: where the scene is a swath.
    """

    values: Values
    core: Window
    flags: Flags | None = None
    positions: Positions | None = None


@dataclass(frozen=True)
class TileOutput:
    """What a tile writes, physical.

    Attributes:
        values, spread: of `pipeline.resolving.Resolved`.
        quality: `(rows, cols)` of LR pixels.
        consistency: of the used bands, degraded again.
        positions: of LR pixels.
    """

    values: Values
    quality: Flags
    consistency: TileQuality
    positions: Positions | None = None
    spread: Values | None = None


def read_tile(context: SceneContext, tile: Tile) -> TileInput:
    """The physical values of a tile and around it."""
    core = context.grid.core(tile)
    values, inside = read_around(context, core)
    positions = read_positions(context.scene, context.grid, tile)
    return TileInput(values, inside, read_flags(context.scene, core), positions)


def read_around(context: SceneContext, core: Window) -> tuple[Values, Window]:
    """The physical values of some LR pixels and their margin; where the core lies in them."""
    window = core.grown(context.margin, (context.grid.height, context.grid.width))
    return read_window(context.scene, window), core.within(window)


def compute_tile(context: SceneContext, tile: TileInput) -> TileOutput:
    """The core of a read tile, super-resolved, and what can be said of it."""
    return assess_tile(context, tile, resolve_tile(context, tile))


def resolve_tile(context: SceneContext, tile: TileInput) -> Resolved:
    """The network's part of `compute_tile`."""
    return super_resolve(
        tile.values, tile.core, context.engines, context.calibration, context.refinement
    )


def assess_tile(context: SceneContext, tile: TileInput, made: Resolved) -> TileOutput:
    """The rest of `compute_tile`, which needs no device."""
    bands = context.calibration.bands.valued
    quality = pixel_quality(tile.values, bands, tile.core, context.engines[0].halo, tile.flags)
    consistency = _consistency(context, tile, made.values)
    return TileOutput(made.values, quality, consistency, tile.positions, made.spread)


def _consistency(context: SceneContext, tile: TileInput, result: Values) -> TileQuality:
    used = list(context.calibration.bands.used)
    whole = len(used) == len(result)
    seen, result = (tile.values, result) if whole else (tile.values[used], result[used])
    filled = seen
    if np.isnan(seen.sum()):
        filled = fill_gaps(seen, context.calibration.background[used])
    extents = core_extents(tile.core, seen.shape[1:], context.margin)
    return measure_tile(seen, filled, result, extents, bicubic(context.grid.scale))


def write_tile(
    context: SceneContext, output: OutputScene, tile: Tile, content: TileOutput, **seconds: float
) -> TileRecord:
    """Encode and write what a tile makes; the record is for the ledger."""
    started = time.perf_counter()
    window = context.grid.core(tile).scaled(context.grid.scale)
    stored, beside = stored_arrays(context, content)
    objects = output.write(VARIABLE, window, stored)
    for name, block in beside.items():
        objects += output.write(name, window, block)
    values = content.values
    for factor in context.overviews:
        values = halve(values)
        name = f"{overview_name(factor)}/{VARIABLE}"
        objects += output.write(name, coarser(window, factor), Encoded(values, context.encoding))
    spans = {**seconds, "write": time.perf_counter() - started}
    record = record_of(context, tile, content, stored.valid)
    return replace(
        record,
        objects=objects,
        seconds={name: round(span, 4) for name, span in spans.items()},
    )


def stored_arrays(
    context: SceneContext, content: TileOutput
) -> tuple[Encoded, dict[str, NDArray[Any]]]:
    """What a tile stores on the finest grid: its values, and by name the arrays beside them."""
    scale = context.grid.scale
    arrays: dict[str, NDArray[Any]] = {QUALITY: repeat_pixels(content.quality, scale)}
    if content.spread is not None:
        arrays[SPREAD] = encode_spread(content.spread)
    if (at := content.positions) is not None:
        finer = upsample_positions(at.latitude, at.longitude, at.core, scale)
        arrays |= zip(POSITIONS, finer, strict=True)
    return Encoded(content.values, context.encoding), arrays


def record_of(
    context: SceneContext, tile: Tile, content: TileOutput, valid: ValueRange
) -> TileRecord:
    """What the ledger says of a tile's values; nothing of where they are stored.

    Args:
        valid: range of the valid values, as they are decoded.
    """
    return TileRecord(
        tile=tile.key,
        objects=(),
        valid=valid.count // context.grid.scale**2,
        minimum=valid.minimum,
        maximum=valid.maximum,
        consistency=content.consistency.to_record(),
    )
