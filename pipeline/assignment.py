"""Which worker takes the tiles of which scene.

A worker has to open a scene before its first tile: it reads metadata and constants, folds the
scene's attention into the weights, and on a GPU records its work anew. Tiles that lie side by side
read the same chunks, too. So a worker stays with its scene while there are others, and a scene gets
more workers only as it has tiles for them. When no further scene can be begun all help with the
rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from pipeline.actors import ActorPool, Seat, Work
from pipeline.scene_job import SceneJob

TILES_PER_WORKER = 64  # what opening costs is little beside them, on a GPU too


def workers_of(tiles: int, tiles_per_worker: int = TILES_PER_WORKER) -> int:
    """How many workers a scene with so many open tiles is worth opening for."""
    return -(-tiles // tiles_per_worker)


@dataclass
class _OpenScene:
    """A prepared scene; its tiles are made one by one, since it may have millions."""

    job: SceneJob
    tiles: Iterator[Work]
    left: int


class Assignment:
    """The tiles that can be handed out, and to which actor of the pool.

    Scenes come in the order in which they are added.
    """

    def __init__(self, pool: ActorPool, tiles_per_worker: int) -> None:
        self._pool = pool
        self._tiles_per_worker = tiles_per_worker
        self._open: dict[str, _OpenScene] = {}
        self._coming: dict[str, int] = {}  # tiles of scenes that are being prepared

    def __bool__(self) -> bool:
        """Whether there are tiles."""
        return bool(self._open)

    def expect(self, job: SceneJob) -> None:
        """The scene is being prepared."""
        self._coming[job.scene_id] = len(job.grid)

    def add(self, job: SceneJob, done: frozenset[str] = frozenset()) -> None:
        """The scene is prepared; these of its tiles are done."""
        self._coming.pop(job.scene_id, None)
        tiles = (Work(job, tile) for tile in job.grid if tile.key not in done)
        self._open[job.scene_id] = _OpenScene(job, tiles, len(job.grid) - len(done))

    def drop(self, scene_id: str) -> None:
        """Nothing more of this scene."""
        self._coming.pop(scene_id, None)
        self._open.pop(scene_id, None)

    def is_short(self, seat: Seat) -> bool:
        """Whether this actor will soon be out of tiles, and no scene is there or coming for it."""
        own, enough = self._open.get(seat.scene), self._pool.in_flight
        if own is not None and own.left >= enough:
            return False
        crews, each = self._pool.crews, enough / len(self._pool.seats)
        if own is not None and own.left >= each * crews[seat.scene]:
            return False
        ahead = sum(min(tiles, each * self._places(tiles)) for tiles in self._coming.values())
        for name, scene in self._open.items():
            if ahead >= enough:
                break
            ahead += min(scene.left, each * max(crews[name], self._places(scene.left)))
        return ahead < enough

    def tile_for(self, seat: Seat, *, help_others: bool) -> Work | None:
        """The next tile of the scene that the actor is at, or of one that has room for it.

        Args:
            seat: of the actor.
            help_others: rather than wait it may work at a scene that has workers enough.
        """
        while scene := self._open.get(seat.scene) or self._choose(seat, help_others):
            work = next(scene.tiles, None)
            scene.left -= 1
            if work is None or not scene.left:
                del self._open[scene.job.scene_id]
            if work is not None:
                return work
        return None

    def _choose(self, seat: Seat, help_others: bool) -> _OpenScene | None:
        """The first with room of those that the actor has open, or else of all."""
        there = (self._open[name] for name in seat.opened if name in self._open)
        for scene in chain(there, self._open.values()):
            if self._crew(scene) < self._places(scene.left):
                return scene
        if not help_others:
            return None
        return max(
            self._open.values(),
            key=lambda scene: scene.left / (1 + self._crew(scene)),
            default=None,
        )

    def _crew(self, scene: _OpenScene) -> int:
        return self._pool.crews[scene.job.scene_id]

    def _places(self, tiles: int) -> int:
        return workers_of(tiles, self._tiles_per_worker)
