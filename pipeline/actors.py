"""Ray actors that hold the model, and the pool of them.

Only tile references travel to the actors and only small records travel back.
"""

from __future__ import annotations

import gc
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    WorkerCrashedError,
)

from pipeline.errors import SceneError, StoreUnavailable, UsageError, one_line
from pipeline.grid import Tile
from pipeline.ledger import TileRecord
from pipeline.metrics import OF_POOL, ActorMeters, Meters
from pipeline.ray_session import Share, nodes_now
from pipeline.scene_job import SceneJob
from pipeline.seams import SeamCertificate
from pipeline.settings import Precision
from pipeline.storage import describe, without_secrets
from pipeline.worker import OPEN_SCENES, Prepared, Worker

Result = TypeVar("Result")
_TRANSIENT = frozenset({"unreadable", "output-failed"})
# An actor that Ray's memory monitor ends, or whose node is gone, is not always a RayActorError.
_GONE = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError, ObjectLostError)
_MOST_FAILED_STARTS = 3  # in a row, before a place is given up
_LOOK_SECONDS = 5.0  # between two looks at the nodes


@dataclass(frozen=True)
class Failure:
    """Why a piece of work failed, as it travels from an actor to the driver."""

    code: str
    message: str
    transient: bool


@dataclass
class Work:
    """A tile, or (no tile) the preparation of a scene, or the comparison of its borders.

    Attributes:
        suspect: it was with an actor that died.
        borders: to compare at most, of a scene whose tiles are all done; 0: this is other work.
    """

    job: SceneJob
    tile: Tile | None
    attempts: int = 0
    suspect: bool = False
    borders: int = 0

    @property
    def prepares(self) -> bool:
        return self.tile is None and not self.borders

    @property
    def name(self) -> str:
        if self.borders:
            return "comparison of borders"
        return "preparation" if self.tile is None else f"tile {self.tile.key}"


class TileActor:
    """The remote side: a `Worker` whose failures are values, not exceptions."""

    def __init__(self, model: bytes, device: str, threads: int, precision: Precision) -> None:
        self._worker = Worker(model, device, threads, precision)
        self._meters = ActorMeters()
        gc.collect()
        gc.freeze()  # what there is lasts: it is no longer looked through for garbage

    def work(self, job: SceneJob, tile: Tile | None) -> Prepared | TileRecord | Failure:
        return self._attempt(
            partial(self._prepare, job) if tile is None else partial(self._process, job, tile)
        )

    def certify(self, job: SceneJob, borders: int) -> SeamCertificate | Failure:
        return self._attempt(partial(self._worker.certify, job, borders))

    def _attempt(self, work: Callable[[], Result]) -> Result | Failure:
        with self._meters.in_hand():
            result = self._result(work)
            if isinstance(result, Failure):
                self._meters.add("failures", code=result.code)
            return result

    def _result(self, work: Callable[[], Result]) -> Result | Failure:
        try:
            return work()
        except SceneError as error:
            return Failure(error.code, error.message, error.code in _TRANSIENT)
        except StoreUnavailable as error:
            return Failure("output-failed", str(error), True)
        except Exception as error:
            return Failure("tile-failed", describe(error), True)

    def _prepare(self, job: SceneJob) -> Prepared:
        started = time.perf_counter()
        prepared = self._worker.prepare(job)
        self._meters.add("stage_seconds", time.perf_counter() - started, stage="prepare")
        return prepared

    def _process(self, job: SceneJob, tile: Tile) -> TileRecord:
        record = self._worker.process(job, tile)
        self._meters.tile(record, job.pixel_bands_of(tile.key))
        return record


@dataclass(eq=False)
class Seat:
    """One actor and what it is doing.

    Attributes:
        starting: ready when the actor is alive, and None from then.
        flying: its work, by reference.
        scene: of its last tile.
        opened: the scenes that its worker has open, at least.
    """

    share: Share
    actor: Any
    starting: Any
    flying: dict[Any, Work] = field(default_factory=dict)
    scene: str = ""
    opened: deque[str] = field(default_factory=lambda: deque(maxlen=OPEN_SCENES))

    def can_take(self, *, alone: bool = False) -> bool:
        """Whether it takes one more piece of work, if need be with nothing beside it.

        A suspect runs alone, so that the next death names it. An actor that is not alive takes
        nothing: the cluster may have no room for it any more.
        """
        if self.starting is not None or len(self.flying) >= (1 if alone else self.share.in_flight):
            return False
        return not any(other.suspect for other in self.flying.values())


class ActorPool:
    """Actors; one that dies is replaced as soon as the cluster has room.

    How many there are is fixed, or grows with the cluster if the share says so. They are never
    made fewer: those that have no room any more wait for it.

    `actor` is the class to run; it takes the arguments of `TileActor` and has its `work`.
    """

    def __init__(
        self, model: bytes, share: Share, precision: Precision = "auto", actor: type = TileActor
    ) -> None:
        self._model = ray.put(model)
        self._shares = share.parts
        self._precision = precision
        self._actor = actor
        self._failed_starts = 0
        self._grows = share.grows
        self._looked = time.monotonic()
        self._meters = Meters(OF_POOL)
        self.crews: Counter[str] = Counter()  # how many actors are at each scene
        self.seats = [self._new_seat(each) for each in self._shares for _ in range(each.workers)]
        self._count()

    def _new_seat(self, share: Share) -> Seat:
        remote: Any = ray.remote(self._actor)
        handle = remote.options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_concurrency=share.in_flight,
            max_restarts=0,
        )
        threads = max(1, int(share.cpus))
        started = handle.remote(self._model, share.device, threads, self._precision)
        return Seat(share, started, started.__ray_ready__.remote())

    def _count(self) -> None:
        waiting = sum(seat.starting is not None for seat in self.seats)
        self._meters.set("actors", waiting, state="waiting")
        self._meters.set("actors", len(self.seats) - waiting, state="alive")

    def grow(self) -> None:
        """There is work that no actor takes: start some more where nodes have joined.

        Looks at the cluster every few seconds only, and no more once actors failed to start.
        """
        if not self._grows or time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked, nodes = time.monotonic(), nodes_now()
        for share in self._shares:
            there = sum(seat.share is share for seat in self.seats)
            self.seats += [self._new_seat(share) for _ in range(share.places(nodes) - there)]
        self._count()

    @property
    def in_flight(self) -> int:
        """Pieces of work that all actors together take."""
        return sum(seat.share.in_flight for seat in self.seats)

    def submit(self, work: Work) -> bool:
        """Give the work to the least busy actor that can take it; False if none can.

        Borders are compared where the scene is open, if that actor has room.
        """
        free = [seat for seat in self.seats if seat.can_take(alone=work.suspect)]
        if work.borders:
            free = [seat for seat in free if work.job.scene_id in seat.opened] or free
        if not free:
            return False
        self.give(_least_busy(free), work)
        return True

    def free(self, beside: Collection[Seat] = ()) -> Seat | None:
        """The least busy actor that takes work, but for these; None if none does."""
        free = [seat for seat in self.seats if seat.can_take() and seat not in beside]
        return _least_busy(free) if free else None

    def give(self, seat: Seat, work: Work) -> None:
        """Have this actor do the work, which it can take."""
        seat.flying[self._begin(seat.actor, work)] = work
        name = work.job.scene_id
        if work.tile is not None and seat.scene != name:
            self._leave(seat)
            seat.scene = name
            self.crews[name] += 1
        if name in seat.opened:
            seat.opened.remove(name)
        seat.opened.append(name)

    def _leave(self, seat: Seat) -> None:
        """This actor is no longer at its scene."""
        if self.crews[seat.scene] > 1:
            self.crews[seat.scene] -= 1
        else:
            self.crews.pop(seat.scene, None)

    @staticmethod
    def _begin(actor: Any, work: Work) -> Any:
        if work.borders:
            return actor.certify.remote(work.job, work.borders)
        return actor.work.remote(work.job, work.tile)

    def finished(self, timeout: float) -> Iterator[tuple[Work, Any]]:
        """Work that ended within `timeout` seconds and its result; None where its actor died.

        Actors that came alive meanwhile take work from then on.

        Raises:
            UsageError: no actor can be started.
        """
        references = [reference for seat in self.seats for reference in seat.flying]
        references += [seat.starting for seat in self.seats if seat.starting is not None]
        ready, _ = ray.wait(references, num_returns=1, timeout=timeout) if references else ([], [])
        for reference in ready:
            seat = next(
                seat
                for seat in self.seats
                if reference in seat.flying or reference == seat.starting
            )
            try:
                result = ray.get(reference)
            except _GONE as error:
                yield from ((work, None) for work in self._bury(seat, error))
                continue
            if reference == seat.starting:
                seat.starting, self._failed_starts = None, 0
                self._count()
            else:
                yield seat.flying.pop(reference), result

    def _bury(self, seat: Seat, error: Exception) -> list[Work]:
        """Replace a dead actor, unless those before it did not even start; what it held."""
        self._leave(seat)
        self._failed_starts += seat.starting is not None
        place = self.seats.index(seat)
        if self._failed_starts < _MOST_FAILED_STARTS:
            self.seats[place] = self._new_seat(seat.share)
        else:
            del self.seats[place]
            self._grows = False
        self._count()
        if not self.seats:
            cause = without_secrets(one_line(str(error).strip().rpartition("\n")[2]))
            raise UsageError(f"no worker can be started: {cause}")
        return list(seat.flying.values())

    def close(self) -> None:
        for seat in self.seats:
            ray.kill(seat.actor)
        self.seats.clear()
        self._count()


def _least_busy(seats: Sequence[Seat]) -> Seat:
    return min(seats, key=lambda seat: len(seat.flying))
