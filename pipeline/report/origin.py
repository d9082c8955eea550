"""The scene that a result was made from, where it can still be had in the version that was read.

Nothing stands in for it: where it cannot be had, the page says why and shows the result alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from pipeline.arrays import VARIABLE
from pipeline.errors import SceneError
from pipeline.readers import open_scene
from pipeline.recompute import recorded_source
from pipeline.storage import describe, without_secrets


@dataclass(frozen=True)
class Origin:
    """The LR scene of a result.

    Attributes:
        values: `(band, y, x)`, lazy; None where it cannot be shown.
        reason: why not, in one line.
    """

    values: xr.DataArray | None
    reason: str = ""


def open_origin(
    result: xr.Dataset, made: Mapping[str, Any], scene_id: str, scale: int, source: str | None
) -> Origin:
    """The source of a published scene.

    Args:
        result: the published scene.
        made: its root attribute `sr_archive`.
        scene_id: its id.
        scale: of the result.
        source: SOURCE of the run; None takes the recorded address.
    """
    try:
        scene = open_scene(recorded_source(scene_id, made, source).uri)
    except SceneError as error:
        return Origin(None, without_secrets(str(error)))
    except Exception as error:  # whatever a store or a library raises, it is not reachable
        return Origin(None, describe(error))
    problem = _mismatch(scene, result, scale)
    return Origin(None, problem) if problem else Origin(scene[VARIABLE])


def _mismatch(scene: xr.Dataset, result: xr.Dataset, scale: int) -> str:
    """Why pixels of the two cannot be laid over each other; empty where they can."""
    if scene.sizes["band"] != result.sizes["band"]:
        return "the result has other bands than its source (--bands resample)"
    if any(scene.sizes[side] * scale != result.sizes[side] for side in ("y", "x")):
        return f"the source has not the size of the result divided by {scale}"
    both = "wavelength" in scene.coords and "wavelength" in result.coords
    if both and not np.allclose(
        scene["wavelength"], result["wavelength"], rtol=1e-6, atol=1e-3, equal_nan=True
    ):
        return "the result has other wavelengths than its source"
    return ""
