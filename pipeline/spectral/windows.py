"""Windows along the spectrum: how a network of few bands runs over a scene of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OVERLAP = 0.5  # share of a window that its neighbour repeats
GAP = 3.0  # median band steps that make a gap in the spectrum

Wavelengths = Sequence[float] | NDArray[np.float64]
UsedBands = Sequence[int]


@dataclass(frozen=True)
class BandWindow:
    """One pass of the network over some of the bands.

    Attributes:
        bands: scene band at each of the network's inputs; mirrored ends repeat bands.
        start, stop: the inputs whose outputs are kept; no band repeats among them.
    """

    bands: tuple[int, ...]
    start: int
    stop: int

    @property
    def kept(self) -> tuple[int, ...]:
        """Scene bands whose outputs are kept."""
        return self.bands[self.start : self.stop]


def window_starts(bands: int, size: int, overlap: float = OVERLAP) -> list[int]:
    """First positions of windows of `size` over `bands`, overlapping by at least a share."""
    step = max(1, size - int(size * overlap))
    count = 1 + -(-(bands - size) // step)
    return [round(index * (bands - size) / max(1, count - 1)) for index in range(count)]


def stretches(used: UsedBands, wavelengths: Wavelengths | None) -> list[tuple[int, ...]]:
    """The used bands, cut where the spectrum has a gap or runs backwards.

    Bands in descending order are turned, so that the network sees rising wavelengths. A gap is a
    step of more than `GAP` times the median step, in wavelength where it is known, else in band
    number.
    """
    bands = np.asarray(used)
    axis = bands if wavelengths is None else np.asarray(wavelengths)[bands]
    if len(bands) < 2:
        return [tuple(bands.tolist())]
    steps = np.diff(axis)
    if np.median(steps) < 0:
        bands, steps = bands[::-1], -steps[::-1]
    cuts = np.flatnonzero((steps > GAP * np.median(np.abs(steps))) | (steps <= 0)) + 1
    return [tuple(part.tolist()) for part in np.split(bands, cuts)]


def band_windows(
    used: UsedBands, wavelengths: Wavelengths | None, size: int, overlap: float = OVERLAP
) -> tuple[BandWindow, ...]:
    """Windows of `size` inputs over the used bands of a scene."""
    windows = []
    for part in stretches(used, wavelengths):
        if len(part) >= size:
            starts = window_starts(len(part), size, overlap)
            windows += [BandWindow(part[start : start + size], 0, size) for start in starts]
        else:
            before = (size - len(part)) // 2
            mirrored = np.pad(part, (before, size - len(part) - before), mode="symmetric")
            windows.append(BandWindow(tuple(mirrored.tolist()), before, before + len(part)))
    return tuple(windows)
