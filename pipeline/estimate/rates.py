"""What a scene and a tile of a group take, by what was measured of some."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.estimate.measured import Measured
from pipeline.estimate.metered import Ended, Phase
from pipeline.estimate.sample import Group, Load
from pipeline.traffic import Traffic

# Publishing reads a tile's record, the quicklook the tile's part.
PER_TILE = Traffic({"GET": 2})
_CERTAIN = 2.0  # standard errors to each side


@dataclass(frozen=True)
class Amount:
    """Worker seconds and traffic."""

    seconds: float = 0.0
    traffic: Traffic = Traffic()  # noqa: RUF009  (it is frozen)

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.seconds + other.seconds, self.traffic + other.traffic)

    def __mul__(self, factor: float) -> Amount:
        return Amount(self.seconds * factor, self.traffic * factor)

    def resized(self, factor: float) -> Amount:
        """The same for so much more content: no more requests."""
        return Amount(self.seconds * factor, self.traffic.resized(factor))


@dataclass(frozen=True)
class Rates:
    """Of a group.

    Attributes:
        prepare: of a scene.
        opening: of a tile that is the first of its scene in a worker.
        tile: of any other.
        publish: seconds of the driver, and traffic, of a scene, but for `PER_TILE`.
        bytes_per_value: stored for each HR value, by what tiles write.
        parts: mean seconds of a tile's read, compute and write, which overlap.
        spread: deviation of tiles' seconds per LR value as part of their mean; None of one tile.
        error: of that mean, to each side, as a part of it; None of one tile.
        bytes_error: of `bytes_per_value`, the same.
        cold: seconds that the first preparation took longer.
    """

    prepare: Amount
    opening: Amount
    tile: Amount
    publish: Amount
    bytes_per_value: float
    parts: dict[str, float]
    spread: float | None
    error: float | None
    bytes_error: float | None
    cold: float

    @classmethod
    def of(cls, measured: Measured, workers: int, group: Group) -> Rates:
        """For the tiles of a group, which need not be the one that was measured.

        Seconds and bytes go with the LR values that a tile reads, requests with the tiles.
        """
        size = group.load.lr_values / group.load.tiles
        bands = group.source_bands / measured.group.source_bands
        prepare = _of_scenes(measured, workers)
        opened, steady = measured.opening, measured.steady
        opening = _of_tiles(opened, measured.opening_loads, size, workers, steady=False)
        tile = opening
        if steady.ended:
            tile = _of_tiles(steady, measured.steady_loads, size, workers, steady=True)
        tiles, loads = steady.ended or opened.ended, measured.steady_loads or measured.opening_loads
        seconds = [sum(_seconds(each).values()) for each in tiles]
        per_value = [s / load.lr_values for s, load in zip(seconds, loads, strict=True)]
        every, all_loads = (*opened.ended, *steady.ended), measured.loads
        stored = [sum(item.bytes for item in each.result.objects) for each in every]
        dense = [size / load.hr_values for size, load in zip(stored, all_loads, strict=True)]
        driver = measured.driver.traffic.at_least_none() * (1 / max(1, len(_scenes(opened.ended))))
        return cls(
            prepare.resized(bands),
            opening,
            tile,
            Amount(measured.publish_seconds, driver),
            sum(stored) / sum(load.hr_values for load in all_loads),
            {name: statistics.fmean(_seconds(each)[name] for each in tiles) for name in _PARTS},
            *_scatter(per_value, tiles),
            _scatter(dense, every)[1],
            max(0.0, measured.first_prepare.seconds - prepare.seconds),
        )


_PARTS = ("read", "compute", "write")


def _of_scenes(measured: Measured, workers: int) -> Amount:
    """Preparing a scene: of the first one only where there is no other."""
    phases = measured.first_prepare, measured.prepare
    counted = measured.prepare if measured.prepare.ended else measured.first_prepare
    scenes = sum(len(phase.ended) for phase in phases)
    traffic = (phases[0].traffic + phases[1].traffic) * (1 / max(1, scenes))
    return Amount(_each(counted.seconds, len(counted.ended), workers), traffic)


def _of_tiles(
    phase: Phase, loads: Sequence[Load], size: float, workers: int, *, steady: bool
) -> Amount:
    count = len(phase.ended)
    seconds = _each(phase.seconds, count, workers)
    if steady and count >= 2 * workers:  # without the time in which the first ones were read
        after = count - workers
        seconds = (phase.ended[-1].at - phase.ended[workers - 1].at) / after * workers
    amount = Amount(seconds, phase.traffic * (1 / count))
    return amount.resized(size * count / sum(load.lr_values for load in loads))


def _each(seconds: float, count: int, workers: int) -> float:
    """Seconds of one worker for one of some items that were done together."""
    return seconds * min(workers, count) / max(1, count)


def _scatter(values: Sequence[float], ended: Sequence[Ended]) -> tuple[float | None, float | None]:
    """Spread of values as part of their mean, and the uncertainty of the mean.

    Tiles of a scene are alike, so the scatter of scenes' means counts beside that of tiles.
    """
    if len(values) < 2:
        return None, None
    mean = statistics.fmean(values)
    spread = statistics.stdev(values) / mean
    by_scene = [
        statistics.fmean(v for v, e in zip(values, ended, strict=True) if _scene(e) == scene)
        for scene in _scenes(ended)
    ]
    among = statistics.stdev(by_scene) / mean if len(by_scene) > 1 else 0.0
    return spread, _CERTAIN * math.hypot(spread / len(values) ** 0.5, among / len(by_scene) ** 0.5)


def _seconds(ended: Ended) -> dict[str, float]:
    seconds: dict[str, float] = ended.result.seconds
    return seconds


def _scene(ended: Ended) -> str:
    return ended.work.job.scene_id


def _scenes(ended: Sequence[Ended]) -> list[str]:
    return sorted({_scene(each) for each in ended})
