"""One tile: read it with its halo, super-resolve its core, encode and write its shard."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from model.extent import Extent
from model.inference import Engine
from pipeline.arrays import VARIABLE
from pipeline.calibration import Calibration, Values, network_input, read_window
from pipeline.encoding import ValueEncoding
from pipeline.enlarging import enlarge
from pipeline.grid import Tile, TileGrid, Window
from pipeline.masks import QUALITY, Flags, pixel_quality, read_flags
from pipeline.nodata import FILL_DEPTH, fill_gaps
from pipeline.overviews import coarser, halve, overview_name
from pipeline.store import OutputScene, TileRecord
from pipeline.swath import POSITIONS, Positions, read_positions, upsample_positions

_TURNED_ROWS = 8


@dataclass(frozen=True)
class SceneContext:
    """Everything that the tiles of one scene share inside one worker.

    Attributes:
        engines: of `scene_engines`.
        overviews: factors of the levels that tiles write.
    """

    scene: xr.Dataset
    grid: TileGrid
    calibration: Calibration
    encoding: ValueEncoding
    engines: tuple[Engine, ...]
    overviews: tuple[int, ...] = ()

    @property
    def margin(self) -> int:
        """LR pixels read around a core."""
        return margin_of(self.engines[0])


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
        values: `(bands, rows, cols)` of HR pixels, NaN in gaps.
        quality: `(rows, cols)` of LR pixels.
        positions: of LR pixels.
    """

    values: Values
    quality: Flags
    positions: Positions | None = None


def scene_engines(engine: Engine, calibration: Calibration) -> tuple[Engine, ...]:
    """The network with the scene's frozen attention, one per band window."""
    statistics = calibration.statistics or (None,) * len(calibration.bands.windows)
    return tuple(engine.with_statistics(each) for each in statistics)


def margin_of(engine: Engine) -> int:
    """LR pixels around a core: the network's halo, and what fills gaps inside it."""
    return engine.halo + FILL_DEPTH


def super_resolve(
    values: Values, core: Window, engines: Sequence[Engine], calibration: Calibration
) -> Values:
    """Super-resolve one window.

    Args:
        values: `(bands, rows, cols)` physical, NaN in gaps; the core and `margin_of` LR pixels
            around it, fewer only where the scene ends.
        core: the part to return, in the window's own LR pixels.
        engines: of `scene_engines`.
        calibration: the scene's constants.

    Returns:
        `(bands, scale*rows, scale*cols)` of the core, physical; NaN in bands that are neither used
        nor enlarged, and where the LR pixel under a value is a gap.
    """
    scale, device = engines[0].config.scale, engines[0].device
    inputs = torch.from_numpy(network_input(values, calibration)).to(device)
    plan = calibration.bands
    weights = plan.blend_weights(len(values)) / calibration.gains
    rows, columns = core.scaled(scale).shape
    total = torch.empty(len(values), rows, columns, device=device)
    begun = np.zeros(len(values), dtype=bool)
    for window, engine, weight in zip(plan.windows, engines, weights, strict=True):
        x = inputs[list(window.bands)][None]
        y = run_engine(engine, x, core)[0, window.start : window.stop]
        _blend(total, y, window.kept, torch.from_numpy(weight).to(device), begun)
    result: Values = total.cpu().numpy()
    result[_unused(plan.used, len(values))] = np.nan
    if bands := list(plan.upsampled):
        filled = fill_gaps(values[bands], calibration.background[bands])
        result[bands] = enlarge(filled, core, scale, device)
    gaps = np.isnan(values[:, *core.slices])
    for band in np.flatnonzero(gaps.any(axis=(1, 2))):
        result[band][_repeat(gaps[band], scale)] = np.nan
    return result


def _blend(
    total: torch.Tensor,
    y: torch.Tensor,
    bands: Sequence[int],
    weight: torch.Tensor,
    begun: NDArray[np.bool_],
) -> None:
    """total[band] += weight[band] * y, band by band of y, which is channels-last in memory.

    Bands that are not `begun` hold nothing yet and are begun here.
    """
    places = np.asarray(bands)
    cuts = (np.diff(places) != 1) | np.diff(begun[places])
    for run in np.split(np.arange(len(places)), np.flatnonzero(cuts) + 1):
        first, last = int(run[0]), int(run[-1]) + 1
        there = slice(bands[first], bands[first] + last - first)
        factor = weight[there, None, None]
        # A few rows of all bands at a time stay in the cache while their layout is turned.
        for row in range(0, total.shape[1], _TURNED_ROWS):
            rows = slice(row, row + _TURNED_ROWS)
            into = total[there, rows]
            if begun[bands[first]]:
                into.addcmul_(y[first:last, rows], factor)
            else:
                torch.mul(y[first:last, rows], factor, out=into)
    begun[places] = True


def run_engine(engine: Engine, x: torch.Tensor, core: Window) -> torch.Tensor:
    """The core of a window; with attention per tile the window counts as a scene of its own."""
    height, width = x.shape[2:]
    if engine.statistics is None:
        near = Window(
            max(0, core.top - engine.halo),
            min(height, core.bottom + engine.halo),
            max(0, core.left - engine.halo),
            min(width, core.right + engine.halo),
        )
        rows, columns = core.within(near).scaled(engine.config.scale).slices
        return engine(x[:, :, *near.slices])[:, :, rows, columns]
    reach = margin_of(engine)
    return engine.tile(
        x,
        Extent(core.top, core.bottom, core.top < reach, height - core.bottom < reach),
        Extent(core.left, core.right, core.left < reach, width - core.right < reach),
    )


def _unused(used: tuple[int, ...], bands: int) -> NDArray[np.bool_]:
    mask = np.ones(bands, dtype=bool)
    mask[list(used)] = False
    return mask


def read_tile(context: SceneContext, tile: Tile) -> TileInput:
    """The physical values of a tile and around it."""
    window, core = context.grid.window(tile, context.margin), context.grid.core(tile)
    values, flags = read_window(context.scene, window), read_flags(context.scene, core)
    positions = read_positions(context.scene, context.grid, tile)
    return TileInput(values, core.within(window), flags, positions)


def compute_tile(context: SceneContext, tile: TileInput) -> TileOutput:
    """The core of a read tile, super-resolved."""
    values = super_resolve(tile.values, tile.core, context.engines, context.calibration)
    bands, reach = context.calibration.bands.valued, context.engines[0].halo
    quality = pixel_quality(tile.values, bands, tile.core, reach, tile.flags)
    return TileOutput(values, quality, tile.positions)


def write_tile(
    context: SceneContext, output: OutputScene, tile: Tile, content: TileOutput, **seconds: float
) -> TileRecord:
    """Encode and write what a tile makes; the record is for the ledger."""
    started = time.perf_counter()
    scale = context.grid.scale
    window = context.grid.core(tile).scaled(scale)
    encoded, valid = context.encoding.encode(content.values)
    objects = output.write(VARIABLE, window, encoded)
    objects += output.write(QUALITY, window, _repeat(content.quality, scale))
    if (at := content.positions) is not None:
        finer = upsample_positions(at.latitude, at.longitude, at.core, scale)
        for name, degrees in zip(POSITIONS, finer, strict=True):
            objects += output.write(name, window, degrees)
    values = content.values
    for factor in context.overviews:
        values = halve(values)
        name = f"{overview_name(factor)}/{VARIABLE}"
        objects += output.write(name, coarser(window, factor), context.encoding.encode(values)[0])
    return TileRecord(
        tile=tile.key,
        objects=objects,
        seconds={**seconds, "write": round(time.perf_counter() - started, 4)},
        valid=valid.count // scale**2,
        minimum=valid.minimum,
        maximum=valid.maximum,
    )


def _repeat(plane: NDArray[Any], scale: int) -> NDArray[Any]:
    """Every LR pixel of `(..., rows, cols)` as scale x scale equal ones."""
    return plane.repeat(scale, axis=-2).repeat(scale, axis=-1)
