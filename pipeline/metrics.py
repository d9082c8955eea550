"""What a run counts for Prometheus, through Ray's own metrics.

Each node's metrics agent offers the series as `ray_sr_archive_<name>`, counters with `_total` after
it. A process without an agent counts all the same, and nobody sees it. No label has more than a
handful of values: scenes and tiles are never named. Ray adds the node and the process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from ray.util.metrics import Counter, Gauge

from pipeline import events
from pipeline.events import Event
from pipeline.ledger import TileRecord
from pipeline.plan import Plan
from pipeline.run_report import SceneRow

PREFIX = "sr_archive"


@dataclass(frozen=True)
class Series:
    """A metric as Prometheus sees it."""

    kind: type[Counter] | type[Gauge]
    text: str
    labels: tuple[str, ...] = ()


OF_ACTORS = {
    "tiles": Series(Counter, "Tiles computed and written", ("device", "precision")),
    "pixel_bands": Series(Counter, "HR pixels x bands of these tiles", ("device", "precision")),
    "stage_seconds": Series(
        Counter,
        "Seconds of tiles in each stage (read, wait for the network, compute, write), seconds of "
        "preparing scenes (prepare), and seconds that an actor had nothing to do (idle)",
        ("stage",),
    ),
    "failures": Series(Counter, "Pieces of work that failed, by reason", ("code",)),
}
OF_POOL = {
    "actors": Series(Gauge, "Actors: alive, or waiting (for room, or to be started)", ("state",)),
}
OF_RUN = {
    "retries": Series(Counter, "Pieces of work that are tried again"),
    "scenes": Series(Counter, "Scenes by their end: published, skipped, quarantined", ("status",)),
    "open_tiles": Series(Gauge, "Tiles of the run that are not done"),
}


class Meters:
    """The series of one process; each record takes some microseconds and cannot fail."""

    def __init__(self, series: Mapping[str, Series]) -> None:
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        for name, each in series.items():
            made = each.kind(f"{PREFIX}_{name}", each.text, each.labels)
            if isinstance(made, Counter):
                self._counters[name] = made
            else:
                self._gauges[name] = made

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        if amount > 0:  # Ray refuses nothing, and less
            self._counters[name].inc(amount, labels)

    def set(self, name: str, value: float, **labels: str) -> None:
        self._gauges[name].set(value, labels)


class ActorMeters(Meters):
    """What an actor counts; its threads share one."""

    def __init__(self) -> None:
        super().__init__(OF_ACTORS)
        self._lock = threading.Lock()
        self._in_hand = 0
        self._since = time.perf_counter()

    @contextmanager
    def in_hand(self) -> Iterator[None]:
        """Around a piece of work; the actor is idle while there is none."""
        with self._lock:
            if not self._in_hand:
                self.add("stage_seconds", time.perf_counter() - self._since, stage="idle")
            self._in_hand += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_hand -= 1
                self._since = time.perf_counter()

    def tile(self, record: TileRecord, pixel_bands: int) -> None:
        for name, amount in ("tiles", 1), ("pixel_bands", pixel_bands):
            self.add(name, amount, device=record.device, precision=record.precision)
        for stage, seconds in record.seconds.items():
            self.add("stage_seconds", seconds, stage=stage)


class RunMeters(Meters):
    """What a driver counts; listens to the run's events from when Ray is there."""

    def __init__(self, plan: Plan, rows: Mapping[str, SceneRow]) -> None:
        super().__init__(OF_RUN)
        self._open = {scene.scene_id: scene.tiles - len(scene.done) for scene in plan.work}
        self._total = 0
        self._less(-sum(self._open.values()))
        for scene in plan.scenes:
            if scene.scene_id not in self._open:  # it ended with the plan
                self.add("scenes", status=rows[scene.scene_id].status)

    def __call__(self, event: Event) -> None:
        match event:
            case events.TileFinished(scene_id=scene) if self._open.get(scene):
                self._open[scene] -= 1
                self._less(1)
            case events.TileRetried():
                self.add("retries")
            case events.SceneFinished(scene_id=scene, status=status):
                self.add("scenes", status=status)
                self._less(self._open.pop(scene, 0))

    def _less(self, tiles: int) -> None:
        self._total -= tiles
        self.set("open_tiles", self._total)

    def close(self) -> None:
        """A gauge would stand as it was until the node goes."""
        self.set("open_tiles", 0)
