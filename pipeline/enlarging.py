"""Plain enlargement: bicubic, of a part as of the whole scene, and by repeated pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model.degradation import enlargement
from pipeline.grid import Window
from pipeline.values import Values

REACH = 2  # LR pixels around a core that the bicubic kernel sees


def enlarge(values: Values, core: Window, scale: int, device: torch.device) -> Values:
    """The core as `model.degradation.upsample` enlarges it within the whole scene.

    Args:
        values: `(bands, rows, cols)` without NaN: the core and at least `REACH` LR pixels around
            it, fewer only where the scene ends and is mirrored.
        core: the part to return, in LR pixels of `values`.
        scale: the factor.
        device: where to compute.

    Returns:
        `(bands, scale*rows, scale*cols)` in the units of `values`.
    """
    height, width = values.shape[1:]
    top, down = _axis(core.top, core.bottom, height, scale)
    left, across = _axis(core.left, core.right, width, scale)
    part = torch.from_numpy(np.ascontiguousarray(values[:, top, left])).to(device)
    enlarged = down.to(device) @ part @ across.to(device).T
    return np.asarray(enlarged.cpu().numpy(), dtype=np.float32)


def _axis(start: int, stop: int, size: int, scale: int) -> tuple[slice, torch.Tensor]:
    """What is read of an axis, and the matrix from it to the core's HR pixels."""
    first, last = max(0, start - REACH), min(size, stop + REACH)
    matrix = enlargement(last - first, scale)
    return slice(first, last), matrix[scale * (start - first) : scale * (stop - first)]


def repeat_pixels(plane: NDArray[Any], scale: int) -> NDArray[Any]:
    """Every LR pixel of `(..., rows, cols)` as scale x scale equal ones."""
    return plane.repeat(scale, axis=-2).repeat(scale, axis=-1)
