"""The output's `reflectance_spread`: by how much the results of all turns differ, as it is stored.

It is float32 whatever type the values have, since it is mostly smaller than one step of theirs.
Rounded to a few bits, which is finer than it can be trusted, it takes two thirds of the bytes that
it would take as bfloat16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numcodecs import BitRound

from pipeline.values import Values

SPREAD = "reflectance_spread"
BITS = 5  # 3 % at most


def encode_spread(spread: Values) -> Values:
    """As it is stored: `BITS` significant bits, to the nearest; NaN stays."""
    flat = np.ascontiguousarray(spread).ravel()
    rounded: Values = BitRound(BITS - 1).encode(flat).view(np.float32).reshape(spread.shape)
    rounded[np.isnan(spread)] = np.nan  # of which there are many, and rounding makes -0 of some
    return rounded


def spread_attributes(units: str | None) -> dict[str, Any]:
    """Of the variable, in the units of the values."""
    attributes = {
        "long_name": "standard deviation of the results over the 8 flips and turns of the scene",
        "comment": f"{BITS} significant bits; ranks errors and understates them",
    }
    return attributes if units is None else {**attributes, "units": units}
