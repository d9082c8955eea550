"""One tile: read it with its halo, super-resolve its core, encode and write its shard."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from model.extent import Extent
from model.inference import Engine
from pipeline.arrays import OutputArray
from pipeline.calibration import Calibration, Values, network_input, read_window
from pipeline.enlarging import enlarge
from pipeline.grid import Tile, TileGrid, Window
from pipeline.nodata import FILL_DEPTH, fill_gaps
from pipeline.store import TileRecord

_TURNED_ROWS = 8


@dataclass(frozen=True)
class ValueEncoding:
    """How physical values are stored: stored = (physical - add_offset) / scale_factor.

    Attributes:
        dtype: NumPy name of the stored type.
        fill: stored value of nodata; None where an integer source has none and needs none.
    """

    dtype: str
    scale_factor: float = 1.0
    add_offset: float = 0.0
    fill: float | int | None = None

    @classmethod
    def of_scene(
        cls, encoding: Mapping[Any, Any], *, float32: bool, needs_fill: bool
    ) -> ValueEncoding:
        """The source's own integer scale, or float32 with NaN.

        Args:
            encoding: of the source variable: `dtype`, `scale_factor`, `add_offset`, `_FillValue`.
            float32: ask for physical float32 whatever the source.
            needs_fill: some output values are fill though the source declares no fill value;
                the type's lowest (signed) or highest (unsigned) value is taken then.
        """
        dtype = np.dtype(encoding.get("dtype", "float32"))
        if float32 or not np.issubdtype(dtype, np.integer):
            return cls("float32", fill=float("nan"))
        fill = encoding.get("_FillValue")
        limits = np.iinfo(dtype)
        if fill is None or not limits.min <= float(fill) <= limits.max:
            fill = (limits.min if limits.min < 0 else limits.max) if needs_fill else None
        return cls(
            dtype.name,
            float(encoding.get("scale_factor", 1.0)),
            float(encoding.get("add_offset", 0.0)),
            None if fill is None else int(fill),
        )

    def to_xarray(self) -> dict[str, Any]:
        """Encoding for xarray; what is neutral is left out."""
        facts: dict[str, Any] = {"dtype": self.dtype}
        if self.scale_factor != 1.0:
            facts["scale_factor"] = self.scale_factor
        if self.add_offset != 0.0:
            facts["add_offset"] = self.add_offset
        facts["_FillValue"] = self.fill
        return facts

    def encode(self, physical: Values) -> NDArray[Any]:
        """Stored values; NaN becomes fill, valid values never do.

        Raises:
            ValueError: NaN where no fill value is declared.
        """
        dtype = np.dtype(self.dtype)
        if not np.issubdtype(dtype, np.integer):
            return physical.astype(dtype)
        result = np.empty(physical.shape, dtype)
        for plane, encoded in zip(physical, result, strict=True):  # one band fits the cache
            self._encode_plane(plane, encoded)
        return result

    def _encode_plane(self, physical: NDArray[np.float32], encoded: NDArray[Any]) -> None:
        limits = np.iinfo(encoded.dtype)
        # float32 holds every count of a 16-bit type as exactly as it holds the physical value.
        precise = np.dtype(np.float32 if encoded.itemsize <= 2 else np.float64)
        stored = np.subtract(physical, precise.type(self.add_offset), dtype=precise)
        np.divide(stored, precise.type(self.scale_factor), out=stored)
        np.rint(stored, out=stored)
        lowest, highest = stored.min(), stored.max()  # NaN if there is one
        missing = None
        if np.isnan(lowest):
            missing = np.isnan(stored)
            stored[missing] = 0
        if not (lowest >= limits.min and highest <= limits.max):
            np.clip(stored, limits.min, limits.max, out=stored)
        encoded[...] = stored
        if self.fill is None:
            if missing is not None:
                raise ValueError("nodata in the output, but no fill value is declared")
            return
        if not (lowest > self.fill or highest < self.fill):
            beside = self.fill + 1 if self.fill < limits.max else self.fill - 1
            encoded[encoded == self.fill] = beside
        if missing is not None:
            encoded[missing] = self.fill


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
        `(bands, scale*rows, scale*cols)` of the core, physical; NaN in bands that are neither used
        nor enlarged, and where the LR pixel under a value is a gap.
    """
    scale, device = engines[0].config.scale, engines[0].device
    inputs = torch.from_numpy(network_input(values, calibration)).to(device)
    plan = calibration.bands
    weights = plan.blend_weights(len(values)) / calibration.gains
    rows, columns = core.scaled(scale).shape
    total = torch.zeros(len(values), rows, columns, device=device)
    for window, engine, weight in zip(plan.windows, engines, weights, strict=True):
        x = inputs[list(window.bands)][None]
        y = run_engine(engine, x, core)[0, window.start : window.stop]
        _add_weighted(total, y, window.kept, torch.from_numpy(weight).to(device))
    result: Values = total.cpu().numpy()
    result[_unused(plan.used, len(values))] = np.nan
    if bands := list(plan.upsampled):
        filled = fill_gaps(values[bands], calibration.background[bands])
        result[bands] = enlarge(filled, core, scale, device)
    gaps = np.isnan(values[:, *core.slices])
    for band in np.flatnonzero(gaps.any(axis=(1, 2))):
        result[band][gaps[band].repeat(scale, axis=0).repeat(scale, axis=1)] = np.nan
    return result


def _add_weighted(
    total: torch.Tensor, y: torch.Tensor, bands: Sequence[int], weight: torch.Tensor
) -> None:
    """total[band] += weight[band] * y, band by band of y, which is channels-last in memory."""
    runs = np.split(np.arange(len(bands)), np.flatnonzero(np.diff(bands) != 1) + 1)
    for run in runs:
        first, last = int(run[0]), int(run[-1]) + 1
        there = slice(bands[first], bands[first] + last - first)
        factor = weight[there, None, None]
        # A few rows of all bands at a time stay in the cache while their layout is turned.
        for row in range(0, total.shape[1], _TURNED_ROWS):
            rows = slice(row, row + _TURNED_ROWS)
            total[there, rows].addcmul_(y[first:last, rows], factor)


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
    objects = output.write(window, context.encoding.encode(physical))
    valid = np.isfinite(physical)
    some = bool(valid.any())
    return TileRecord(
        tile=tile.key,
        objects=objects,
        seconds={**seconds, "write": round(time.perf_counter() - started, 4)},
        valid=int(np.count_nonzero(valid)) // context.grid.scale**2,
        minimum=float(np.nanmin(physical)) if some else None,
        maximum=float(np.nanmax(physical)) if some else None,
    )
