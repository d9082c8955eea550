"""Which of a file's arrays is the scene."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.errors import SceneError
from pipeline.storage import redact

_PREFERRED = ("reflectance", "cube")
_CLEARLY = 2  # times the bands of the runner-up


def is_cube(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
    return len(shape) == 3 and min(shape) > 0 and dtype.kind in "iuf"


def choose_cube(
    uri: str,
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]],
    notes: list[str],
    by_bands: bool = False,
) -> str:
    """The name of the scene's array among name -> (shape, dtype).

    `reflectance` or `cube` where there is one, else the only three-dimensional real array; with
    `by_bands` (bands last) also the one with at least twice the bands of every other.

    Raises:
        SceneError: `no-cube` or `ambiguous`.
    """
    cubes = {name: shape for name, (shape, dtype) in arrays.items() if is_cube(shape, dtype)}
    for name in _PREFERRED:
        if name in cubes:
            return name
    if not cubes:
        raise SceneError(
            "no-cube", f"{redact(uri)}: no three-dimensional numeric array; has {_names(arrays)}"
        )
    if len(cubes) == 1:
        return next(iter(cubes))
    best, second = sorted(cubes, key=lambda name: -cubes[name][2])[:2]
    if by_bands and cubes[best][2] >= _CLEARLY * cubes[second][2]:
        others = _names([name for name in cubes if name != best])
        notes.append(f"{best!r} has the most bands and is read; not read: {others}")
        return best
    raise SceneError(
        "ambiguous",
        f"{redact(uri)}: several cubes ({_names(cubes)}): keep one, or name it 'reflectance'",
    )


def _names(names: Any) -> str:
    listed = sorted(str(name) for name in names)
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "") or "none at all"
