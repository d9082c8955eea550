"""How far the network looks: the halo that makes a tile's core independent of what lies beyond."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from model.config import SSPSRConfig


def halo(config: SSPSRConfig) -> int:
    """LR pixels that must surround a core for its output to be exact, with frozen attention.

    Every 3x3 convolution reaches one pixel at its own resolution. The longest path goes through
    head, blocks (two 3x3 each), the branch's upsampling and tail, then head, blocks and
    upsampling of the trunk, and the final convolution. The bicubic skip is shorter.
    """
    factor = config.scale // 2
    body = body_reach(config)
    reach = Fraction(body)
    resolution = 1
    while resolution < factor:
        reach += Fraction(1, resolution)  # each upsampling convolution runs before its shuffle
        resolution *= 2
    reach += Fraction(1, factor)  # tail
    reach += Fraction(body + 1, factor)  # trunk's head, blocks and upsampling
    reach += Fraction(1, config.scale)  # final
    return max(ceil(reach), _skip_reach(config))


def body_reach(config: SSPSRConfig) -> int:
    """Pixels that head and blocks look aside, at their own resolution."""
    return 1 + 2 * config.blocks


def _skip_reach(config: SSPSRConfig) -> int:
    """LR pixels seen by the bicubic kernel (2) widened by skip_conv and final (3x3 at HR)."""
    return ceil(2 + Fraction(2, config.scale))
