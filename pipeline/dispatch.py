"""The loop that keeps the actors busy.

The driver decides everything: which tile goes where, what is retried and when a scene is given up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.actors import ActorPool, Failure, Seat, Work
from pipeline.assignment import TILES_PER_WORKER, Assignment
from pipeline.ledger import TileRecord
from pipeline.scene_job import SceneJob
from pipeline.seams import SeamCertificate
from pipeline.worker import Prepared

_ASK_AGAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Handlers:
    """What the dispatch loop tells its caller."""

    prepared: Callable[[SceneJob, Prepared], None]
    tile: Callable[[SceneJob, TileRecord], None]
    retried: Callable[[Work, str], None]
    failed: Callable[[SceneJob, str, str], None]
    certified: Callable[[SceneJob, SeamCertificate], None] = lambda job, certificate: None


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

    Scenes are begun in order; the next ones are prepared while the tiles of the present ones run,
    so no actor idles between scenes. Each is admitted just before its first piece of work. Who
    takes which tiles: `pipeline.assignment`.
    """

    def __init__(
        self,
        pool: ActorPool,
        handlers: Handlers,
        max_attempts: int,
        admit: Callable[[SceneJob], Admission],
        tiles_per_worker: int = TILES_PER_WORKER,
    ) -> None:
        self._pool = pool
        self._admit = admit
        self._later: list[SceneJob] = []
        self._handlers = handlers
        self._max_attempts = max_attempts
        self._scenes: deque[SceneJob] = deque()
        self._tiles = Assignment(pool, tiles_per_worker)
        self._first: deque[Work] = deque()  # before all other work: retries, and borders
        self._failed: set[str] = set()
        self._flying = 0

    def add(self, job: SceneJob) -> None:
        """Queue a scene."""
        self._scenes.append(job)

    def certify(self, job: SceneJob, borders: int) -> None:
        """Compare some borders of a scene whose tiles are all done, before other work is begun."""
        self._first.appendleft(Work(job, None, borders=borders))

    def drop(self, scene_id: str) -> None:
        """Give a scene up without a word: what is left of its work is not done."""
        self._failed.add(scene_id)
        self._tiles.drop(scene_id)

    def run(self) -> None:
        """Until every piece of work is done or given up."""
        while self._scenes or self._tiles or self._first or self._flying or self._later:
            self._fill()
            if self._tiles or self._scenes or self._first:
                self._pool.grow()
            if not self._flying:
                self._ask_again()
            for work, result in self._pool.finished(timeout=1.0):
                self._flying -= 1
                self._handle(work, result)

    def _fill(self) -> None:
        while self._first:
            work = self._first[0]
            if work.job.scene_id not in self._failed:
                if not self._pool.submit(work):
                    return
                self._flying += 1
            self._first.popleft()
        nothing_for: list[Seat] = []
        while seat := self._pool.free(nothing_for):
            if next_work := self._next_for(seat):
                self._pool.give(seat, next_work)
                self._flying += 1
            else:
                nothing_for.append(seat)

    def _next_for(self, seat: Seat) -> Work | None:
        while self._tiles.is_short(seat) and (scene := self._next_scene()):
            job, done = scene
            if done is None:
                self._tiles.expect(job)
                return Work(job, None)
            self._tiles.add(job, done)
        return self._tiles.tile_for(seat, help_others=not self._scenes)

    def _next_scene(self) -> tuple[SceneJob, frozenset[str] | None] | None:
        """The next scene that may be worked on, taken from the queue; those before it are out.

        With it the tiles that an earlier run has left; None if it must be prepared.
        """
        while self._scenes:
            job = self._scenes.popleft()
            if job.scene_id in self._failed:
                continue
            admission = self._admit(job)
            if admission.answer == "later":
                self._later.append(job)
            elif admission.answer == "go":
                return job, admission.done
        return None

    def _ask_again(self) -> None:
        """Nothing is to be done but what had to wait."""
        if self._later and not (self._scenes or self._tiles or self._first):
            time.sleep(_ASK_AGAIN_SECONDS)
            self._scenes.extend(self._later)
            self._later.clear()

    def _handle(self, work: Work, result: Any) -> None:
        if work.job.scene_id in self._failed:
            return
        if isinstance(result, Prepared):
            self._handlers.prepared(work.job, result)
            self._tiles.add(work.job)
        elif isinstance(result, TileRecord):
            self._handlers.tile(work.job, result)
        elif isinstance(result, SeamCertificate):
            self._handlers.certified(work.job, result)
        elif isinstance(result, Failure):
            self._retry(work, result)
        else:
            work.suspect = True
            self._retry(work, Failure("tile-failed", f"{work.name} killed its worker", True))

    def _retry(self, work: Work, failure: Failure) -> None:
        work.attempts += 1
        if failure.transient and work.attempts < self._max_attempts:
            self._handlers.retried(work, failure.message)
            self._first.appendleft(work)
            return
        times = f" ({work.attempts} attempts)" if work.attempts > 1 else ""
        self.drop(work.job.scene_id)
        self._handlers.failed(work.job, failure.code, f"{failure.message}{times}")
