"""One tile: read it with its halo, super-resolve its core, encode and write its shard."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from model.degradation import bicubic
from model.extent import Extent
from model.inference import Engine
from model.projection import conserve as conserved
from model.projection import reach
from pipeline.arrays import VARIABLE, WrittenObject
from pipeline.calibration import Calibration, network_input, read_window
from pipeline.encoding import ValueEncoding, ValueRange
from pipeline.enlarging import enlarge
from pipeline.grid import Tile, TileGrid, Window
from pipeline.masks import QUALITY, Flags, pixel_quality, read_flags
from pipeline.nodata import FILL_DEPTH, fill_gaps
from pipeline.overviews import coarser, halve, overview_name
from pipeline.quality import TileQuality, measure_tile
from pipeline.store import OutputScene, TileRecord
from pipeline.swath import POSITIONS, Positions, read_positions, upsample_positions
from pipeline.values import Values

_TURNED_ROWS = 8


@dataclass(frozen=True)
class SceneContext:
    """Everything that the tiles of one scene share inside one worker.

    Attributes:
        engines: of `scene_engines`.
        overviews: factors of the levels that tiles write.
        conserve: change the result so that, degraded, it is the scene again.
    """

    scene: xr.Dataset
    grid: TileGrid
    calibration: Calibration
    encoding: ValueEncoding
    engines: tuple[Engine, ...]
    overviews: tuple[int, ...] = ()
    conserve: bool = False

    @property
    def margin(self) -> int:
        """LR pixels read around a core."""
        return margin_of(self.engines[0], conserve=self.conserve)


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
        consistency: of the used bands, degraded again.
        positions: of LR pixels.
    """

    values: Values
    quality: Flags
    consistency: TileQuality
    positions: Positions | None = None


def scene_engines(engine: Engine, calibration: Calibration) -> tuple[Engine, ...]:
    """The network with the scene's frozen attention, one per band window."""
    statistics = calibration.statistics or (None,) * len(calibration.bands.windows)
    return tuple(engine.with_statistics(each) for each in statistics)


def margin_of(engine: Engine, *, conserve: bool = False) -> int:
    """LR pixels around a core: the network's halo, what fills gaps inside it, and conserving's."""
    return margin_around(engine.halo, engine.config.scale, conserve=conserve)


def margin_around(halo: int, scale: int, *, conserve: bool = False) -> int:
    """The same, of a network with this halo and scale."""
    return halo + FILL_DEPTH + (reach(bicubic(scale)) if conserve else 0)


def super_resolve(
    values: Values,
    core: Window,
    engines: Sequence[Engine],
    calibration: Calibration,
    *,
    conserve: bool = False,
) -> Values:
    """Super-resolve one window.

    Args:
        values: `(bands, rows, cols)` physical, NaN in gaps; the core and `margin_of` LR pixels
            around it, fewer only where the scene ends.
        core: the part to return, in the window's own LR pixels.
        engines: of `scene_engines`.
        calibration: the scene's constants.
        conserve: change the network's bands as little as makes them degrade to `values`.

    Returns:
        `(bands, scale*rows, scale*cols)` of the core, physical; NaN in bands that are neither used
        nor enlarged, and where the LR pixel under a value is a gap.
    """
    scale, device = engines[0].config.scale, engines[0].device
    plan = calibration.bands
    if conserve:
        total = _conserved(values, core, engines, calibration)
    else:
        total = _network(values, core, engines, calibration)
    result: Values = total.cpu().numpy()
    result[_unused(plan.used, len(values))] = np.nan
    if bands := list(plan.upsampled):
        filled = fill_gaps(values[bands], calibration.background[bands])
        result[bands] = enlarge(filled, core, scale, device)
    gaps = np.isnan(values[:, *core.slices])
    for band in np.flatnonzero(gaps.any(axis=(1, 2))):
        result[band][_repeat(gaps[band], scale)] = np.nan
    return result


def _network(
    values: Values, core: Window, engines: Sequence[Engine], calibration: Calibration
) -> torch.Tensor:
    """What the network makes of the core, gaps filled; nothing sensible in bands not used."""
    device = engines[0].device
    inputs = torch.from_numpy(network_input(values, calibration)).to(device)
    plan = calibration.bands
    weights = plan.blend_weights(len(values)) / calibration.gains
    rows, columns = core.scaled(engines[0].config.scale).shape
    total = torch.empty(len(values), rows, columns, device=device)
    begun = np.zeros(len(values), dtype=bool)
    for window, engine, weight in zip(plan.windows, engines, weights, strict=True):
        x = inputs[list(window.bands)][None]
        y = run_engine(engine, x, core)[0, window.start : window.stop]
        _blend(total, y, window.kept, torch.from_numpy(weight).to(device), begun)
    return total


def _conserved(
    values: Values, core: Window, engines: Sequence[Engine], calibration: Calibration
) -> torch.Tensor:
    """The same, projected on what degrades to the scene; needs the network around the core."""
    engine, used = engines[0], list(calibration.bands.used)
    degradation = bicubic(engine.config.scale)
    around = core.grown(reach(degradation), values.shape[1:])
    total = _network(values, around, engines, calibration)
    rows, columns = core.scaled(engine.config.scale).shape
    result = torch.empty(len(values), rows, columns, device=engine.device)
    extents = core_extents(core, values.shape[1:], margin_of(engine, conserve=True))
    down, right = (
        Extent(each.start - first, each.stop - first, each.at_start, each.at_end)
        for each, first in zip(extents, (around.top, around.left), strict=True)
    )
    lr = torch.from_numpy(values[used][:, *around.slices]).to(engine.device)
    result[used] = conserved(total[used], lr, down, right, degradation)
    return result


def core_extents(core: Window, shape: Sequence[int], margin: int) -> tuple[Extent, Extent]:
    """Rows and columns of a core in a window that has `margin` around it unless the scene ends."""
    height, width = shape
    return (
        Extent(core.top, core.bottom, core.top < margin, height - core.bottom < margin),
        Extent(core.left, core.right, core.left < margin, width - core.right < margin),
    )


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
        near = core.grown(engine.halo, (height, width))
        rows, columns = core.within(near).scaled(engine.config.scale).slices
        return engine(x[:, :, *near.slices])[:, :, rows, columns]
    return engine.tile(x, *core_extents(core, (height, width), margin_of(engine)))


def _unused(used: tuple[int, ...], bands: int) -> NDArray[np.bool_]:
    mask = np.ones(bands, dtype=bool)
    mask[list(used)] = False
    return mask


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
    calibration, engine = context.calibration, context.engines[0]
    values = super_resolve(
        tile.values, tile.core, context.engines, calibration, conserve=context.conserve
    )
    bands = calibration.bands.valued
    quality = pixel_quality(tile.values, bands, tile.core, engine.halo, tile.flags)
    return TileOutput(values, quality, _consistency(context, tile, values), tile.positions)


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
    arrays, valid = stored_arrays(context, content)
    objects: tuple[WrittenObject, ...] = ()
    for name, block in arrays.items():
        objects += output.write(name, window, block)
    values = content.values
    for factor in context.overviews:
        values = halve(values)
        name = f"{overview_name(factor)}/{VARIABLE}"
        objects += output.write(name, coarser(window, factor), context.encoding.encode(values)[0])
    spans = {**seconds, "write": time.perf_counter() - started}
    record = record_of(context, tile, content, valid)
    return replace(
        record,
        objects=objects,
        seconds={name: round(span, 4) for name, span in spans.items()},
    )


def stored_arrays(
    context: SceneContext, content: TileOutput
) -> tuple[dict[str, NDArray[Any]], ValueRange]:
    """What a tile stores in the finest arrays, by name, and the range of its valid values."""
    scale = context.grid.scale
    encoded, valid = context.encoding.encode(content.values)
    arrays = {VARIABLE: encoded, QUALITY: _repeat(content.quality, scale)}
    if (at := content.positions) is not None:
        finer = upsample_positions(at.latitude, at.longitude, at.core, scale)
        arrays |= zip(POSITIONS, finer, strict=True)
    return arrays, valid


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


def _repeat(plane: NDArray[Any], scale: int) -> NDArray[Any]:
    """Every LR pixel of `(..., rows, cols)` as scale x scale equal ones."""
    return plane.repeat(scale, axis=-2).repeat(scale, axis=-1)
