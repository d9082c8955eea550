"""One window of a scene, super-resolved: the network over its bands, and what refines the result.

All is said of physical values; nothing here reads or writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from model.degradation import bicubic
from model.extent import Extent
from model.inference import Engine
from model.projection import conserve as conserved
from model.projection import reach
from pipeline.calibration import Calibration, network_input
from pipeline.enlarging import enlarge, repeat_pixels
from pipeline.grid import Window
from pipeline.nodata import FILL_DEPTH, fill_gaps
from pipeline.refinement import ONE_PASS, Refinement
from pipeline.turns import TURNS, Moments, Turn
from pipeline.values import Values

_TURNED_ROWS = 8


@dataclass(frozen=True)
class Resolved:
    """A super-resolved window, physical.

    Attributes:
        values: `(bands, rows, cols)` of HR pixels; NaN in gaps and in bands without values.
        spread: the same of the standard deviation over all turns, NaN also in bands that are not
            the network's work; None where it was not asked for.
    """

    values: Values
    spread: Values | None = None


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
    refinement: Refinement = ONE_PASS,
) -> Resolved:
    """Super-resolve one window.

    Args:
        values: `(bands, rows, cols)` physical, NaN in gaps; the core and `margin_of` LR pixels
            around it, fewer only where the scene ends.
        core: the part to return, in the window's own LR pixels.
        engines: of `scene_engines`.
        calibration: the scene's constants.
        refinement: what is done beyond one pass of the network.

    Returns:
        `(bands, scale*rows, scale*cols)` of the core; NaN in bands that are neither used nor
        enlarged, and where the LR pixel under a value is a gap.
    """
    scale, device = engines[0].config.scale, engines[0].device
    plan = calibration.bands
    inputs = torch.from_numpy(network_input(values, calibration)).to(device)
    network = partial(_network, inputs, engines, calibration)
    one_pass: Callable[[Turn], torch.Tensor] = partial(network, core)
    if refinement.conserve:
        one_pass = _conserving(network, values, core, engines[0], list(plan.used))
    total, deviation = one_pass(TURNS[0]), None
    if refinement.turned:
        moments = Moments(total)
        for turn in TURNS[1:]:
            moments.add(one_pass(turn))
        total = moments.mean if refinement.ensemble else total
        deviation = moments.deviation if refinement.uncertainty else None
    made: list[Values] = [each.cpu().numpy() for each in (total, deviation) if each is not None]
    for each in made:
        _clear(each, plan.used)
    if bands := list(plan.upsampled):
        filled = fill_gaps(values[bands], calibration.background[bands])
        made[0][bands] = enlarge(filled, core, scale, device)
    gaps = np.isnan(values[:, *core.slices])
    for band in np.flatnonzero(gaps.any(axis=(1, 2))):
        hidden = repeat_pixels(gaps[band], scale)
        for each in made:
            each[band][hidden] = np.nan
    return Resolved(*made)


def _network(
    inputs: torch.Tensor,
    engines: Sequence[Engine],
    calibration: Calibration,
    core: Window,
    turn: Turn,
) -> torch.Tensor:
    """What the network makes of the core, gaps filled; nothing sensible in bands not used.

    Args:
        inputs: what the network sees of the window, `(bands, rows, cols)`.
        turn: in which the network sees it.
    """
    bands, *shape = inputs.shape
    plan = calibration.bands
    seen, place = turn.of(inputs), turn.of_window(core, shape)
    weights = plan.blend_weights(bands) / calibration.gains
    rows, columns = place.scaled(engines[0].config.scale).shape
    total = torch.empty(bands, rows, columns, device=inputs.device)
    begun = np.zeros(bands, dtype=bool)
    for window, engine, weight in zip(plan.windows, engines, weights, strict=True):
        x = seen[list(window.bands)][None]
        y = run_engine(engine, x, place)[0, window.start : window.stop]
        _blend(total, y, window.kept, torch.from_numpy(weight).to(inputs.device), begun)
    return turn.back(total)


def _conserving(
    network: Callable[[Window, Turn], torch.Tensor],
    values: Values,
    core: Window,
    engine: Engine,
    used: list[int],
) -> Callable[[Turn], torch.Tensor]:
    """`network`, projected on what degrades to the scene; needs its result around the core."""
    degradation = bicubic(engine.config.scale)
    around = core.grown(reach(degradation), values.shape[1:])
    rows, columns = core.scaled(engine.config.scale).shape
    extents = core_extents(core, values.shape[1:], margin_of(engine, conserve=True))
    down, right = (
        Extent(each.start - first, each.stop - first, each.at_start, each.at_end)
        for each, first in zip(extents, (around.top, around.left), strict=True)
    )
    lr = torch.from_numpy(values[used][:, *around.slices]).to(engine.device)

    def one_pass(turn: Turn) -> torch.Tensor:
        result = torch.empty(len(values), rows, columns, device=engine.device)
        result[used] = conserved(network(around, turn)[used], lr, down, right, degradation)
        return result

    return one_pass


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


def _clear(result: Values, used: Sequence[int]) -> None:
    """NaN into bands that are not used."""
    unused = np.ones(len(result), dtype=bool)
    unused[list(used)] = False
    result[unused] = np.nan
