"""Which pixels train, which say when to stop, and which prove the result.

By scene where there are enough of them; else each scene is cut into blocks with guard bands between
them. A training pair is cut out of its block first and degraded then, so that it reads no pixel
outside of the block: neither the network's halo nor the degradation reaches into another one. The
guard bands keep pixels apart that the sensor's own blur has mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import numpy as np

from pipeline.errors import UsageError
from pipeline.grid import Window

ENOUGH_SCENES = 4
SMALLEST = 3  # LR pixels along the side of a block
_GUARD_SHARE = 8  # a guard band takes at most this part of a scene's side, if that is wide enough


@dataclass(frozen=True)
class SceneSize:
    """A scene that takes part: its id and HR pixels."""

    scene_id: str
    height: int
    width: int


@dataclass(frozen=True)
class Area:
    """A block of a scene, or all of it, in the scene's own pixels."""

    scene_id: str
    window: Window


@dataclass(frozen=True)
class Split:
    """Who does what.

    Attributes:
        train: what pairs are made of.
        validation: what the end of training is chosen by.
        test: what the result is proved by; never looked at before.
        by: scenes or blocks.
        guard: HR pixels between two blocks of one scene; 0 by scenes.
        too_small: ids of scenes that no block fits in, left out.
    """

    train: tuple[Area, ...]
    validation: tuple[Area, ...]
    test: tuple[Area, ...]
    by: Literal["scenes", "blocks"]
    guard: int = 0
    too_small: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reach:
    """How far things look, in LR pixels: the network, and the degradation."""

    scale: int
    halo: int
    support: int


def make_split(
    scenes: Sequence[SceneSize],
    reach: Reach,
    share: float,
    seed: int,
    held_out: Sequence[str] = (),
) -> Split:
    """Divide scenes; the same for the same arguments.

    Args:
        scenes: all that take part.
        reach: of the network and the degradation.
        share: of scenes, or of each scene's longer side, that does not train.
        seed: of what is held out.
        held_out: globs of scene ids; where given, these scenes and no others.

    Raises:
        UsageError: no scene is large enough, or nothing is left on one side.
    """
    least = SMALLEST * reach.scale
    fitting = [scene for scene in scenes if min(scene.height, scene.width) >= least]
    too_small = tuple(s.scene_id for s in _sorted(scenes) if min(s.height, s.width) < least)
    if not fitting:
        raise UsageError(_nothing_fits(scenes, reach))
    if held_out:
        return _named(fitting, held_out, seed, too_small)
    if len(fitting) >= ENOUGH_SCENES:
        return _by_scenes(fitting, share, seed, too_small)
    return _by_blocks(fitting, scenes, reach, share, seed)


def _named(
    scenes: Sequence[SceneSize], globs: Sequence[str], seed: int, too_small: tuple[str, ...]
) -> Split:
    out = [s for s in scenes if any(fnmatchcase(s.scene_id, glob) for glob in globs)]
    train = [s for s in scenes if s not in out]
    if not out or not train:
        side = "no scene" if not out else "every scene"
        raise UsageError(f"--holdout-scene: {side} of the archive is held out: {', '.join(globs)}")
    return _of_scenes(train, *_halves(_shuffled(out, seed)), too_small)


def _by_scenes(
    scenes: Sequence[SceneSize], share: float, seed: int, too_small: tuple[str, ...]
) -> Split:
    order = _shuffled(scenes, seed)
    count = min(len(order) - 2, max(2, round(share * len(order))))
    return _of_scenes(order[count:], *_halves(order[:count]), too_small)


def _halves(held: list[SceneSize]) -> tuple[list[SceneSize], list[SceneSize]]:
    """For validation and test; a scene alone does both."""
    middle = len(held) // 2
    return (held[:middle], held[middle:]) if middle else (held, held)


def _of_scenes(
    train: Sequence[SceneSize],
    validation: Sequence[SceneSize],
    test: Sequence[SceneSize],
    too_small: tuple[str, ...],
) -> Split:
    return Split(_whole(train), _whole(validation), _whole(test), by="scenes", too_small=too_small)


def _whole(scenes: Sequence[SceneSize]) -> tuple[Area, ...]:
    return tuple(Area(s.scene_id, Window(0, s.height, 0, s.width)) for s in _sorted(scenes))


def _sorted(scenes: Sequence[SceneSize]) -> list[SceneSize]:
    return sorted(scenes, key=lambda scene: scene.scene_id)


def _shuffled(scenes: Sequence[SceneSize], seed: int) -> list[SceneSize]:
    ordered = _sorted(scenes)
    return [ordered[place] for place in np.random.default_rng(seed).permutation(len(ordered))]


def _by_blocks(
    fitting: Sequence[SceneSize],
    scenes: Sequence[SceneSize],
    reach: Reach,
    share: float,
    seed: int,
) -> Split:
    least = SMALLEST * reach.scale
    guard = guard_pixels(min(max(s.height, s.width) for s in fitting), reach)
    cut = [s for s in _sorted(fitting) if max(s.height, s.width) >= 2 * least + guard]
    if not cut:
        raise UsageError(_nothing_fits(scenes, reach))
    parts = [_blocks(s, reach.scale, guard, share, seed + place) for place, s in enumerate(cut)]
    names = {s.scene_id for s in cut}
    return Split(
        train=tuple(train for train, _, _ in parts),
        validation=tuple(validation for _, validation, _ in parts),
        test=tuple(test for _, _, test in parts),
        by="blocks",
        guard=guard,
        too_small=tuple(s.scene_id for s in _sorted(scenes) if s.scene_id not in names),
    )


def guard_pixels(side: int, reach: Reach) -> int:
    """HR pixels between blocks of a scene whose longer side is given.

    Halo and support of the degradation together where the scene is large enough for it; never less
    than the support.
    """
    wanted = reach.scale * (reach.halo + reach.support)
    affordable = side // _GUARD_SHARE // reach.scale * reach.scale
    return max(reach.scale * reach.support, min(wanted, affordable))


def _blocks(
    scene: SceneSize, scale: int, guard: int, share: float, seed: int
) -> tuple[Area, Area, Area]:
    """Train, validation and test block of one scene, held out at one end of its longer side."""
    whole = Window(0, scene.height, 0, scene.width)
    at_end = bool(np.random.default_rng(seed).integers(2))
    length, least = max(whole.shape), SMALLEST * scale
    held = max(least, min(round(share * length), length - guard - least)) // scale * scale
    train, out = _cut(whole, length - guard - held if at_end else held, guard)
    if not at_end:
        train, out = out, train
    across = max(out.shape)
    if across < 2 * least + guard:
        validation = test = out
    else:
        validation, test = _cut(out, (across - guard) // 2 // scale * scale, guard)
    return (
        Area(scene.scene_id, train),
        Area(scene.scene_id, validation),
        Area(scene.scene_id, test),
    )


def _cut(window: Window, first: int, guard: int) -> tuple[Window, Window]:
    """Two parts of a window along its longer side: `first` pixels, and what lies behind a guard."""
    if window.shape[0] > window.shape[1]:
        middle = window.top + first
        return (
            Window(window.top, middle, window.left, window.right),
            Window(middle + guard, window.bottom, window.left, window.right),
        )
    middle = window.left + first
    return (
        Window(window.top, window.bottom, window.left, middle),
        Window(window.top, window.bottom, middle + guard, window.right),
    )


def _nothing_fits(scenes: Sequence[SceneSize], reach: Reach) -> str:
    least = SMALLEST * reach.scale
    long = 2 * least + reach.scale * reach.support
    largest = max(scenes, key=lambda scene: min(scene.height, scene.width))
    return (
        f"no scene is large enough to train at x{reach.scale} and hold a block out: at least "
        f"{least} x {long} pixels are needed, {largest.scene_id} has {largest.height} x "
        f"{largest.width}; use a smaller --scale or larger scenes"
    )
