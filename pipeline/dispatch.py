"""The loop that keeps the actors busy.

The driver decides everything: which tile goes where, what is retried and when a scene is given up.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.actors import ActorPool, Failure, Work
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
        self._untouched: deque[Iterator[Work]] = deque()
        self._failed: set[str] = set()
        self._flying = 0
        self._done: dict[str, frozenset[str]] = {}

    def add(self, job: SceneJob) -> None:
        """Queue a scene."""
        self._scenes.append(Work(job, None))

    def certify(self, job: SceneJob, borders: int) -> None:
        """Compare some borders of a scene whose tiles are all done, before other work is begun."""
        self._tiles.appendleft(Work(job, None, borders=borders))

    def drop(self, scene_id: str) -> None:
        """Give a scene up without a word: what is left of its work is not done."""
        self._failed.add(scene_id)

    def run(self) -> None:
        """Until every piece of work is done or given up."""
        while self._scenes or self._tiles or self._untouched or self._flying or self._later:
            self._fill()
            if self._tiles or self._scenes:
                self._pool.grow()
            if not self._flying:
                self._ask_again()
            for work, result in self._pool.finished(timeout=1.0):
                self._flying -= 1
                self._handle(work, result)

    def _fill(self) -> None:
        ahead = self._pool.in_flight
        while True:
            self._make_tiles(ahead)
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
                    self._done[work.job.scene_id] = admission.done
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
        self._admitted.discard(job.scene_id)
        self._untouched.append(self._tiles_of(job, self._done.pop(job.scene_id, frozenset())))

    def _tiles_of(self, job: SceneJob, done: frozenset[str]) -> Iterator[Work]:
        for tile in job.grid:
            if job.scene_id in self._failed:
                return
            if tile.key not in done:
                yield Work(job, tile)

    def _make_tiles(self, count: int) -> None:
        """Have `count` tiles ready; a scene may have millions, so no more are made ahead."""
        while self._untouched and len(self._tiles) < count:
            work = next(self._untouched[0], None)
            if work is None:
                self._untouched.popleft()
            else:
                self._tiles.append(work)

    def _handle(self, work: Work, result: Any) -> None:
        if work.job.scene_id in self._failed:
            return
        if isinstance(result, Prepared):
            self._handlers.prepared(work.job, result)
            self._queue_tiles(work.job)
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
            (self._scenes if work.prepares else self._tiles).appendleft(work)
            return
        times = f" ({work.attempts} attempts)" if work.attempts > 1 else ""
        self._failed.add(work.job.scene_id)
        self._handlers.failed(work.job, failure.code, f"{failure.message}{times}")
