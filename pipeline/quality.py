"""How far a scene's result can be trusted, measured without a reference.

The result, degraded again, should be the scene (`model.consistency`). Every tile adds sums for the
result and, beside it, for plain bicubic enlargement; the ledger keeps them until the scene is
published. Consistency is necessary and not sufficient: docs/consistency.md.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from model.consistency import ConsistencySums, bicubic_consistency, consistency
from model.degradation import Degradation, bicubic
from model.extent import Extent
from pipeline.calibration import Calibration
from pipeline.ledger import TileRecord
from pipeline.values import Values

_DIGITS = 6  # significant digits of a figure in metadata


@dataclass(frozen=True)
class TileQuality:
    """Sums of one tile, or of several together.

    Attributes:
        result: of the super-resolved values.
        bicubic: of bicubic enlargement, over the same pixels.
    """

    result: ConsistencySums
    bicubic: ConsistencySums

    def __add__(self, other: TileQuality) -> TileQuality:
        return TileQuality(self.result + other.result, self.bicubic + other.bicubic)

    def to_record(self) -> str:
        """Text for the ledger, 43 bytes per band: float32, whose digits outlast every sum."""
        sums = np.concatenate([self.result.to_array(), self.bicubic.to_array()])
        return base64.b64encode(sums.astype("<f4").tobytes()).decode("ascii")

    @classmethod
    def from_record(cls, text: str) -> TileQuality:
        """The inverse of `to_record`.

        Raises:
            ValueError: the text is not of this kind.
        """
        sums = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4").astype(np.float64)
        result, bicubic = np.split(sums, 2)
        return cls(ConsistencySums.from_array(result), ConsistencySums.from_array(bicubic))


def measure_tile(
    values: Values,
    filled: Values,
    result: Values,
    extents: tuple[Extent, Extent],
    degradation: Degradation,
) -> TileQuality:
    """Consistency of one tile; all of the same bands.

    Args:
        values: `(bands, rows, cols)` physical of the window that was read, NaN in gaps.
        filled: the same without gaps, as the network saw it.
        result: `(bands, scale * rows, scale * cols)` of the core, physical.
        extents: where the core lies in the window.
        degradation: what makes an LR pixel of HR ones.
    """
    lr, low = torch.from_numpy(values), torch.from_numpy(filled)
    valid = None if filled is values else torch.isfinite(lr)
    return TileQuality(
        consistency(low, torch.from_numpy(result), *extents, degradation, valid),
        bicubic_consistency(low, *extents, degradation, valid),
    )


def total(records: Iterable[str]) -> TileQuality | None:
    """The sums of a scene from its tiles' records; None where no tile was measured."""
    tiles = [TileQuality.from_record(text) for text in records if text]
    result = tiles[0] if tiles else None
    for tile in tiles[1:]:
        assert result is not None
        result = result + tile
    return result


def scene_figures(
    records: Mapping[str, TileRecord], calibration: Calibration, scale: int
) -> dict[str, Any]:
    """The figures of a scene whose every tile is in the ledger; see `figures`."""
    used, bands = calibration.bands.used, len(calibration.gains)
    quality = total(record.consistency for record in records.values())
    if quality is None:  # tiles of a ledger that knew no consistency
        nothing = ConsistencySums.zeros(len(used))
        quality = TileQuality(nothing, nothing)
    return figures(quality, used, bands, bicubic(scale))


def relative_error(sums: ConsistencySums) -> float:
    """RMSE over all bands as part of the scene's root mean square; NaN where nothing counted."""
    reference = float(sums.reference.sum())
    return float(np.sqrt(sums.squared.sum() / reference)) if reference > 0 else float("nan")


def figures(
    quality: TileQuality, used: Sequence[int], bands: int, degradation: Degradation
) -> dict[str, Any]:
    """The scene's figures for its attributes; None stands for what could not be measured.

    Args:
        quality: of the whole scene, over the `used` bands.
        used: which bands of the scene these are.
        bands: of the scene; the per-band lists have one entry for each.
        degradation: as it was measured.
    """
    return {
        "degradation": degradation.name,
        "pixels": int(quality.result.pixels),
        **_figures(quality.result, used, bands),
        "bicubic": _figures(quality.bicubic, used, bands),
    }


def _figures(sums: ConsistencySums, used: Sequence[int], bands: int) -> dict[str, Any]:
    per_band = np.full(bands, np.nan)
    per_band[list(used)] = sums.rmse
    return {
        "rmse": _number(sums.overall_rmse),
        "relative_rmse": _number(relative_error(sums)),
        "sam_degrees": _number(sums.sam),
        "rmse_per_band": [_number(value) for value in per_band],
    }


def _number(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None
