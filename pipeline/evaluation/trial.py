"""One scene: degraded, super-resolved by every checkpoint as the archive job would, and scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import xarray as xr

from model import Card
from model.degradation import Degradation
from model.inference import Engine
from pipeline.calibration import Calibration
from pipeline.enlarging import REACH, enlarge
from pipeline.errors import SceneError
from pipeline.evaluation.degraded import crop, degraded, replaced
from pipeline.evaluation.regions import Region, blocks_of
from pipeline.evaluation.result import (
    BICUBIC,
    LONGEST_TEXT,
    SceneResult,
)
from pipeline.evaluation.scores import Scores
from pipeline.grid import TileGrid, Window
from pipeline.nodata import FILL_DEPTH, fill_gaps
from pipeline.preparation import constants_of, read_as_asked
from pipeline.refinement import ONE_PASS, Refinement
from pipeline.resolving import margin_of, scene_engines, super_resolve
from pipeline.scene_job import OutputOptions
from pipeline.storage import redact
from pipeline.values import Values, read_window

PEAK_PERCENTILE = 99.9


@dataclass(frozen=True)
class Contender:
    """A checkpoint, ready to run."""

    name: str
    engine: Engine
    card: Card
    digest: str


def super_resolve_core(
    low: xr.Dataset,
    core: Window,
    engines: Sequence[Engine],
    calibration: Calibration,
    refinement: Refinement = ONE_PASS,
) -> Values:
    """A part of an LR scene `(bands, scale*rows, scale*cols)`, as a tile of the archive job."""
    window = core.grown(margin_of(engines[0], conserve=refinement.conserve), _size(low))
    values = read_window(low, window)
    return super_resolve(values, core.within(window), engines, calibration, refinement).values


def _size(scene: xr.Dataset) -> tuple[int, int]:
    return scene.sizes["y"], scene.sizes["x"]


class Trial:
    """A region and all that is measured once for it.

    Args:
        region: the truth.
        contenders: all of one scale.
        degradation: that makes the LR scene.
        options: of the archive job.
        opened: opens a scene by its address.

    Raises:
        SceneError: the scene cannot be opened, or one of the contenders cannot process it.
    """

    def __init__(
        self,
        region: Region,
        contenders: Sequence[Contender],
        degradation: Degradation,
        options: OutputOptions,
        opened: Callable[[str], xr.Dataset],
    ) -> None:
        self.region, self.options, self.scale = region, options, degradation.scale
        scene = read_as_asked(opened(region.uri), contenders[0].card, options)
        self.high = crop(scene, region.window, self.scale)
        self.low = degraded(self.high, degradation)
        height, width = _size(self.low)
        self.blocks = blocks_of(height, width, self.high.sizes["band"], self.scale, options.tile)
        if not self.blocks.sample:  # small enough to be held, and read often
            whole = self.blocks.windows[0]
            self.low = replaced(self.low, read_window(self.low, whole))
        self.calibrations = {
            each.name: constants_of(self.low, each.engine, each.card, options)
            for each in contenders
        }
        self.engines = {
            each.name: scene_engines(each.engine, self.calibrations[each.name])
            for each in contenders
        }
        used = [set(each.bands.used) for each in self.calibrations.values()]
        self.bands = sorted(set.intersection(*used))
        if not self.bands:
            raise SceneError("band-mismatch", "the checkpoints have no band of the scene in common")

    def truth(self, block: Window) -> Values:
        """The scored bands of the HR scene, NaN in gaps."""
        return read_window(self.high, block.scaled(self.scale))[self.bands]

    def estimate(self, method: str, block: Window) -> Values:
        """The scored bands of what a method makes of a block, NaN in gaps."""
        result = np.empty((len(self.bands), *block.scaled(self.scale).shape), np.float32)
        for core in self._cores(block):
            result[:, *core.within(block).scaled(self.scale).slices] = self._core(method, core)
        return result

    def _cores(self, block: Window) -> Iterator[Window]:
        """The tiles of the archive job that make up a block."""
        if self.blocks.sample:
            yield block
            return
        grid = TileGrid(*_size(self.low), self.options.tile, self.scale)
        yield from map(grid.core, grid)

    def _core(self, method: str, core: Window) -> Values:
        if method == BICUBIC:
            return self._bicubic(core)
        return super_resolve_core(
            self.low,
            core,
            self.engines[method],
            self.calibrations[method],
            replace(self.options.refinement, uncertainty=False),
        )[self.bands]

    def _bicubic(self, core: Window) -> Values:
        window = core.grown(REACH + FILL_DEPTH, _size(self.low))
        values = read_window(self.low, window)[self.bands]
        background = next(iter(self.calibrations.values())).background[self.bands]
        filled = fill_gaps(values, background)
        inner = core.within(window)
        result = enlarge(filled, inner, self.scale, torch.device("cpu"))
        gaps = np.isnan(values[:, *inner.slices])
        result[gaps.repeat(self.scale, 1).repeat(self.scale, 2)] = np.nan
        return result


def score(trial: Trial, peak: float | None, *, cells: bool) -> SceneResult:
    """All methods on all blocks of a region.

    Args:
        trial: the region.
        peak: value that counts as 1; None: the truth's 99.9th percentile.
        cells: also score the parts of a scene that is evaluated whole.

    Raises:
        SceneError: `no-valid-pixels`.
    """
    full = _peak(trial) if peak is None else peak
    methods = (BICUBIC, *trial.engines)
    scores = {method: Scores(trial.scale, len(trial.bands)) for method in methods}
    sampled = bool(trial.blocks.sample)
    valid_pixels = 0
    for block in trial.blocks.windows:
        truth = trial.truth(block) / np.float32(full)
        valid = np.isfinite(truth).all(axis=0)
        # Gaps of the LR scene are the same for every method.
        bicubic = trial.estimate(BICUBIC, block)
        valid &= np.isfinite(bicubic).all(axis=0)
        if not valid.any():
            continue
        valid_pixels += int(valid.sum())
        truth = np.nan_to_num(truth, copy=False, nan=0.0)
        for method in methods:
            values = bicubic if method == BICUBIC else trial.estimate(method, block)
            if not np.isfinite(values[:, valid]).all():
                raise SceneError("not-finite", f"{method} gives values that are no numbers")
            values = np.nan_to_num(values / np.float32(full), copy=False, nan=0.0)
            scores[method].add(truth, values, valid, cells=cells and not sampled)
    if not valid_pixels:
        raise SceneError("no-valid-pixels", "no pixel has a value in all good bands")
    return _result(trial, full, scores, valid_pixels)


def _peak(trial: Trial) -> float:
    step = trial.scale if trial.blocks.sample else 1
    parts = [trial.truth(block)[:, ::step, ::step] for block in trial.blocks.windows]
    peak = float(
        np.nanpercentile(np.concatenate([part.ravel() for part in parts]), PEAK_PERCENTILE)
    )
    if not peak > 0:
        raise SceneError("no-valid-pixels", "no positive value to scale by")
    return peak


def _result(
    trial: Trial, peak: float, scores: Mapping[str, Scores], valid_pixels: int
) -> SceneResult:
    region = trial.region
    pixels = sum(block.scaled(trial.scale).pixels for block in trial.blocks.windows)
    window = region.window
    return SceneResult(
        name=region.name,
        source=redact(region.uri),
        window=None if window is None else (window.top, window.bottom, window.left, window.right),
        rows=trial.high.sizes["y"],
        columns=trial.high.sizes["x"],
        bands=tuple(trial.bands),
        wavelengths=_wavelengths(trial),
        peak=peak,
        valid=valid_pixels / pixels,
        sample=trial.blocks.sample,
        figures={method: each.figures() for method, each in scores.items()},
        parts={
            method: tuple(each.of_blocks if trial.blocks.sample else each.of_cells)
            for method, each in scores.items()
        },
        curves={method: each.curve() for method, each in scores.items()},
        notes={name: _note(each) for name, each in trial.calibrations.items()},
    )


def _wavelengths(trial: Trial) -> tuple[float, ...] | None:
    if "wavelength" not in trial.high.coords:
        return None
    known = np.asarray(trial.high["wavelength"].values, dtype=np.float64)[trial.bands]
    return tuple(known.tolist()) if np.isfinite(known).all() else None


def _note(calibration: Calibration) -> str:
    return "; ".join(filter(None, [calibration.gain_rule, calibration.bands.note]))[:LONGEST_TEXT]
