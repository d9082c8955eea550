"""How should the channel attention be pooled at inference, and on how large a sample?

    python -m benchmarks.attention_modes DATA [--quick]

DATA holds the shared scenes: cave/{train,test}/*.npz and the folders named in `REMOTE`. Compared
are the published pooling over the whole image (`whole`) and over each tile with its halo (`tile`),
statistics frozen for the scene (`scene`; also measured on samples of it, or `fixed`: those of other
scenes), and means over each pixel's surroundings (`windowed`; Chu et al. 2022, arXiv 2112.04491).
Scenes degraded by the model's scale have a truth and so a PSNR; the same scenes as they are have
none, but are large enough for many tiles. The table is on stdout, progress on stderr.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from itertools import islice
from math import isqrt
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from benchmarks.band_windows import truth, without_attention
from benchmarks.train_shipped import load
from model import SSPSR, Card, inference, load_checkpoint
from model.attention import AttentionStatistics, ChannelAttention
from model.degradation import downsample, upsample
from model.inference import Engine
from model.metrics import psnr, spectral_angle
from model.receptive_field import halo
from model.sspsr import SpatialSpectralBlock
from pipeline import open_scene
from pipeline.calibration import Calibration, network_input
from pipeline.grid import TileGrid, Window
from pipeline.resolving import margin_of, scene_engines, super_resolve
from pipeline.settings import Normalise
from pipeline.spectral import BandWindow, band_windows
from pipeline.values import Values

REMOTE = ("abu/*.mat", "jasper_ridge/*.mat", "pavia_centre/*.mat", "samson/*.npz")
AVIRIS = "abu"  # scenes of one sensor, of which a mosaic is made
SMALLEST, LARGEST = 92, 256  # HR pixels along a side: left out below, cut to the centre above
MOSAIC_BANDS = slice(10, 41)  # of the good bands; as many as the model has
TILES = (16, 32, 64)  # LR pixels along a core's side
SAMPLES = tuple((count, size) for count in (16, 4, 1) for size in (64, 32, 16, 8))
BOXES = (48, 24)  # LR pixels along a side of the surroundings
WINDOWED_TILE = 32

Engines = tuple[Engine, ...]


@dataclass(frozen=True)
class Case:
    """One scene to super-resolve.

    Attributes:
        family: the set of scenes that it belongs to.
        low: `(bands, rows, cols)`.
        reference: the truth, scale times as large; None where there is none.
        calibration: bands and gains; no attention.
    """

    family: str
    name: str
    low: Values
    reference: Values | None
    calibration: Calibration


@dataclass(frozen=True)
class Row:
    """What one mode did to one scene; None where it cannot be said.

    Attributes:
        psnr, sam: against the truth.
        gain, turn: PSNR and SAM less those of `whole`.
        worst: the lowest gain; of one scene the gain itself.
        rms: of the difference from `whole`, in full scale.
        seam, most: the largest and the 99.9th percentile of the steps at tile borders, in full
            scale.
        sampled: share of the LR pixels from which the statistics are.
    """

    family: str
    name: str
    mode: str
    psnr: float | None = None
    sam: float | None = None
    gain: float | None = None
    turn: float | None = None
    worst: float | None = None
    rms: float | None = None
    seam: float | None = None
    most: float | None = None
    sampled: float | None = None


HEADINGS = (
    "scenes | scene | mode | PSNR dB | SAM degrees | PSNR less whole's | SAM less whole's "
    "| lowest PSNR less whole's | RMS of the difference from whole | largest seam "
    "| 99.9 % of seams below | sampled"
)
FORMATS = ("", "", "", ".4f", ".4f", "+.5f", "+.5f", "+.5f", ".2e", ".2e", ".2e", ".3f")


class LocalAttention(nn.Module):
    """Channel attention whose gate at each pixel comes from the mean of the surroundings."""

    def __init__(self, attention: ChannelAttention, radius: int) -> None:
        super().__init__()
        self.gate, self.radius = attention.conv_du, radius

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = x * self.gate(box_mean(box_mean(x, self.radius, 2), self.radius, 3))
        return gated


def box_mean(x: Tensor, radius: int, axis: int) -> Tensor:
    """Mean along an axis over `radius` pixels to both sides, of those that exist."""
    size = x.shape[axis]
    before = [0] * (2 * (x.ndim - 1 - axis)) + [1, 0]
    total = pad(x.double().cumsum(axis), before)
    place = torch.arange(size, device=x.device)
    last, first = (place + radius + 1).clamp(max=size), (place - radius).clamp(min=0)
    shape = [-1 if dim == axis else 1 for dim in range(x.ndim)]
    inside = total.index_select(axis, last) - total.index_select(axis, first)
    return (inside / (last - first).view(shape)).to(x.dtype)


class LocalEngine:
    """A network with local attention, in place of an engine that pools over each input."""

    statistics = None

    def __init__(self, net: SSPSR, box: int) -> None:
        self.config, self.halo = net.config, halo(net.config)
        self.device = next(net.parameters()).device
        self._net = deepcopy(net).eval()
        for name, block in list(self._net.named_modules()):
            if isinstance(block, SpatialSpectralBlock):
                finer = net.config.scale // 2 if name.startswith("trunk") else 1
                attention = cast(ChannelAttention, block.spc.body[-1])
                block.spc.body[-1] = LocalAttention(attention, box // 2 * finer)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        y: Tensor = self._net(x, upsample(x, self.config.scale))
        return y


def local_engines(net: SSPSR, case: Case, box: int) -> Engines:
    """For `super_resolve`, which asks no more of engines without statistics."""
    engine = cast(Engine, LocalEngine(net, box))
    return (engine,) * len(case.calibration.bands.windows)


def untiled(case: Case, engines: Engines) -> Values:
    """The whole scene in one piece."""
    rows, columns = case.low.shape[1:]
    return super_resolve(case.low, Window(0, rows, 0, columns), engines, case.calibration).values


def tiled(case: Case, engines: Engines, size: int) -> Values:
    """Tile after tile, each from what the archive job reads for it."""
    bands, rows, columns = case.low.shape
    grid = TileGrid(rows, columns, size, engines[0].config.scale)
    result = np.empty((bands, *grid.output_size), dtype=np.float32)
    for tile in grid:
        window, core = grid.window(tile, margin_of(engines[0])), grid.core(tile)
        part = super_resolve(
            case.low[:, *window.slices], core.within(window), engines, case.calibration
        )
        result[:, *core.scaled(grid.scale).slices] = part.values
    return result


def frozen(case: Case, engine: Engine, windows: Sequence[Window]) -> Engines:
    """Engines with statistics measured on parts of equal size, each padded at its edges."""
    parts = [network_input(case.low[:, *window.slices], case.calibration) for window in windows]
    samples = torch.from_numpy(np.stack(parts))
    statistics = tuple(
        engine.measure(samples[:, list(window.bands)]) for window in case.calibration.bands.windows
    )
    return scene_engines(engine, replace(case.calibration, statistics=statistics))


def sample(rows: int, columns: int, count: int, size: int) -> list[Window]:
    """A square number of patches, each in the middle of its share; none where they overlap."""
    along = isqrt(count)
    if along * size > min(rows, columns):
        return []

    def starts(length: int) -> list[int]:
        return [round((index + 0.5) * length / along - size / 2) for index in range(along)]

    return [
        Window(top, top + size, left, left + size)
        for top in starts(rows)
        for left in starts(columns)
    ]


def seams(change: Values, size: int) -> Values:
    """Steps in `change` between pixels that touch across the borders of tiles of HR `size`."""
    down, across = (np.arange(size, length, size) for length in change.shape[1:])
    return np.concatenate(
        [
            np.abs(change[:, down] - change[:, down - 1]).ravel(),
            np.abs(change[:, :, across] - change[:, :, across - 1]).ravel(),
        ]
    )


class Comparison:
    """The modes on one scene, against the published pooling over the whole of it."""

    def __init__(
        self, case: Case, net: SSPSR, engine: Engine, elsewhere: AttentionStatistics
    ) -> None:
        self.case, self.net, self.engine, self.elsewhere = case, net, engine, elsewhere
        self.scale = net.config.scale
        self.pooled = scene_engines(engine, case.calibration)
        self.whole = untiled(case, self.pooled)
        self._base = self._figures(self.whole)

    def _figures(self, estimate: Values) -> tuple[float, float] | None:
        if self.case.reference is None:
            return None
        reference = self.case.reference.astype(np.float64)
        result = estimate.astype(np.float64)
        return psnr(reference, result), spectral_angle(reference, result)

    def row(self, mode: str, estimate: Values, sampled: float | None = None) -> Row:
        """A result without regard to seams."""
        rms = float(np.sqrt(np.mean(np.square(estimate - self.whole, dtype=np.float64))))
        row = Row(self.case.family, self.case.name, mode, rms=rms, sampled=sampled)
        figures = self._figures(estimate)
        if figures is None or self._base is None:
            return row
        gain, turn = (mine - base for mine, base in zip(figures, self._base, strict=True))
        return replace(row, psnr=figures[0], sam=figures[1], gain=gain, turn=turn, worst=gain)

    def in_tiles(self, mode: str, engines: Engines, size: int, joined: Values) -> Iterator[Row]:
        """A result in tiles, if there are several; `joined` is the mode's own in one piece."""
        if size >= max(self.case.low.shape[1:]):
            return
        estimate = tiled(self.case, engines, size)
        steps = seams(estimate - joined, self.scale * size)
        row = self.row(f"{mode}, tiles of {size}", estimate)
        yield replace(row, seam=float(steps.max()), most=float(np.percentile(steps, 99.9)))

    def modes(self, quick: bool) -> Iterator[Row]:
        """Every mode that the scene is large enough for."""
        yield self.row("whole", self.whole)
        for size in TILES[: 1 if quick else None]:
            yield from self.in_tiles("tile", self.pooled, size, self.whole)
        yield from self.scene_modes(quick)
        windows = len(self.case.calibration.bands.windows)
        fixed = (self.engine.with_statistics(self.elsewhere),) * windows
        yield self.row("fixed", untiled(self.case, fixed))
        for box in BOXES[: 1 if quick else None]:
            engines = local_engines(self.net, self.case, box)
            joined = untiled(self.case, engines)
            yield self.row(f"windowed, box of {box}", joined)
            yield from self.in_tiles(f"windowed, box of {box}", engines, WINDOWED_TILE, joined)

    def scene_modes(self, quick: bool) -> Iterator[Row]:
        """Frozen statistics, of the whole scene and of samples."""
        rows, columns = self.case.low.shape[1:]
        engines = frozen(self.case, self.engine, [Window(0, rows, 0, columns)])
        joined = untiled(self.case, engines)
        yield self.row("scene", joined, 1.0)
        for size in TILES[: 1 if quick else None]:
            yield from self.in_tiles("scene", engines, size, joined)
        for count, size in SAMPLES[-3:] if quick else SAMPLES:
            if windows := sample(rows, columns, count, size):
                # Tiles add rounding only, so one piece tells what the sample costs.
                estimate = untiled(self.case, frozen(self.case, self.engine, windows))
                share = count * size**2 / (rows * columns)
                yield self.row(f"scene, {count} x {size} px", estimate, share)


def centre(values: Values, side: int) -> Values:
    """The middle of a cube, at most `side` pixels along both axes."""
    rows, columns = (max(0, size - side) // 2 for size in values.shape[1:])
    return np.ascontiguousarray(values[:, rows : rows + side, columns : columns + side])


def mosaic(cubes: Sequence[Values], across: int) -> Values:
    """Cubes of one size, side by side, as many lines as are full."""
    lines = [cubes[start : start + across] for start in range(0, len(cubes), across)]
    return np.concatenate(
        [np.concatenate(line, axis=2) for line in lines if len(line) == across], axis=1
    )


class Cases:
    """The scenes, by family.

    Args:
        remote: globs of the scenes from above.
    """

    def __init__(self, folder: Path, card: Card, remote: Sequence[str] = REMOTE) -> None:
        self.folder, self.card, self._globs = folder, card, remote
        self.bands, self.scale = card.architecture.bands, card.architecture.scale

    def usual(self, engine: Engine) -> AttentionStatistics:
        """The statistics of cave/test as if its scenes were one."""
        lows = [case.low for case in self.cave()]
        return engine.measure(torch.from_numpy(np.stack(lows)))

    def families(self) -> list[Callable[[], Iterator[Case]]]:
        return [self.cave, self.remote, self.remote_as_is, self.mosaics]

    def cave(self) -> Iterator[Case]:
        for name, cube in load(self.folder / "cave" / "test").items():
            yield self._degraded("cave/test", name, cube, self._direct(), "reflectance")

    def remote(self) -> Iterator[Case]:
        """All good bands, through overlapping windows."""
        for name, values, windows in self._scenes():
            yield self._degraded("remote sensing", name, values, windows, "bands")

    def remote_as_is(self) -> Iterator[Case]:
        """One window of bands of each scene, the middle one that is not mirrored."""
        for name, values, windows in self._scenes():
            full = [window for window in windows if len(window.kept) == self.bands]
            low = values[list(full[len(full) // 2].bands)]
            found = without_attention(low, self.card, self._direct(), "bands")
            yield Case("remote sensing, not degraded", name, low, None, found)

    def mosaics(self) -> Iterator[Case]:
        """Scenes side by side: larger and more mixed than any single one here."""
        cubes = [
            centre(cube, LARGEST)
            for part in ("test", "train")
            for cube in load(self.folder / "cave" / part).values()
        ]
        cave = mosaic(cubes, 5)
        yield self._degraded("mosaic, CAVE", "mosaic", cave, self._direct(), "reflectance")
        scenes = [
            centre(values, 100)[MOSAIC_BANDS]
            for name, values, _ in self._scenes()
            if name.startswith(AVIRIS)
        ]
        aviris = mosaic(scenes, 3)
        yield self._degraded("mosaic, AVIRIS", "mosaic", aviris, self._direct(), "bands")
        found = without_attention(aviris, self.card, self._direct(), "bands")
        yield Case("mosaic, AVIRIS, not degraded", "mosaic", aviris, None, found)

    def _direct(self) -> tuple[BandWindow, ...]:
        return (BandWindow(tuple(range(self.bands)), 0, self.bands),)

    def _degraded(
        self,
        family: str,
        name: str,
        reference: Values,
        windows: tuple[BandWindow, ...],
        normalise: Normalise,
    ) -> Case:
        low = downsample(torch.from_numpy(reference), self.scale).numpy()
        return Case(
            family, name, low, reference, without_attention(low, self.card, windows, normalise)
        )

    def _scenes(self) -> Iterator[tuple[str, Values, tuple[BandWindow, ...]]]:
        """Name, good bands and band windows of every remote-sensing scene that is large enough."""
        for path in (path for glob in self._globs for path in sorted(self.folder.glob(glob))):
            scene = open_scene(str(path))
            values, wavelengths = truth(scene, self.scale)
            if min(values.shape[1:]) >= SMALLEST:
                windows = band_windows(range(len(values)), wavelengths, self.bands)
                yield scene.attrs["scene_id"], centre(values, LARGEST), windows


def means(rows: Sequence[Row]) -> list[Row]:
    """One row per family and mode: means; of seams the largest, of gains the lowest as well."""
    result = []
    for family, mode in dict.fromkeys((row.family, row.mode) for row in rows):
        same = [row for row in rows if (row.family, row.mode) == (family, mode)]
        values: dict[str, float] = {}
        for field in fields(Row)[3:]:
            known = [v for row in same if (v := getattr(row, field.name)) is not None]
            if known:
                reduce = {"seam": max, "worst": min}.get(field.name, np.mean)
                values[field.name] = float(reduce(known))
        result.append(Row(family, f"mean of {len(same)}", mode, **values))
    return result


def line(row: Row) -> str:
    """A row of the table."""
    values = (getattr(row, field.name) for field in fields(Row))
    cells = [
        "" if value is None else format(value, form)
        for value, form in zip(values, FORMATS, strict=True)
    ]
    return f"| {' | '.join(cells)} |"


def report(rows: Sequence[Row]) -> None:
    """Means first, then every scene."""
    print(f"| {HEADINGS} |")
    print("|" + "---|" * len(FORMATS))
    for row in [*means(rows), *rows]:
        print(line(row))


def compare(cases: Cases, net: SSPSR, quick: bool) -> list[Row]:
    """All scenes; the first of the first two families if it must be quick."""
    engine = inference.compile(net, precision="fp32")
    usual = cases.usual(engine)
    started, rows = time.perf_counter(), list[Row]()
    for family in cases.families()[: 2 if quick else None]:
        for case in islice(family(), 1 if quick else None):
            rows += Comparison(case, net, engine, usual).modes(quick)
            done = f"{time.perf_counter() - started:7.1f} s  {case.family}: {case.name}"
            print(done, case.low.shape, file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true", help="two scenes, few modes")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    net, card = load_checkpoint("starter")
    cases = Cases(arguments.data, card)
    report(compare(cases, net, arguments.quick))


if __name__ == "__main__":
    main()
