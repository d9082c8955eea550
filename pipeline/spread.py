"""The output's `reflectance_spread`: by how much the results of all turns differ, as it is stored.

It is float32 whatever type the values have, since it is mostly smaller than one step of theirs.
Rounded to the precision of bfloat16, which is finer than any use of it, it takes half the bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pipeline.values import Values

SPREAD = "reflectance_spread"


def encode_spread(spread: Values) -> Values:
    """As it is stored: 8 significant bits, to the nearest; NaN stays."""
    rounded: Values = torch.from_numpy(np.ascontiguousarray(spread)).bfloat16().float().numpy()
    return rounded


def spread_attributes(units: str | None) -> dict[str, Any]:
    """Of the variable, in the units of the values."""
    attributes = {
        "long_name": "standard deviation of the results over the 8 flips and turns of the scene",
        "comment": "8 significant bits; ranks errors and understates them",
    }
    return attributes if units is None else {**attributes, "units": units}
