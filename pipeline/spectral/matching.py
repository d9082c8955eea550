"""Which scene band stands for which band of the model, by wavelength.

One to one, nearest first, good bands before bad ones; the order of the scene's bands does not
matter, so descending axes and detectors that overlap need no special care.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model import Card

ALONE = 5.0  # nm of tolerance for a model of one band, which has no step
FWHM_RATIO = 1.5  # beyond it, two bands at one wavelength do not see the same spectrum

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class BandMap:
    """A match by wavelength.

    Attributes:
        bands: scene band of each of the model's, no band twice.
        worst_nm: largest distance between the two centres of a pair; None if matched by position.
    """

    bands: tuple[int, ...]
    worst_nm: float | None


def default_tolerance(card: Card) -> float:
    """Largest distance in nm at which a scene band may stand for one of the model's.

    Half the model's smallest band step: beyond it, another of the model's bands would be nearer.
    But not less than a quarter of the mean FWHM: two Gaussian responses of one width that are
    FWHM/4 apart still correlate by 0.92, and where detectors overlap the step may be next to
    nothing.
    """
    steps = np.abs(np.diff(_floats(card.wavelengths)))
    tolerance = float(steps.min()) / 2 if len(steps) else ALONE
    widths = _floats(card.fwhm)
    return max(tolerance, float(widths.mean()) / 4) if len(widths) else tolerance


def find_map(
    ours: Sequence[float], theirs: Floats, good: Sequence[bool], tolerance: float
) -> BandMap | None:
    """The best one-to-one match of all of the model's bands, or None where there is none.

    As few bad bands as possible, then the least sum of squared distances.

    Args:
        ours: nm, the model's bands.
        theirs: nm, the scene's bands; NaN where a band has no wavelength.
        good: False for scene bands that hold nothing to look at.
        tolerance: nm.
    """
    distance = _distances(ours, theirs)
    near = np.flatnonzero((distance <= tolerance).any(axis=0))
    if len(near) < len(ours):
        return None
    distance = distance[:, near]
    usable = np.asarray(good, dtype=bool)[near]
    chosen = _nearest(distance, usable, tolerance)
    if chosen is None:
        chosen = _assigned(distance, usable, tolerance)
    if chosen is None:
        return None
    worst = distance[np.arange(len(ours)), chosen].max()
    return BandMap(tuple(near[chosen].tolist()), float(worst))


def in_order(ours: Sequence[float], theirs: Floats, tolerance: float) -> BandMap | None:
    """Band by band, if that keeps within the tolerance."""
    worst = float(np.abs(theirs - _floats(ours)).max())
    return BandMap(tuple(range(len(ours))), worst) if worst <= tolerance else None


def why_not(ours: Sequence[float], theirs: Floats, tolerance: float) -> str:
    """Why `find_map` found nothing, in words."""
    distance = _distances(ours, theirs)
    nearest = distance.argmin(axis=1)
    least = distance[np.arange(len(ours)), nearest]
    band = int(least.argmax())
    if not least[band] > tolerance:
        return f"several of the model's bands have only one scene band within {tolerance:g} nm"
    there = theirs[nearest[band]]
    found = f"the nearest is {there:.1f} nm" if np.isfinite(there) else "none has a wavelength"
    return (
        f"the model's band {band + 1} ({ours[band]:.1f} nm) has no scene band within "
        f"{tolerance:g} nm: {found}"
    )


def fwhm_note(card: Card, fwhm: Floats | None, bands: Sequence[int]) -> str:
    """What to say of widths that differ, where both sides state them; empty if nothing.

    Args:
        card: the model's.
        fwhm: nm, one per scene band.
        bands: scene band of each of the model's.
    """
    if fwhm is None or card.fwhm is None:
        return ""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = fwhm[list(bands)] / _floats(card.fwhm)
        either = np.fmax(ratio, 1 / ratio)
    far = np.flatnonzero(np.isfinite(either) & (either > FWHM_RATIO))
    if not len(far):
        return ""
    return (
        f"the FWHM of {len(far)} band(s) is not the model's: "
        f"{ratio[far].min():.2f} to {ratio[far].max():.2f} times as wide"
    )


def _nearest(distance: Floats, usable: NDArray[np.bool_], tolerance: float) -> Floats | None:
    """Each band's nearest usable one, if no two have the same: the common case, at no cost."""
    reachable = np.where(usable, distance, np.inf)
    chosen = reachable.argmin(axis=1)
    found = reachable[np.arange(len(chosen)), chosen] <= tolerance
    return chosen if found.all() and len(set(chosen.tolist())) == len(chosen) else None


def _assigned(distance: Floats, usable: NDArray[np.bool_], tolerance: float) -> Floats | None:
    from scipy.optimize import linear_sum_assignment  # slow to load, and seldom needed

    # One bad band costs more than all distances together.
    penalty = (len(distance) + 1) * tolerance**2
    cost = np.where(distance <= tolerance, distance**2 + penalty * ~usable, np.inf)
    try:
        chosen: Floats = linear_sum_assignment(cost)[1]
    except ValueError:  # no complete assignment
        return None
    return chosen


def _distances(ours: Sequence[float], theirs: Floats) -> Floats:
    """`(model bands, scene bands)` in nm; infinite where a band has no wavelength."""
    distance = np.abs(_floats(ours)[:, None] - theirs[None, :])
    return np.where(np.isfinite(distance), distance, np.inf)


def _floats(values: Sequence[float] | None) -> Floats:
    return np.asarray([] if values is None else values, dtype=np.float64)
