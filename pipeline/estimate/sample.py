"""Which scenes and tiles stand for a plan, and how much work there is of each kind."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import PurePosixPath
from statistics import median

from pipeline.grid import Tile, TileGrid
from pipeline.plan import ScenePlan
from pipeline.scene_job import SceneJob

_GROUPS = 4  # that are measured; what is left counts as its nearest
_SCENES = 2  # of a group
_SMALL = 16  # tiles of a scene up to which the work beside its tiles counts as much
_SMALL_SCENES = 4  # of a group of small scenes: as many as a worker holds open
RUN = 8  # tiles in a row, as a run takes them: they share what a reader keeps
_MOST_TILES = 512  # of a scene


@dataclass(frozen=True)
class Load:
    """Work: tiles, values that they read with their halo, values that they make.

    Attributes:
        tiles: how many.
        lr_values: LR pixels x bands of the source, halo included.
        hr_values: HR pixels x bands of the output.
    """

    tiles: int = 0
    lr_values: int = 0
    hr_values: int = 0

    def __add__(self, other: Load) -> Load:
        return Load(
            self.tiles + other.tiles,
            self.lr_values + other.lr_values,
            self.hr_values + other.hr_values,
        )

    def __sub__(self, other: Load) -> Load:
        return self + Load(-other.tiles, -other.lr_values, -other.hr_values)


def load_of(job: SceneJob, tiles: Iterable[Tile], margin: int) -> Load:
    """Of some tiles of a scene; `margin` LR pixels are read around each."""
    total = Load()
    for tile in tiles:
        low = job.grid.window(tile, margin).pixels * job.source_bands
        high = job.grid.core(tile).pixels * job.grid.scale**2 * job.bands
        total += Load(1, low, high)
    return total


def open_load(scene: ScenePlan, margin: int) -> Load:
    """Of all tiles of a scene that are not done; quick for any number of them."""
    job = scene.job
    assert job is not None
    grid = job.grid
    rows = sum(_spans(grid.height, grid.tile, margin))
    columns = sum(_spans(grid.width, grid.tile, margin))
    whole = Load(len(grid), rows * columns * job.source_bands, job.pixel_bands)
    return whole - load_of(job, map(_tile, scene.done), margin)


def _spans(size: int, tile: int, margin: int) -> Iterator[int]:
    """Lengths of the windows along an axis."""
    for start in range(0, size, tile):
        yield min(size, start + tile + margin) - max(0, start - margin)


def _tile(key: str) -> Tile:
    row, column = (int(part) for part in key.split("."))
    return Tile(row, column)


@dataclass(frozen=True)
class Group:
    """Scenes of one format and so many bands, and those of them that are measured.

    Attributes:
        format: how their addresses end.
        bands: of the output.
        source_bands: of the source.
        scenes: all.
        load: open tiles of all.
        sampled: some, from the whole range of sizes; a scene with more tiles is likelier.
    """

    format: str
    bands: int
    source_bands: int
    scenes: tuple[ScenePlan, ...]
    load: Load
    sampled: tuple[ScenePlan, ...] = ()


def groups_of(work: Sequence[ScenePlan], margin: int) -> list[Group]:
    """Scenes with open tiles by format and bands, most work first; the first groups are sampled."""
    kinds: dict[tuple[str, int, int], list[tuple[ScenePlan, Load]]] = defaultdict(list)
    for scene in work:
        load = open_load(scene, margin)
        job = scene.job
        if job is not None and load.tiles:
            suffix = PurePosixPath(scene.uri.rstrip("/")).suffix.lower() or "folder"
            kinds[suffix, job.bands, job.source_bands].append((scene, load))
    groups = []
    for (suffix, bands, source_bands), scenes in kinds.items():
        total = sum((load for _, load in scenes), Load())
        groups.append(
            Group(suffix, bands, source_bands, tuple(s for s, _ in scenes), total, _chosen(scenes))
        )
    groups.sort(key=lambda group: -group.load.lr_values)
    unsampled = [
        Group(g.format, g.bands, g.source_bands, g.scenes, g.load) for g in groups[_GROUPS:]
    ]
    return groups[:_GROUPS] + unsampled


def _chosen(scenes: Sequence[tuple[ScenePlan, Load]]) -> tuple[ScenePlan, ...]:
    """Scenes at even steps through all tiles, scenes in order of their size."""
    ordered = sorted(scenes, key=lambda pair: (pair[1].tiles, pair[0].scene_id))
    small = median(load.tiles for _, load in ordered) <= _SMALL
    count = min(len(ordered), _SMALL_SCENES if small else _SCENES)
    ends = list(accumulate(load.tiles for _, load in ordered))
    chosen: list[int] = []
    for step in range(count):
        place = bisect_left(ends, ends[-1] * (step + 0.5) / count)
        chosen.append(next(at for at in _around(place, len(ordered)) if at not in chosen))
    return tuple(ordered[at][0] for at in sorted(chosen))


def _around(place: int, size: int) -> Iterator[int]:
    """All places, the nearest first."""
    return iter(sorted(range(size), key=lambda at: abs(at - place)))


def sampled_tiles(scene: ScenePlan) -> list[Tile]:
    """Open tiles in runs of `RUN` neighbours that lie anywhere: the first stand for all."""
    job = scene.job
    assert job is not None
    starts = range(0, len(job.grid), RUN)
    some = random.Random(0).sample(starts, min(len(starts), _MOST_TILES // RUN))
    return [tile for start in some for tile in _tiles(job.grid, start, scene.done)]


def _tiles(grid: TileGrid, start: int, done: frozenset[str]) -> Iterator[Tile]:
    numbers = islice(range(start, len(grid)), RUN)
    tiles = (Tile(*divmod(number, grid.columns)) for number in numbers)
    return (tile for tile in tiles if tile.key not in done)
