"""The figures of one method on one scene, gathered block by block."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.metrics import assess
from pipeline.evaluation.regions import cells_of
from pipeline.evaluation.result import METRICS, Curve, Figures, mean_of
from pipeline.values import Values

Mask = NDArray[np.bool_]


class Scores:
    """Figures of one method, gathered over blocks."""

    def __init__(self, scale: int, bands: int) -> None:
        self._scale = scale
        self.of_blocks: list[Figures] = []
        self.of_cells: list[Figures] = []
        self._squares = np.zeros(bands)
        self._pixels = 0

    def add(self, truth: Values, estimate: Values, valid: Mask, *, cells: bool) -> None:
        """One block, in units of the peak, finite; `cells`: its parts as well."""
        self.of_blocks.append(_figures(truth, estimate, self._scale, valid))
        error = np.square(truth[:, valid].astype(np.float64) - estimate[:, valid])
        self._squares += error.sum(axis=1)
        self._pixels += int(valid.sum())
        if not cells:
            return
        for part in cells_of(*valid.shape):
            if valid[part].any():
                cut = truth[:, *part], estimate[:, *part]
                self.of_cells.append(_figures(*cut, self._scale, valid[part]))

    def figures(self) -> Figures:
        return {name: mean_of(block[name] for block in self.of_blocks) for name in METRICS}

    def curve(self) -> Curve:
        mean = self._squares / max(1, self._pixels)
        with np.errstate(divide="ignore"):
            psnr = -10 * np.log10(mean)
        return Curve(tuple(map(_finite, psnr)), tuple(map(_finite, np.sqrt(mean))))


def _figures(truth: Values, estimate: Values, scale: int, valid: Mask) -> Figures:
    with np.errstate(divide="ignore", invalid="ignore"):  # bands without any contrast, or error
        found = assess(truth, estimate, scale, None if valid.all() else valid)
    return {name: _finite(found[name]) for name in METRICS}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
