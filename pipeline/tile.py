"""One tile: read it with its halo, super-resolve its core, encode and write its shard."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from model.extent import Extent
from model.inference import Engine
from pipeline.arrays import OutputArray
from pipeline.calibration import Calibration, Values, network_input, read_window
from pipeline.encoding import ValueEncoding
from pipeline.grid import Tile, TileGrid, Window
from pipeline.nodata import FILL_DEPTH
from pipeline.store import TileRecord

_TURNED_ROWS = 8


@dataclass(frozen=True)
class SceneContext:
    """Everything that the tiles of one scene share inside one worker.

    Attributes:
        engines: of `scene_engines`.
    """

    scene: xr.Dataset
    grid: TileGrid
    calibration: Calibration
    encoding: ValueEncoding
    engines: tuple[Engine, ...]

    @property
    def margin(self) -> int:
        """LR pixels read around a core."""
        return margin_of(self.engines[0])


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
        `(bands, scale*rows, scale*cols)` of the core, physical; NaN in bands that are not used and
        where the LR pixel under a value is a gap.
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
    gaps = np.isnan(values[:, *core.slices])
    for band in np.flatnonzero(gaps.any(axis=(1, 2))):
        result[band][gaps[band].repeat(scale, axis=0).repeat(scale, axis=1)] = np.nan
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


def read_tile(context: SceneContext, tile: Tile) -> tuple[Values, Window]:
    """The physical values around a tile and its core inside them."""
    window = context.grid.window(tile, context.margin)
    return read_window(context.scene, window), context.grid.core(tile).within(window)


def compute_tile(context: SceneContext, values: Values, core: Window) -> Values:
    """The core of a read tile, super-resolved, physical."""
    return super_resolve(values, core, context.engines, context.calibration)


def write_tile(
    context: SceneContext, output: OutputArray, tile: Tile, physical: Values, **seconds: float
) -> TileRecord:
    """Encode and write a tile's shard; the record is for the ledger."""
    started = time.perf_counter()
    window = context.grid.core(tile).scaled(context.grid.scale)
    encoded, valid = context.encoding.encode(physical)
    objects = output.write(window, encoded)
    return TileRecord(
        tile=tile.key,
        objects=objects,
        seconds={**seconds, "write": round(time.perf_counter() - started, 4)},
        valid=valid.count // context.grid.scale**2,
        minimum=valid.minimum,
        maximum=valid.maximum,
    )
