"""Geometry files beside an ENVI scene in sensor geometry, as JPL's airborne products have them.

A flight line's files begin with its name (`ang20170228t170016_`) and end with what they are:
`_loc` (longitude, latitude in degrees on WGS-84, elevation), `_igm` (the same on a map grid),
`_glt` (look-up table), `_obs` (angles), each also `_ort` for the map grid. Source: the AVIRIS-NG
Data Product Readme (JPL, version 02).
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable

_GEOMETRY = re.compile(r"(?i)_(loc|glt|igm|obs)(_ort)?(_v\w+)?(_img)?$")
_LOCATION = re.compile(r"(?i)_loc(_v\w+)?(_img)?$")
_SUFFIXES = re.compile(r"(?i)(\.(img|dat|bin|raw|bil|bip|bsq))?\.hdr$")


class Geometry:
    """Which of the ENVI headers of one folder belong together."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._scenes: set[str] = set()
        self._locations: dict[str, list[str]] = defaultdict(list)
        for path in paths:
            if path.lower().endswith(".hdr"):
                stem = _stem(path)
                if _GEOMETRY.search(stem) is None:
                    self._scenes.add(_line(stem))
                elif _LOCATION.search(stem):
                    self._locations[_line(stem)].append(path)

    def is_geometry(self, header: str) -> bool:
        """Whether a header describes the geometry of another scene of the same flight line."""
        stem = _stem(header)
        return _GEOMETRY.search(stem) is not None and _line(stem) in self._scenes

    def location(self, header: str) -> str | None:
        """The header of the scene's `_loc` file; of several the one of the most similar name."""
        stem = _stem(header)
        found = self._locations.get(_line(stem), [])
        if _GEOMETRY.search(stem) or not found:
            return None
        ranked = sorted((-len(posixpath.commonprefix([_stem(p), stem])), p) for p in found)
        several = len(ranked) > 1 and ranked[0][0] == ranked[1][0]
        return None if several else ranked[0][1]


def _stem(path: str) -> str:
    return _SUFFIXES.sub("", posixpath.basename(path)).lower()


def _line(stem: str) -> str:
    return stem.partition("_")[0]
