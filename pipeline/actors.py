"""Ray actors that hold the model, and the loop that keeps them busy.

The driver decides everything: which tile goes where, what is retried and when a scene is given up.
Only tile references travel to the actors and only small records travel back.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError

from pipeline.errors import SceneError, StoreUnavailable, UsageError
from pipeline.footprint import IN_FLIGHT
from pipeline.grid import Tile
from pipeline.plan import SceneJob
from pipeline.ray_token import own_token
from pipeline.settings import Precision
from pipeline.storage import describe, redact
from pipeline.store import TileRecord
from pipeline.worker import Prepared, Worker

_LOCAL_OBJECT_STORE = 256 << 20  # weights and references only
_CONNECT_SECONDS = 10.0
_ASK_AGAIN_SECONDS = 1.0
_TRANSIENT = frozenset({"unreadable", "output-failed"})


@dataclass(frozen=True)
class Failure:
    """Why a piece of work failed, as it travels from an actor to the driver."""

    code: str
    message: str
    transient: bool


@dataclass
class Work:
    """A tile, or (no tile) the preparation of a scene. `suspect`: present when an actor died."""

    job: SceneJob
    tile: Tile | None
    attempts: int = 0
    suspect: bool = False

    @property
    def name(self) -> str:
        return "preparation" if self.tile is None else f"tile {self.tile.key}"


class TileActor:
    """The remote side: a `Worker` whose failures are values, not exceptions."""

    def __init__(self, model: bytes, device: str, threads: int, precision: Precision) -> None:
        self._worker = Worker(model, device, threads, precision)

    def work(self, job: SceneJob, tile: Tile | None) -> Prepared | TileRecord | Failure:
        try:
            return self._worker.prepare(job) if tile is None else self._worker.process(job, tile)
        except SceneError as error:
            return Failure(error.code, error.message, error.code in _TRANSIENT)
        except StoreUnavailable as error:
            return Failure("output-failed", str(error), True)
        except Exception as error:
            return Failure("tile-failed", describe(error), True)


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Join the cluster at `address`, the one this process was submitted to, or start one here.

    A Ray that this process already uses is used as it is and left running.

    Raises:
        UsageError: the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    _check_reachable(address)
    with nullcontext() if address else own_token():
        _connect(address)
        try:
            yield
        finally:
            ray.shutdown()


def _connect(address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=_LOCAL_OBJECT_STORE,
                _node_ip_address="127.0.0.1",
                **quiet,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        place = redact(address or "this machine")
        raise UsageError(f"cannot use Ray at {place}: {describe(error)}") from error


def _check_reachable(address: str | None) -> None:
    """Fail within seconds where nothing listens; Ray itself would go on trying for minutes."""
    match = re.fullmatch(r"(?:ray://)?(?P<host>[^:/]+):(?P<port>\d+)", address or "")
    if match is None:
        return
    try:
        socket.create_connection((match["host"], int(match["port"])), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--ray-address {address}: nothing answers there ({error}); start a head with "
            "`ray start --head`, or leave the option out to run on this machine"
        ) from None


@dataclass(frozen=True)
class Share:
    """What one actor gets."""

    device: Literal["cpu", "cuda"]
    workers: int
    cpus: float
    gpus: float

    @classmethod
    def of_cluster(
        cls,
        devices: str,
        workers: int | None,
        cpus: float | None = None,
        gpus: float | None = None,
    ) -> Share:
        """One actor per GPU, or per two CPUs, of what Ray has now.

        Args:
            devices: auto, cpu or cuda.
            workers: how many actors.
            cpus: of each actor, whether Ray has them yet or not: an autoscaler brings them.
            gpus: the same of GPUs, or a part of one.

        Raises:
            UsageError: GPUs are asked for and there are none, or more workers than CPUs.
        """
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        gpus_now, cpus_now = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        if devices == "cpu" and gpus:
            raise UsageError("--gpus-per-worker: there are none with --devices cpu")
        if devices == "cpu" or not (gpus_now or gpus):
            if devices == "cuda":
                raise UsageError("--devices cuda: Ray sees no GPU; use --devices auto or cpu")
            return cls._of_cpus(cpus_now, workers, cpus)
        count = workers or int(gpus_now // (gpus or 1))
        if not count:
            raise UsageError("--workers: how many? Ray has no GPU yet from which to tell")
        threads = cpus or max(1.0, cpus_now // (2 * count))
        return cls("cuda", count, threads, gpus or min(1.0, gpus_now / count))

    @classmethod
    def _of_cpus(cls, there: int, workers: int | None, each: float | None) -> Share:
        count = workers or max(1, int(there // (each or 2)))
        if each is None and count > there:
            raise UsageError(f"--workers {count}: Ray has {there} CPUs; use {there} or fewer")
        return cls("cpu", count, each or float(there // count), 0.0)


@dataclass
class _Seat:
    """One actor and what it is doing."""

    actor: Any
    flying: dict[Any, Work] = field(default_factory=dict)

    def can_take(self, work: Work) -> bool:
        """A suspect runs alone, so that the next death names it."""
        if any(other.suspect for other in self.flying.values()):
            return False
        return not self.flying if work.suspect else len(self.flying) < IN_FLIGHT


class ActorPool:
    """A fixed number of actors; one that dies is replaced.

    `actor` is the class to run; it takes the arguments of `TileActor` and has its `work`.
    """

    def __init__(
        self, model: bytes, share: Share, precision: Precision = "auto", actor: type = TileActor
    ) -> None:
        self._model = ray.put(model)
        self._share = share
        self._precision = precision
        self._actor = actor
        self.seats = [self._new_seat() for _ in range(share.workers)]

    def _new_seat(self) -> _Seat:
        share = self._share
        remote: Any = ray.remote(self._actor)
        handle = remote.options(
            num_cpus=share.cpus, num_gpus=share.gpus, max_concurrency=IN_FLIGHT, max_restarts=0
        )
        threads = max(1, int(share.cpus))
        return _Seat(handle.remote(self._model, share.device, threads, self._precision))

    def submit(self, work: Work) -> bool:
        """Give the work to the least busy actor that can take it; False if none can."""
        for seat in sorted(self.seats, key=lambda seat: len(seat.flying)):
            if seat.can_take(work):
                seat.flying[seat.actor.work.remote(work.job, work.tile)] = work
                return True
        return False

    def finished(self, timeout: float) -> Iterator[tuple[Work, Any]]:
        """Work that ended within `timeout` seconds and its result; None where its actor died."""
        references = [reference for seat in self.seats for reference in seat.flying]
        ready, _ = ray.wait(references, num_returns=1, timeout=timeout)
        for reference in ready:
            seat = next((seat for seat in self.seats if reference in seat.flying), None)
            if seat is None:
                continue
            try:
                result = ray.get(reference)
            except RayActorError:
                yield from ((work, None) for work in self._bury(seat))
            else:
                yield seat.flying.pop(reference), result

    def _bury(self, seat: _Seat) -> list[Work]:
        self.seats[self.seats.index(seat)] = self._new_seat()
        return list(seat.flying.values())

    def close(self) -> None:
        for seat in self.seats:
            ray.kill(seat.actor)


@dataclass(frozen=True)
class Handlers:
    """What the dispatch loop tells its caller."""

    prepared: Callable[[SceneJob, Prepared], None]
    tile: Callable[[SceneJob, TileRecord], None]
    retried: Callable[[Work, str], None]
    failed: Callable[[SceneJob, str, str], None]


@dataclass(frozen=True)
class Admission:
    """Whether a scene may be worked on now.

    Attributes:
        answer: `go`; `later`: ask again when nothing else is to be done; `no`: leave it out.
        done: with `go`, tiles kept from an earlier run; None if it must be prepared first.
    """

    answer: Literal["go", "later", "no"]
    done: frozenset[str] | None = None


class Dispatcher:
    """Sends the work of many scenes to the pool, a bounded number of pieces at a time.

    Scenes are taken in order; the next ones are prepared while the tiles of the present ones run,
    so no actor idles between scenes. Each is admitted just before its first piece of work.
    """

    def __init__(
        self,
        pool: ActorPool,
        handlers: Handlers,
        max_attempts: int,
        admit: Callable[[SceneJob], Admission],
    ) -> None:
        self._pool = pool
        self._admit = admit
        self._admitted: set[str] = set()
        self._later: list[Work] = []
        self._handlers = handlers
        self._max_attempts = max_attempts
        self._scenes: deque[Work] = deque()
        self._tiles: deque[Work] = deque()
        self._failed: set[str] = set()
        self._flying = 0
        self._done: dict[str, set[str]] = {}

    def add(self, job: SceneJob) -> None:
        """Queue a scene."""
        self._scenes.append(Work(job, None))

    def drop(self, scene_id: str) -> None:
        """Give a scene up without a word: what is left of its work is not done."""
        self._failed.add(scene_id)

    def run(self) -> None:
        """Until every piece of work is done or given up."""
        while self._scenes or self._tiles or self._flying or self._later:
            self._fill()
            if not self._flying:
                self._ask_again()
                continue
            for work, result in self._pool.finished(timeout=1.0):
                self._flying -= 1
                self._handle(work, result)

    def _fill(self) -> None:
        ahead = IN_FLIGHT * len(self._pool.seats)
        while True:
            if len(self._tiles) < ahead and self._next_scene():
                work = self._scenes[0]
                if work.job.scene_id in self._done:  # prepared by an earlier run
                    self._scenes.popleft()
                    self._queue_tiles(work.job)
                elif self._submit(work):
                    self._scenes.popleft()
                elif not self._submit_tile():
                    return
            elif not self._submit_tile():
                return

    def _next_scene(self) -> bool:
        """Whether the queue is headed by a scene that may be worked on, once the others are out."""
        while self._scenes:
            work = self._scenes[0]
            if work.job.scene_id in self._admitted:
                return True
            admission = self._admit(work.job)
            if admission.answer == "go":
                self._admitted.add(work.job.scene_id)
                if admission.done is not None:
                    self._done[work.job.scene_id] = set(admission.done)
                return True
            self._scenes.popleft()
            if admission.answer == "later":
                self._later.append(work)
        return False

    def _ask_again(self) -> None:
        """Nothing is to be done but what had to wait."""
        if self._later and not self._scenes and not self._tiles:
            time.sleep(_ASK_AGAIN_SECONDS)
            self._scenes.extend(self._later)
            self._later.clear()

    def _submit_tile(self) -> bool:
        if not self._tiles or not self._submit(self._tiles[0]):
            return False
        self._tiles.popleft()
        return True

    def _submit(self, work: Work) -> bool:
        if work.job.scene_id in self._failed:
            return True  # given up: drop it
        taken = self._pool.submit(work)
        self._flying += taken
        return taken

    def _queue_tiles(self, job: SceneJob) -> None:
        done = self._done.get(job.scene_id, set())
        self._tiles.extend(Work(job, tile) for tile in job.grid if tile.key not in done)

    def _handle(self, work: Work, result: Any) -> None:
        if work.job.scene_id in self._failed:
            return
        if isinstance(result, Prepared):
            self._handlers.prepared(work.job, result)
            self._queue_tiles(work.job)
        elif isinstance(result, TileRecord):
            self._handlers.tile(work.job, result)
        elif isinstance(result, Failure):
            self._retry(work, result)
        else:
            work.suspect = True
            self._retry(work, Failure("tile-failed", f"{work.name} killed its worker", True))

    def _retry(self, work: Work, failure: Failure) -> None:
        work.attempts += 1
        if failure.transient and work.attempts < self._max_attempts:
            self._handlers.retried(work, failure.message)
            (self._scenes if work.tile is None else self._tiles).appendleft(work)
            return
        times = f" ({work.attempts} attempts)" if work.attempts > 1 else ""
        self._failed.add(work.job.scene_id)
        self._handlers.failed(work.job, failure.code, f"{failure.message}{times}")
