"""Workers that tell what they sent and held, and phases of work that are measured on them."""

from __future__ import annotations

import resource
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import ray

from pipeline import traffic
from pipeline.actors import ActorPool, TileActor, Work
from pipeline.errors import UsageError
from pipeline.traffic import Traffic

_START_SECONDS = 180.0


@dataclass(frozen=True)
class Meter:
    """What a process has sent so far, and the most memory that it held, in bytes."""

    traffic: Traffic
    peak: int

    @classmethod
    def read(cls) -> Meter:
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return cls(traffic.so_far(), peak)


class MeteredActor(TileActor):
    """Does the same work, and can be asked what it took."""

    def meter(self) -> Meter:
        return Meter.read()


@dataclass(frozen=True)
class Ended:
    """A piece of work, its result (None if its worker died) and when it came, in seconds."""

    work: Work
    result: Any
    at: float


@dataclass(frozen=True)
class Phase:
    """Pieces of work that were handed out together.

    Attributes:
        seconds: from the first to the end of the last.
        traffic: of all workers.
        ended: in order.
    """

    seconds: float = 0.0
    traffic: Traffic = field(default_factory=Traffic)
    ended: tuple[Ended, ...] = ()


class MeteredPool:
    """A pool of metered actors, driven phase by phase; Ray runs already."""

    def __init__(self, pool: ActorPool) -> None:
        self._pool = pool
        self._before = Traffic()

    @property
    def workers(self) -> int:
        return len(self._pool.seats)

    def wait(self) -> None:
        """Until all actors are alive.

        Raises:
            UsageError: they are not after three minutes, or cannot be.
        """
        until = time.monotonic() + _START_SECONDS
        while any(seat.starting is not None for seat in self._pool.seats):
            for _ in self._pool.finished(timeout=1.0):
                pass
            if time.monotonic() > until:
                raise UsageError(
                    f"no worker came within {_START_SECONDS:.0f} s; start the cluster's, or "
                    "estimate with fewer --workers"
                )
        self._before = self.meter().traffic

    def meter(self) -> Meter:
        """Of all actors together; of the memory, the largest."""
        asked = [seat.actor.meter.remote() for seat in self._pool.seats if seat.starting is None]
        meters: list[Meter] = ray.get(asked)
        total = sum((meter.traffic for meter in meters), Traffic())
        return Meter(total, max((meter.peak for meter in meters), default=0))

    def phase(self, works: Iterable[Work], until: float = float("inf")) -> Phase:
        """Have the work done, as much as begins before `until`, but no less than fills the pool.

        Args:
            works: in order.
            until: on the clock `time.monotonic`.
        """
        began = time.monotonic()
        waiting, flying, ended = deque(works), 0, []
        least = self._pool.in_flight
        while (waiting and (least > 0 or time.monotonic() < until)) or flying:
            while waiting and (least > 0 or time.monotonic() < until):
                if not self._pool.submit(waiting[0]):
                    break
                waiting.popleft()
                flying, least = flying + 1, least - 1
            for work, result in self._pool.finished(timeout=1.0):
                flying -= 1
                ended.append(Ended(work, result, time.monotonic() - began))
        now = self.meter().traffic
        spent, self._before = (now - self._before).at_least_none(), now  # a dead one's are lost
        return Phase(ended[-1].at if ended else 0.0, spent, tuple(ended))
