"""How sure a difference is: the bootstrap over pairs (Efron and Tibshirani 1993).

Two methods on one scene share all that makes the scene hard, so their differences are drawn again,
not their figures. The draws are seeded: the same pairs give the same interval.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import DegenerateDataWarning, bootstrap

CONFIDENCE = 0.95
DRAWS = 9999
FEWEST = 3  # pairs of which an interval is made at all
_SEED = 20200518

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


def interval(values: np.ndarray) -> tuple[float, float]:
    """The bias-corrected and accelerated interval of the mean (DiCiccio and Efron 1996)."""
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)
        low, high = _drawn(values, "BCa")
    # Of few pairs no draw may lie on one side of the mean, and the correction is not defined.
    return (low, high) if np.isfinite([low, high]).all() else _drawn(values, "percentile")


def _drawn(values: np.ndarray, method: str) -> tuple[float, float]:
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=DRAWS,
        confidence_level=CONFIDENCE,
        method=method,
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(found.low), float(found.high)
