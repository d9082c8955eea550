"""Quality flags per pixel: one vocabulary for every sensor's own layers.

A reader that has quality layers adds `quality_flags (y, x)`, lazy uint16, with the CF attributes of
`flag_attributes()`. A bit says what the product says; nothing is derived.
"""

from __future__ import annotations

from typing import Any

import numpy as np

VARIABLE = "quality_flags"
FLAGS = {
    "cloud": 1,
    "cloud_shadow": 2,
    "cirrus": 4,
    "haze": 8,
    "snow": 16,
    "water": 32,
    "saturated": 64,
    "defective": 128,
    "defective_band": 256,  # in some band, where the value is a gap already
}


def flag_attributes() -> dict[str, Any]:
    """CF `flag_masks` and `flag_meanings` of the variable (CF conventions, section 3.5)."""
    return {
        "long_name": "quality flags of the source product",
        "flag_masks": np.array(list(FLAGS.values()), dtype=np.uint16),
        "flag_meanings": " ".join(FLAGS),
    }
