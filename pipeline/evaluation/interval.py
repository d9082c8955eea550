"""How sure a difference is: the bootstrap over pairs (Efron 1987, doi 10.2307/2289144).

Two methods on one scene share all that makes the scene hard, so their differences are drawn again,
not their figures. The draws are seeded: the same pairs give the same interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

CONFIDENCE = 0.95
DRAWS = 10_000
FEWEST = 3  # pairs of which an interval is made at all
_SEED = 20200518
_AT_ONCE = 1_000  # draws that are held

Unit = Literal["scene", "part", "none"]
Pairs = Sequence[tuple[float | None, float | None]]


@dataclass(frozen=True)
class Difference:
    """One method minus another.

    Attributes:
        mean: over the pairs; None where a figure is not defined.
        low, high: ends of the 95 % interval; None where there is none.
        pairs: how many.
        unit: what was paired: whole scenes; parts of scenes, whose interval tells how the
            difference varies within them and nothing of other scenes; `none`: too few of either.
        higher_is_better: of the metric.
    """

    mean: float | None
    low: float | None
    high: float | None
    pairs: int
    unit: Unit
    higher_is_better: bool

    @property
    def verdict(self) -> Literal["better", "worse", "undecided"]:
        """Whether the interval lies on one side of zero."""
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "undecided"
        return "better" if (self.low > 0) == self.higher_is_better else "worse"


def difference(by_scene: Pairs, by_part: Pairs, higher_is_better: bool) -> Difference:
    """The mean difference and its interval.

    Args:
        by_scene: figures of both methods per scene.
        by_part: the same per part; used if there are any and `FEWEST` or more of them.
        higher_is_better: of the metric.
    """
    unit: Unit = "part" if len(by_part) >= FEWEST else "scene"
    pairs = by_part if unit == "part" else by_scene
    known = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
    if not known or len(known) < len(pairs):
        return Difference(None, None, None, len(known), "none", higher_is_better)
    values = np.asarray(known)
    if len(values) < FEWEST:
        return Difference(float(values.mean()), None, None, len(known), "none", higher_is_better)
    low, high = interval(values)
    return Difference(float(values.mean()), low, high, len(known), unit, higher_is_better)


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The interval of the mean, bias-corrected and accelerated (BCa).

    Where that correction is not defined, as of equal values, it is the percentile interval.
    """
    random = np.random.default_rng(_SEED)
    parts = (
        random.integers(0, len(values), (_AT_ONCE, len(values))) for _ in range(DRAWS // _AT_ONCE)
    )
    drawn = np.sort(np.concatenate([values[part].mean(axis=1) for part in parts]))
    below = np.mean(drawn < values.mean()) + np.mean(drawn == values.mean()) / 2
    tails = np.array([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    with np.errstate(divide="ignore", invalid="ignore"):
        shifted = ndtri(below) + ndtri(tails)
        corrected = ndtr(ndtri(below) + shifted / (1 - _acceleration(values) * shifted))
    low, high = np.quantile(drawn, corrected if np.isfinite(corrected).all() else tails)
    return float(low), float(high)


def _acceleration(values: NDArray[np.float64]) -> float:
    """Of the mean: a sixth of the skewness of its jackknife."""
    deviation = values - values.mean()  # left out one by one, the means deviate in proportion
    return float((deviation**3).sum() / (6 * (deviation**2).sum() ** 1.5))
