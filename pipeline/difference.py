"""By how much a tile that was computed again differs from the one that is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from pipeline.arrays import VARIABLE
from pipeline.objects import array_of, decoded, open_objects
from pipeline.spread import BITS, SPREAD

# Part of a tile's largest value that rounding may change float values by. In fp32 another
# processor adds in another order; bf16 keeps eight bits of what the network adds to the bicubic.
_FLOAT_ROUNDING = {"fp32": 1e-5, "bf16": 2.0**-8}
# The same of the spread: one step of what is stored, and two, since it is a small difference of
# large values.
_SPREAD_ROUNDING = {"fp32": 2.0 ** (1 - BITS), "bf16": 2.0 ** (2 - BITS)}
_DEGREES = 1e-9  # of positions: 0.1 mm


@dataclass
class ArrayDifference:
    """Two contents of one array's part.

    Attributes:
        array: its path in the scene.
        values: how many were compared.
        equal: how many are the same; fill in both counts.
        fill_in_one: how many are fill (or NaN) in one only; no difference is counted there.
        maximum: largest absolute difference, in the array's decoded unit.
        step: one stored count in that unit; 0 for floats.
        largest: of the absolute stored values, decoded.
        per_band: largest absolute difference of each band; empty for arrays without bands.
        rounding: what may differ by rounding, in the same unit.
    """

    array: str
    values: int = 0
    equal: int = 0
    fill_in_one: int = 0
    maximum: float = 0.0
    step: float = 0.0
    largest: float = 0.0
    per_band: dict[int, float] = field(default_factory=dict)
    rounding: float = 0.0

    @property
    def share_equal(self) -> float:
        return self.equal / self.values if self.values else 1.0

    @property
    def within_rounding(self) -> bool:
        return self.fill_in_one == 0 and self.maximum <= self.rounding

    def to_dict(self) -> dict[str, Any]:
        """For JSON: bands as a list in order."""
        bands = [self.per_band[band] for band in sorted(self.per_band)]
        more = {"share_equal": self.share_equal, "within_rounding": self.within_rounding}
        return {**asdict(self), "per_band": bands, **more}

    def __str__(self) -> str:
        counts = f" ({self.maximum / self.step:.0f} counts)" if self.step else ""
        text = f"{self.array}: {self.share_equal:.4%} equal, at most {self.maximum:.3g}{counts} off"
        return text + (f", {self.fill_in_one} fill in one only" if self.fill_in_one else "")


def compare_objects(
    documents: Mapping[str, bytes],
    stored: Mapping[str, bytes],
    made: Mapping[str, bytes],
    precision: str,
) -> list[ArrayDifference]:
    """Compare the objects that both have, array by array, chunk by chunk.

    Args:
        documents: metadata of the arrays by key below the scene.
        stored, made: bytes by key below the scene.
        precision: fp32 or bf16, in which `made` was computed.

    Raises:
        whatever a codec raises where an object cannot be decoded.
    """
    keys = sorted(stored.keys() & made.keys())
    return [
        _compare_array(documents, name, keys, (stored, made), precision)
        for name in dict.fromkeys(map(array_of, keys))
    ]


def _compare_array(
    documents: Mapping[str, bytes],
    name: str,
    keys: list[str],
    both: tuple[Mapping[str, bytes], Mapping[str, bytes]],
    precision: str,
) -> ArrayDifference:
    one, other = (open_objects(documents, name, objects) for objects in both)
    found = ArrayDifference(name, step=_step(one))
    for key in keys:
        if array_of(key) == name:
            pairs = zip(decoded(one, key), decoded(other, key), strict=True)
            for (band, first), (_, second) in pairs:
                _add(found, one, band, first, second)
    if _is_values(name) or name == SPREAD:
        shares = _SPREAD_ROUNDING if name == SPREAD else _FLOAT_ROUNDING
        share = shares.get(precision, shares["fp32"])
        # Half a step more: the differences are themselves rounded.
        found.rounding = 1.5 * found.step if found.step else share * found.largest
    elif one.dtype.kind == "f":
        found.rounding = _DEGREES
    return found


def _add(
    found: ArrayDifference,
    array: zarr.Array[Any],
    band: int,
    first: NDArray[Any],
    second: NDArray[Any],
) -> None:
    scale = found.step or 1.0
    fill = _fill(array) if _is_values(found.array) else None
    missing = _missing(fill, first), _missing(fill, second)
    valid = ~(missing[0] | missing[1])
    off = np.where(valid, np.abs(first.astype(np.float64) - second), 0.0) * scale
    size = np.where(valid, np.abs(first.astype(np.float64)), 0.0) * scale
    found.values += first.size
    found.equal += int(((off == 0) & valid).sum() + (missing[0] & missing[1]).sum())
    found.fill_in_one += int((missing[0] ^ missing[1]).sum())
    found.maximum = max(found.maximum, float(off.max(initial=0.0)))
    found.largest = max(found.largest, float(size.max(initial=0.0)))
    if first.ndim == 3:
        for number, plane in enumerate(off, start=band):
            most = float(plane.max(initial=0.0))
            found.per_band[number] = max(found.per_band.get(number, 0.0), most)


def _step(array: zarr.Array[Any]) -> float:
    """One count in the decoded unit; 0 for floats."""
    if array.dtype.kind == "f":
        return 0.0
    factor = array.attrs.get("scale_factor", 1.0)
    return abs(float(factor)) if isinstance(factor, int | float) else 1.0


def _is_values(name: str) -> bool:
    """Whether it is the scene's values, at full resolution or in an overview."""
    return name.rpartition("/")[2] == VARIABLE


def _fill(array: zarr.Array[Any]) -> int | None:
    """The stored integer that means nodata; xarray keeps it elsewhere in Zarr v2 than in v3."""
    fill = array.fill_value if array.metadata.zarr_format == 2 else array.attrs.get("_FillValue")
    return int(fill) if isinstance(fill, int | np.integer) else None


def _missing(fill: int | None, stored: NDArray[Any]) -> NDArray[np.bool_]:
    if stored.dtype.kind == "f":
        return np.asarray(np.isnan(stored))
    return np.zeros(stored.shape, bool) if fill is None else np.asarray(stored == fill)
