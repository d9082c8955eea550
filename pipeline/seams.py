"""Whether tiles meet: some borders are computed again across, in one piece, and compared.

A seam is what a tile's own computation leaves at its border. So a strip over the border, which no
tile ever computed as a whole, is super-resolved like a tile of its own and compared with what the
two tiles have stored there. The scene states the largest difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pipeline.arrays import VARIABLE, OutputScene
from pipeline.errors import SceneError
from pipeline.grid import Tile, TileGrid, Window
from pipeline.resolving import super_resolve
from pipeline.settings import Attention
from pipeline.tile import SceneContext, read_around

_HALF = 4  # LR pixels of a strip at each side of the border
_LENGTH = 16  # LR pixels along it
STRIP_SHARE = 0.25  # of a tile of 64, what a strip takes, with its halo
_TILES_PER_BORDER = 16  # so small scenes get fewer
# In the network's range of [0, 1]; measured in docs/attention.md: tiles that meet differ by at most
# 6e-7, in bfloat16 by 5e-4, and the published attention per tile leaves 6e-5 and more.
_BOUNDS = {"fp32": 5e-6, "bf16": 5e-3}


@dataclass(frozen=True)
class Border:
    """A stretch of the border between two tiles; `strip` holds LR pixels of both."""

    tiles: tuple[str, str]
    strip: Window


@dataclass(frozen=True)
class SeamCertificate:
    """How well the tiles of a scene meet.

    Attributes:
        borders: that were compared.
        borders_of_scene: that there are.
        values: HR pixels x bands that were compared.
        largest_difference: in the network's range of [0, 1], beyond one step of the stored type.
        largest_physical: in the scene's units, as it is stored.
        tiles: that meet there, a pair for each border.
    """

    borders: int
    borders_of_scene: int
    values: int = 0
    largest_difference: float = 0.0
    largest_physical: float = 0.0
    tiles: tuple[tuple[str, str], ...] = ()

    @classmethod
    def uncompared(cls, grid: TileGrid) -> SeamCertificate:
        """Of a scene of which no border was compared."""
        return cls(0, borders_of(grid))

    def checked(self, attention: Attention, precisions: Iterable[str]) -> dict[str, Any]:
        """For the scene's attributes; a scene with seams is refused.

        Args:
            attention: of the run; with `global` tiles differ as the published network does, and
                that is only stated.
            precisions: in which the scene's tiles were computed.

        Returns:
            Plain values, with the `bound` on the largest difference; None: there is none.

        Raises:
            SceneError: `seams`.
        """
        bound = max((_BOUNDS.get(name, 0.0) for name in precisions), default=0.0)
        if attention == "scene" and not self.largest_difference <= bound:
            raise SceneError(
                "seams",
                f"computed across, tile borders differ by {self.largest_difference:.2g} of the "
                f"network's range (bound {bound:g}): a stored tile is not what this model "
                "makes. Remove the scene's folder and run again; --seam-borders 0 publishes it",
            )
        stated = asdict(self) | {"tiles": [list(pair) for pair in self.tiles]}
        return stated | {"bound": bound if attention == "scene" else None}


def borders_of(grid: TileGrid) -> int:
    """How many borders between two tiles there are."""
    return grid.rows * (grid.columns - 1) + (grid.rows - 1) * grid.columns


def count_borders(grid: TileGrid, most: int) -> int:
    """How many borders of a scene are compared; a scene of few tiles gets fewer, but one."""
    return min(most, borders_of(grid), max(1, len(grid) // _TILES_PER_BORDER))


def choose_borders(grid: TileGrid, most: int, seed: str) -> tuple[Border, ...]:
    """Borders to compare, the same for the same seed.

    Args:
        grid: of the scene.
        most: how many at most.
        seed: the scene's fingerprint.
    """
    count = count_borders(grid, most)
    digest = hashlib.sha256(seed.encode()).digest()
    random = np.random.default_rng(np.frombuffer(digest, dtype=np.uint32))
    chosen = random.choice(borders_of(grid), count, replace=False).tolist() if count else []
    return tuple(_border(grid, number, random.random()) for number in chosen)


def _border(grid: TileGrid, number: int, along: float) -> Border:
    """By its number: first those between left and right, then those between top and bottom."""
    upright = grid.rows * (grid.columns - 1)
    if number < upright:
        row, column = divmod(number, grid.columns - 1)
        first, second = Tile(row, column), Tile(row, column + 1)
    else:
        row, column = divmod(number - upright, grid.columns)
        first, second = Tile(row, column), Tile(row + 1, column)
    one, other = grid.core(first), grid.core(second)
    if number < upright:
        top = _begin(one.top, one.bottom, along)
        strip = Window(
            top,
            min(top + _LENGTH, one.bottom),
            max(one.left, one.right - _HALF),
            min(other.right, other.left + _HALF),
        )
    else:
        left = _begin(one.left, one.right, along)
        strip = Window(
            max(one.top, one.bottom - _HALF),
            min(other.bottom, other.top + _HALF),
            left,
            min(left + _LENGTH, one.right),
        )
    return Border((first.key, second.key), strip)


def _begin(first: int, last: int, along: float) -> int:
    return first + int(along * max(1, last - first - _LENGTH + 1))


def certify(
    context: SceneContext, output: OutputScene, borders: Sequence[Border]
) -> SeamCertificate:
    """Compare stored tiles with what one piece gives at their borders.

    Args:
        context: of the scene, as its tiles have it.
        output: whose tiles are all written.
        borders: of `choose_borders`.

    Raises:
        SceneError: source or output cannot be read there.
    """
    found = [_differences(context, output, border) for border in borders]
    return SeamCertificate(
        borders=len(borders),
        borders_of_scene=borders_of(context.grid),
        values=sum(values for values, _, _ in found),
        largest_difference=max((scaled for _, scaled, _ in found), default=0.0),
        largest_physical=max((physical for _, _, physical in found), default=0.0),
        tiles=tuple(border.tiles for border in borders),
    )


def _differences(
    context: SceneContext, output: OutputScene, border: Border
) -> tuple[int, float, float]:
    """Values compared; the largest difference in the network's range, and in physical units."""
    encoding, calibration = context.encoding, context.calibration
    values, core = read_around(context, border.strip)
    made = super_resolve(values, core, context.engines, calibration, context.refinement).values
    stored = output.read(VARIABLE, border.strip.scaled(context.grid.scale))
    ours, theirs = encoding.decode(encoding.encode(made)[0]), encoding.decode(stored)
    gaps = np.isnan(ours)
    if not np.array_equal(gaps, np.isnan(theirs)):
        return ours.size, float("inf"), float("inf")
    if gaps.all():
        return 0, 0.0, 0.0
    apart = np.abs(ours - theirs)
    beyond = np.maximum(apart - encoding.step, 0.0) * calibration.gains[:, None, None]
    return int((~gaps).sum()), float(np.nanmax(beyond)), float(np.nanmax(apart))
