"""From one sensor's bands to another's: weights from Gaussian spectral responses.

A band is taken for a Gaussian of its centre and FWHM, as is usual where files state no more (the
ENVI and R package `prospectr` documentation say the same of their resampling). The scene's spectrum
is taken to be linear between its bands, and averaged with a Gaussian of the variance that the
model's band has more than the scene's bands and the linear interpolation have already. So

- a model band that is wider than the scene's becomes their weighted mean and gets its own width;
- one that is not becomes the linear interpolation between the two bands beside it: what the
  scene's bands have blurred is not sharpened;
- constant and linear spectra are reproduced exactly, however the bands are spaced.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

SIGMA = 1 / sqrt(8 * log(2))  # standard deviation of a Gaussian per FWHM
COVERED = 0.5  # of a model band's response that must lie on the scene's good bands
_TRACE = 1e-4  # weights below are left out
_POINT = 1e-3  # nm; stands for a width of zero

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bands:
    """Centres, FWHM and band steps in nm, `(bands,)` each."""

    centres: Floats
    fwhm: Floats
    steps: Floats

    def __len__(self) -> int:
        return len(self.centres)


@dataclass(frozen=True)
class Combination:
    """How one sensor's bands are made of another's.

    Attributes:
        weights: `(to, from)`, not negative; rows sum to 1, or are 0 where nothing is covered.
        covered: `(to,)` share of each response that lies on bands it is made of.
        centres, fwhm: `(to,)` nm, of what comes out; NaN where nothing does.
        interpolated: `(to,)` where the sensor it is made of is too coarse for a weighted mean.
    """

    weights: Floats
    covered: Floats
    centres: Floats
    fwhm: Floats
    interpolated: NDArray[np.bool_]


def local_steps(centres: Floats) -> Floats:
    """The smaller distance of each band to its two neighbours in the given order, nm.

    The order of the file is the detector's, so the step is right where detectors overlap, and the
    smaller of two is right beside a gap. NaN where no neighbour is apart.
    """
    steps = np.abs(np.diff(np.asarray(centres, dtype=np.float64)))
    steps[~(steps > 0)] = np.inf  # a duplicate, or a band without wavelength
    either = np.minimum(np.append(np.inf, steps), np.append(steps, np.inf))
    return np.where(np.isfinite(either), either, np.nan)


def combine(theirs: Bands, ours: Bands) -> Combination:
    """Weights that make our bands of theirs.

    Args:
        theirs: what there is; finite, in any order, at least one.
        ours: what is wanted; finite.
    """
    places, inverse, counts = np.unique(theirs.centres, return_inverse=True, return_counts=True)
    widths = np.bincount(inverse, theirs.fwhm) / counts
    # A band knows of the spectrum up to half its width, and up to half way to the next.
    reach = np.fmax(widths, np.bincount(inverse, theirs.steps) / counts) / 2
    sigma = _remaining_width(places, widths, ours)
    weights = _hat_integrals(places, reach, ours.centres, np.maximum(sigma, _POINT))
    weights = (weights / counts)[:, inverse]
    weights[weights < _TRACE * weights.sum(axis=1, keepdims=True)] = 0
    total = weights.sum(axis=1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    centres, fwhm = _moments(weights, theirs)
    return Combination(weights, _coverage(places, reach, ours), centres, fwhm, sigma == 0)


def _remaining_width(places: Floats, widths: Floats, ours: Bands) -> Floats:
    """Standard deviation of the Gaussian that is still missing to our widths; 0 if none is."""
    if len(places) > 1:
        right = np.clip(np.searchsorted(places, ours.centres), 1, len(places) - 1)
        step = places[right] - places[right - 1]
    else:
        step = np.zeros(len(ours))
    theirs = np.interp(ours.centres, places, widths)
    # Linear interpolation at t between two samples has the variance t (1 - t) step^2, 1/6 on
    # average.
    variance = (ours.fwhm**2 - theirs**2) * SIGMA**2 - step**2 / 6
    return np.sqrt(np.maximum(variance, 0.0))


def _hat_integrals(places: Floats, reach: Floats, centres: Floats, sigma: Floats) -> Floats:
    """`(centres, places)` integrals of Gaussians times the hat functions of linear interpolation.

    Beyond the first and last place the hat stays at 1 as far as the band reaches.
    """
    ends = np.concatenate([[places[0] - reach[0]], places, [places[-1] + reach[-1]]])
    z = (ends[None, :] - centres[:, None]) / sigma[:, None]
    mass = np.diff(ndtr(z), axis=1)
    density = np.exp(-0.5 * np.minimum(z * z, 1500.0)) / sqrt(2 * np.pi)
    inner, first = mass[:, 1:-1], places[:-1]
    moment = (centres[:, None] - first) * inner - sigma[:, None] * np.diff(density, axis=1)[:, 1:-1]
    rising = np.clip(moment / np.diff(places), 0.0, inner)
    weights = np.zeros((len(centres), len(places)))
    weights[:, 1:] += rising
    weights[:, :-1] += inner - rising
    weights[:, 0] += mass[:, 0]
    weights[:, -1] += mass[:, -1]
    return weights


def _coverage(places: Floats, reach: Floats, ours: Bands) -> Floats:
    """Share of each of our responses within reach of a band."""
    high = np.maximum.accumulate(places + reach)
    low = np.maximum(places - reach, np.append(-np.inf, high[:-1]))
    low = np.minimum(low, high)
    sigma = np.maximum(ours.fwhm * SIGMA, _POINT)[:, None]
    inside = ndtr((high - ours.centres[:, None]) / sigma) - ndtr(
        (low - ours.centres[:, None]) / sigma
    )
    return np.asarray(inside.sum(axis=1), dtype=np.float64)


def _moments(weights: Floats, theirs: Bands) -> tuple[Floats, Floats]:
    """Centre and FWHM of each row's mixture of responses."""
    centres = weights @ theirs.centres
    spread = (theirs.centres[None, :] - centres[:, None]) ** 2 + (theirs.fwhm * SIGMA) ** 2
    taken = weights > 0
    fwhm = np.sqrt((weights * np.where(taken, spread, 0)).sum(axis=1)) / SIGMA
    empty = ~taken.any(axis=1)
    return np.where(empty, np.nan, centres), np.where(empty, np.nan, fwhm)
