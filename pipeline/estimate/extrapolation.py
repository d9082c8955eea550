"""From what was measured of some tiles to the whole plan."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.assignment import workers_of
from pipeline.estimate.measured import Measured, Trial
from pipeline.estimate.rates import PER_TILE, Amount, Rates
from pipeline.estimate.sample import Group, open_load
from pipeline.seams import STRIP_SHARE, count_borders
from pipeline.traffic import KINDS, Traffic

DRIVER_SECONDS = 0.0009  # of the driver for a tile: docs/reliability.md, "Many scenes, many tiles"
DRIVER_BYTES = 50_000  # of the driver for a scene: docs/scale.md, the catalogue's table
_GIGA = 1e9


@dataclass(frozen=True)
class Part:
    """One group of the plan, estimated.

    Attributes:
        group: its scenes.
        measured: whose figures are used, its own or those of the group that is most like it.
        rates: what its scenes and tiles take.
        prepared: scenes to prepare; the others are resumed.
        opened: times that a worker opens a scene of it.
        tiles: all its open tiles.
    """

    group: Group
    measured: Measured
    rates: Rates
    prepared: int
    opened: int
    tiles: Amount

    @classmethod
    def of(cls, group: Group, trial: Trial, scenes: int, margin: int, borders: int) -> Part:
        """Args: scenes: of the whole plan."""
        measured = min(trial.groups, key=lambda each: _unlike(each.group, group))
        rates = Rates.of(measured, trial.workers, group)
        workers = trial.share.workers
        opened = 0
        for scene in group.scenes:
            tiles = open_load(scene, margin).tiles
            opened += min(workers, tiles, max(workers_of(tiles), workers // scenes))
        grids = [scene.job.grid for scene in group.scenes if scene.job is not None]
        strips = sum(count_borders(grid, borders) for grid in grids)
        further = group.load.tiles - opened + STRIP_SHARE * strips
        return cls(
            group,
            measured,
            rates,
            sum(scene.status != "resume" for scene in group.scenes),
            opened,
            rates.opening * opened + rates.tile * further,
        )

    @property
    def preparing(self) -> Amount:
        return self.rates.prepare * self.prepared

    def publishing(self, *, s3: bool) -> Amount:
        """Of all scenes; requests for each tile only where the result is on S3."""
        amount = self.rates.publish * len(self.group.scenes)
        tiles = sum(scene.tiles for scene in self.group.scenes)
        return amount + Amount(0.0, PER_TILE * tiles) if s3 else amount

    @property
    def stored(self) -> float:
        return self.rates.bytes_per_value * self.group.load.hr_values


def _unlike(one: Group, other: Group) -> tuple[bool, float]:
    return one.format != other.format, abs(math.log(one.source_bands / other.source_bands))


@dataclass(frozen=True)
class Estimate:
    """What a run of the plan will take.

    Attributes:
        trial: what it rests on.
        parts: the groups of the plan.
        planning: seconds and traffic of making the plan, which the run does too.
        worker_bound: bytes of a worker's memory, at most.
        counted: whether all that is read and written lies on disks or S3, whose requests count.
    """

    trial: Trial
    parts: tuple[Part, ...]
    planning: Amount
    worker_bound: int
    counted: bool

    @classmethod
    def of(
        cls,
        trial: Trial,
        groups: Sequence[Group],
        margin: int,
        planning: Amount,
        worker_bound: int,
        borders: int,
        *,
        counted: bool,
    ) -> Estimate:
        scenes = sum(len(group.scenes) for group in groups)
        parts = tuple(Part.of(group, trial, scenes, margin, borders) for group in groups)
        return cls(trial, parts, planning, worker_bound, counted)

    @property
    def scenes(self) -> int:
        return sum(len(part.group.scenes) for part in self.parts)

    @property
    def tiles(self) -> int:
        return sum(part.group.load.tiles for part in self.parts)

    @property
    def wall(self) -> tuple[float, float, float]:
        """Seconds: the estimate, and from and to.

        The estimate has workers and driver at work beside each other. The lower end hides the
        preparation of scenes behind tiles of others; the upper end has nothing overlap.
        """
        workers = self.trial.share.workers
        tiles = sum(part.tiles.seconds for part in self.parts)
        error = sum(part.tiles.seconds * (part.rates.error or 0.0) for part in self.parts)
        prepare = sum(part.preparing.seconds for part in self.parts)
        publish = sum(part.rates.publish.seconds * len(part.group.scenes) for part in self.parts)
        driver = publish + self.tiles * DRIVER_SECONDS
        beside, last = self._beside, publish / self.scenes
        middle = max((tiles + prepare) / workers, driver)
        return (
            beside + self._filling + middle + last,
            beside + max((tiles - error) / workers, driver) + last,
            beside + self._filling + (tiles + error + prepare) / workers + driver,
        )

    @property
    def _beside(self) -> float:
        """Seconds of what is done once, before and after."""
        catalogue = self._catalogue.seconds
        session = self.trial.starting + self.trial.leasing.seconds + self.trial.ending
        return self.planning.seconds + session + catalogue

    @property
    def _catalogue(self) -> Amount:
        """The first making loads libraries; the second writes no items that are there."""
        first, again = self.trial.catalogue
        measured = max(1, first.items)
        seconds = first.seconds + again.seconds * (self.scenes - measured) / measured
        return Amount(seconds, first.traffic * (self.scenes / measured))

    @property
    def _filling(self) -> float:
        """Seconds in which some workers have nothing to do yet, or any more."""
        rates = self.parts[0].rates
        idle = max(0.0, 1 - self.scenes / self.trial.share.workers)
        return (
            rates.cold + rates.prepare.seconds * idle + rates.parts["read"] + rates.parts["write"]
        )

    @property
    def traffic(self) -> Traffic:
        total = self.planning.traffic + self.trial.leasing.traffic + self._catalogue.traffic
        s3 = total.of("PUT") > 0  # of leases and the catalogue
        for part in self.parts:
            total += (part.tiles + part.preparing + part.publishing(s3=s3)).traffic
        return total

    @property
    def stored(self) -> tuple[float, float, float]:
        """Bytes: the estimate, and from and to."""
        tiles = sum(part.stored for part in self.parts)
        error = sum(part.stored * (part.rates.bytes_error or 0.0) for part in self.parts)
        beside = self.scenes * self.trial.other_bytes
        return tiles + beside, max(0.0, tiles - error) + beside, tiles + error + beside

    def to_dict(self) -> dict[str, Any]:
        """All figures, each with its unit in its name."""
        trial, (wall, wall_from, wall_to) = self.trial, self.wall
        stored, stored_from, stored_to = (amount / _GIGA for amount in self.stored)
        traffic, workers = self.traffic, trial.share.workers
        return {
            "scenes": self.scenes,
            "tiles": self.tiles,
            "workers": workers,
            "threads_per_worker": int(trial.share.cpus),
            "gpus_per_worker": trial.share.gpus,
            "wall_seconds": round(wall, 1),
            "wall_seconds_from": round(wall_from, 1),
            "wall_seconds_to": round(wall_to, 1),
            "worker_hours": _short(wall * workers / 3600),
            "stored_gigabytes": _short(stored),
            "stored_gigabytes_from": _short(stored_from),
            "stored_gigabytes_to": _short(stored_to),
            "lr_values_read": sum(part.group.load.lr_values for part in self.parts),
            "s3_received_gigabytes": _short(traffic.received / _GIGA) if self.counted else None,
            "s3_sent_gigabytes": _short(traffic.sent / _GIGA) if self.counted else None,
            "s3_requests": self.requests,
            "worker_memory_gigabytes_bound": _short(self.worker_bound / _GIGA),
            "worker_memory_gigabytes_measured": _short(trial.worker_peak / _GIGA),
            "driver_memory_gigabytes": _short(
                (trial.driver_peak + DRIVER_BYTES * self.scenes) / _GIGA
            ),
            "rests_on": {
                "seconds_measured": round(trial.seconds, 1),
                "workers_measured": trial.workers,
                "threads_measured": trial.threads,
                "planning_seconds": _short(self.planning.seconds),
                "starting_seconds": _short(trial.starting),
                "ending_seconds": _short(trial.ending),
                "other_bytes_per_scene": round(trial.other_bytes),
                "notes": list(trial.notes),
                "groups": [_facts(part) for part in self.parts],
            },
        }

    @property
    def requests(self) -> dict[str, int] | None:
        """To S3, by kind; None where the store is of another kind."""
        traffic = self.traffic
        return {kind: round(traffic.of(kind)) for kind in KINDS} if self.counted else None


def _facts(part: Part) -> dict[str, Any]:
    group, measured, rates = part.group, part.measured, part.rates
    own = measured.group == group
    return {
        "format": group.format,
        "bands": group.bands,
        "scenes": len(group.scenes),
        "tiles": group.load.tiles,
        "scenes_measured": len(group.sampled) if own else 0,
        "tiles_measured": len(measured.records) if own else 0,
        "worker_seconds_per_scene": _short(rates.prepare.seconds),
        "worker_seconds_per_first_tile": _short(rates.opening.seconds),
        "worker_seconds_per_tile": _short(rates.tile.seconds),
        **{f"{name}_seconds_per_tile": _short(rates.parts[name]) for name in rates.parts},
        "spread_percent": None if rates.spread is None else round(100 * rates.spread, 1),
        "driver_seconds_per_scene": _short(rates.publish.seconds),
        "bytes_per_hr_value": _short(rates.bytes_per_value),
        "s3_requests_per_tile": {kind: _short(rates.tile.traffic.of(kind)) for kind in KINDS},
    }


def _short(value: float) -> float:
    return float(f"{value:.4g}")
