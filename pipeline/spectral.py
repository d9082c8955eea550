"""Match the bands of a scene to the bands of the model.

Three ways, in this order:

`match`: the scene's bands lie at the model's wavelengths; the network sees them as trained.
`index`: equally many bands, and one side states no wavelengths; matched by position, and said so.
`windows`: other bands. The network runs on windows of as many neighbouring good bands as it has,
moved along the spectrum with overlap, and the overlaps are blended. Windows do not reach across
gaps in the spectrum (water vapour, detector changes); a stretch that is shorter than a window is
mirrored at its ends. The groups share their weights, so they know spectra of any position; the
trunk does not, so this is a default that is measured (docs/bands.md) and no claim that the model
was trained for the sensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from model import Card
from pipeline.errors import SceneError
from pipeline.settings import Bands

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


@dataclass(frozen=True)
class BandPlan:
    """How the bands of one scene go through the network.

    Attributes:
        kind: see the module.
        used: scene bands that are super-resolved, ascending; all others come out as fill.
        windows: the passes. With `match` and `index` the one window holds every band, bad ones
            included (their input is interpolated from neighbours).
        note: one line for the operator; empty where there is nothing to say.
    """

    kind: Literal["match", "index", "windows"]
    used: tuple[int, ...]
    windows: tuple[BandWindow, ...]
    note: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BandPlan:
        """The inverse of `dataclasses.asdict`, also after a way through JSON."""
        windows = tuple(
            BandWindow(tuple(window["bands"]), window["start"], window["stop"])
            for window in values["windows"]
        )
        return cls(values["kind"], tuple(values["used"]), windows, values["note"])

    def blend_weights(self, bands: int) -> NDArray[np.float32]:
        """Weight of each window for each scene band, `(windows, bands)`; sums to 1 where used."""
        weights = np.zeros((len(self.windows), bands), dtype=np.float64)
        for row, window in zip(weights, self.windows, strict=True):
            centre = (window.stop - window.start - 1) / 2
            row[list(window.kept)] = 1.0 + centre - np.abs(np.arange(len(window.kept)) - centre)
        total = weights.sum(axis=0)
        unused = np.ones(bands, dtype=bool)
        unused[list(self.used)] = False
        total[unused] = np.inf
        return np.asarray(weights / total, dtype=np.float32)


def window_starts(bands: int, size: int, overlap: float = OVERLAP) -> list[int]:
    """First positions of windows of `size` over `bands`, overlapping by at least a share."""
    step = max(1, size - int(size * overlap))
    count = 1 + -(-(bands - size) // step)
    return [round(index * (bands - size) / max(1, count - 1)) for index in range(count)]


def stretches(used: UsedBands, wavelengths: Wavelengths | None) -> list[tuple[int, ...]]:
    """The used bands, cut where the spectrum has a gap or runs backwards.

    A gap is a step of more than `GAP` times the median step, in wavelength where it is known,
    else in band number.
    """
    bands = np.asarray(used)
    axis = bands if wavelengths is None else np.asarray(wavelengths)[bands]
    steps = np.diff(axis)
    if not len(steps):
        return [tuple(bands.tolist())]
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


def match_bands(
    card: Card,
    wavelengths: Wavelengths | None,
    good: Sequence[bool],
    policy: Bands = "auto",
) -> BandPlan:
    """Decide how the scene's bands go through the model.

    Args:
        card: the model's card.
        wavelengths: nm, one per scene band; None where the scene states none.
        good: False for bands that must not be used.
        policy: `match` refuses what `auto` would send through windows; `windows` forces them.

    Raises:
        SceneError: `too-few-bands` or `band-mismatch`.
    """
    size = card.architecture.bands
    used = tuple(int(band) for band in np.flatnonzero(np.asarray(good, dtype=bool)))
    if len(used) < size and len(good) != size:
        raise SceneError(
            "too-few-bands",
            f"{len(used)} usable bands, the model needs {size}; use a model for this sensor",
        )
    kind, difference = _same_bands(card, wavelengths, len(good))
    if policy != "windows" and kind is not None and 2 * len(used) >= size:
        whole = BandWindow(tuple(range(size)), 0, size)
        return BandPlan(kind, used, (whole,), _direct_note(kind, len(good) - len(used)))
    if policy == "match":
        raise SceneError("band-mismatch", f"{difference}; use --bands auto or another model")
    if len(used) < size:
        raise SceneError(
            "too-few-bands", f"{len(used)} of {len(good)} bands are usable, the model needs {size}"
        )
    windows = band_windows(used, wavelengths, size)
    note = (
        f"{difference}: run as {len(windows)} overlapping windows of {size} bands, for which the "
        "model was not trained"
    )
    return BandPlan("windows", used, windows, note)


def _same_bands(
    card: Card, wavelengths: Wavelengths | None, bands: int
) -> tuple[Literal["match", "index"] | None, str]:
    """Whether the scene has the model's bands; if not, the difference in words."""
    size = card.architecture.bands
    if bands != size:
        return None, f"{bands} bands, the model has {size}"
    if wavelengths is None or card.wavelengths is None:
        return "index", ""
    ours = np.asarray(card.wavelengths)
    worst = float(np.abs(np.asarray(wavelengths) - ours).max())
    tolerance = float(np.abs(np.diff(ours)).min()) / 2 if size > 1 else 5.0
    if worst <= tolerance:
        return "match", ""
    return None, f"wavelengths differ from the model's by up to {worst:.1f} nm"


def _direct_note(kind: str, bad: int) -> str:
    notes = []
    if kind == "index":
        notes.append("no wavelengths to compare: bands matched to the model's by position")
    if bad:
        notes.append(f"{bad} bad band(s) interpolated for the network, fill in the output")
    return "; ".join(notes)
