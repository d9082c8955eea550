"""How physical values reach the network's [0, 1]: one factor per band, fixed for a scene.

A factor and nothing else, so results go back to physical units by division and zero stays zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from model import Card
from pipeline.errors import SceneError
from pipeline.settings import Normalise
from pipeline.spectral import BandPlan
from pipeline.values import Values

BAND_LEVEL = 0.5  # where the 98th percentile of a band goes when each band has its own factor
_DARKEST = 1e-3  # of the brightest band; a darker band is noise and is not amplified further
_REFLECTANCE_LIMIT = 1.5  # 99.9 % of unscaled float reflectance lies below


@dataclass(frozen=True)
class Levels:
    """How bright a scene's sample is, in physical units.

    Attributes:
        high: 99.9th percentile over all used bands.
        bands: `(bands,)` 98th percentile of each band; NaN in bands that are not used.
    """

    high: float
    bands: Values


def measure_levels(patches: list[Values], used: list[int]) -> Levels:
    """Levels of a sample of `(bands, rows, cols)` patches with NaN in gaps."""
    values = np.concatenate([patch[used].reshape(len(used), -1) for patch in patches], axis=1)
    bands = np.full(len(patches[0]), np.nan, dtype=np.float32)
    bands[used] = np.nanpercentile(values, 98, axis=1)
    return Levels(float(np.nanpercentile(values, 99.9)), bands)


def find_gains(
    encoding: Mapping[Any, Any], card: Card, levels: Levels, plan: BandPlan, normalise: Normalise
) -> tuple[Values, str]:
    """Network value = physical value x gain.

    `auto` gives each band a factor of its own where the scene's bands are not the model's as they
    stand (windows, resampled, or matched out of more): measured (docs/bands.md), it keeps the
    errors of bright bands out of dark ones. Where they are the model's, scaled integers, and
    floats that mostly lie below 1.5, are taken for reflectance; unscaled integers that reach a
    quarter of the card's full scale are divided by it; all else is divided by the scene's 99.9th
    percentile.

    Args:
        encoding: the source variable's: `dtype`, `scale_factor`.
        card: for the full scale of training.
        levels: of the sample.
        plan: how the bands go through the network.
        normalise: the option; anything but `auto` forces its rule.

    Returns:
        `(bands,)` gains, and the rule in words for provenance.

    Raises:
        SceneError: no positive value to normalise by.
    """
    bands = len(levels.bands)
    full = card.normalisation.divisor
    integer = np.issubdtype(np.dtype(encoding.get("dtype", "float32")), np.integer)
    scaled = encoding.get("scale_factor", 1.0) != 1.0
    if normalise == "auto":
        as_they_stand = plan.kind in ("match", "index") and len(plan.windows[0].bands) == bands
        if not as_they_stand:
            normalise = "bands"
        elif scaled or (not integer and levels.high <= _REFLECTANCE_LIMIT):
            normalise = "reflectance"
        elif integer and _uses_full_scale(card, levels.high):
            return _constant(bands, 1.0 / full), f"divided by the card's full scale {full:g}"
        else:
            normalise = "scene"
    if normalise == "reflectance":
        return _constant(bands, 1.0), "values as they are"
    if not levels.high > 0:
        raise SceneError("no-valid-pixels", "no positive value to normalise by")
    if normalise == "scene":
        rule = f"divided by the scene's 99.9th percentile {levels.high:.6g}"
        return _constant(bands, 1.0 / levels.high), rule
    floor = _DARKEST * np.nanmax(levels.bands)
    gains = (BAND_LEVEL / np.fmax(levels.bands, floor)).astype(np.float32)
    return gains, f"each band scaled so that its 98th percentile is {BAND_LEVEL:g}"


def _uses_full_scale(card: Card, high: float) -> bool:
    full = card.normalisation.divisor
    return card.normalisation.kind == "full-scale" and full / 4 <= high <= full


def _constant(bands: int, value: float) -> Values:
    return np.full(bands, value, dtype=np.float32)
