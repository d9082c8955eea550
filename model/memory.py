"""How much memory the fast form of the network takes: the plan's bound and the engine's chunks."""

from __future__ import annotations

from model.config import SSPSRConfig
from model.receptive_field import halo

_LIVE = 4  # feature maps alive inside a block: head, sum, its cropped copy, residual


def body_bytes(config: SSPSRConfig, pixels: int, element: int) -> int:
    """Feature maps of the trunk's body over so many LR pixels, `element` bytes each."""
    return (config.scale // 2) ** 2 * branch_bytes(config, pixels, element)


def branch_bytes(config: SSPSRConfig, pixels: int, element: int) -> int:
    """Feature maps of one group's body over so many LR pixels, `element` bytes each."""
    return _LIVE * config.features * pixels * element


def tile_bytes(config: SSPSRConfig, rows: int, columns: int, element: int, groups: int = 1) -> int:
    """Upper bound of what one tile takes beside the weights.

    With w the window's and c the core's LR pixels, f = scale/2, F features, B bands, G groups of s
    bands, g of them at once, and e bytes per element, it is the input B*w*(4+e), the groups side
    by side G*s*f*f*w*e and the largest of three steps:

        branches   4*g*F*w*e
        trunk      4*F*f*f*w*e
        output     F*f*f*w*e + B*scale*scale*c*(12 + 2*e)

    Args:
        rows, columns: of the core, in LR pixels; the halo is added.
        element: bytes of an activation, 4 in float32 and 2 in bfloat16.
        groups: how many groups of bands run at once.
    """
    margin = 2 * halo(config)
    window = (rows + margin) * (columns + margin)
    fine = (config.scale // 2) ** 2 * window
    high = config.scale**2 * (rows + 1) * (columns + 1)
    steps = (
        groups * branch_bytes(config, window, element),
        body_bytes(config, window, element),
        config.features * fine * element + config.bands * high * (12 + 2 * element),
    )
    between = len(config.group_starts) * config.group_size * fine * element
    return config.bands * window * (4 + element) + between + max(steps)
