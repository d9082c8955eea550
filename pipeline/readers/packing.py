"""How stored numbers become reflectance, by band where files say so, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Packing:
    """How stored values become reflectance: `value = raw * scale + offset`, `fill` becomes NaN.

    Each is one number, an array with one number per band, or None where the file says nothing.
    """

    scale: float | FloatArray | None = None
    offset: float | FloatArray | None = None
    fill: float | FloatArray | None = None

    def decode(self, raw: npt.NDArray[Any], band: slice) -> npt.NDArray[np.float32]:
        small = raw.dtype.itemsize <= 2 or raw.dtype == np.float32
        work: type = np.float32 if small else np.float64
        values: npt.NDArray[Any] = raw.astype(work)
        if self.scale is not None:
            values *= _per_band(self.scale, band).astype(work)
        if self.offset is not None:
            values += _per_band(self.offset, band).astype(work)
        if self.fill is not None:
            # A float file may hold its fill only as precisely as its own type can.
            fill = _per_band(self.fill, band)
            values[raw == (fill.astype(raw.dtype) if raw.dtype.kind == "f" else fill)] = np.nan
        return values.astype(np.float32, copy=False)

    def encoding(self, dtype: np.dtype[Any]) -> dict[str, Any]:
        """What a writer needs to store the values again; float32 if no one packing fits all."""
        parts = {"scale_factor": self.scale, "add_offset": self.offset, "_FillValue": self.fill}
        if any(isinstance(part, np.ndarray) for part in parts.values()):
            return {"dtype": "float32"}
        found: dict[str, Any] = {"dtype": str(dtype)}
        found |= {name: float(part) for name, part in parts.items() if part is not None}
        if "_FillValue" in found and dtype.kind in "iu":
            found["_FillValue"] = int(found["_FillValue"])
        return found


def _per_band(value: float | FloatArray, band: slice) -> FloatArray:
    array = np.asarray(value, dtype=np.float64)
    return array[band].reshape(-1, 1, 1) if array.ndim else array


def packing(
    scales: Sequence[float | None],
    offsets: Sequence[float | None],
    fills: Sequence[float | None],
    dtype: np.dtype[Any],
    notes: list[str],
) -> Packing:
    """A `Packing` from one entry per band (or one for all); what has no effect is left out."""
    fill = _merge([usable_fill(value, dtype, notes) for value in fills], math.nan)
    scale, offset = _merge(scales, 1.0), _merge(offsets, 0.0)
    if isinstance(scale, float) and (scale == 0 or not math.isfinite(scale)):
        notes.append(f"scale factor {scale} ignored")
        scale = None
    if isinstance(offset, float) and offset == 0:
        offset = None
    if isinstance(scale, float) and scale == 1 and not offset:
        scale = offset = None
    if any(isinstance(part, np.ndarray) for part in (scale, offset, fill)):
        notes.append("scale, offset or nodata differ by band")
    return Packing(scale, offset, fill)


def _merge(values: Sequence[float | None], default: float) -> float | FloatArray | None:
    if all(value is None for value in values):
        return None
    filled = np.array([default if value is None else value for value in values], np.float64)
    same = filled == filled[0] if not math.isnan(filled[0]) else np.isnan(filled)
    return float(filled[0]) if same.all() else filled


def usable_fill(value: float | None, dtype: np.dtype[Any], notes: list[str]) -> float | None:
    """The nodata value if the data type can hold it, else None and a note."""
    if value is None or dtype.kind == "f":
        return value
    limits = np.iinfo(dtype)
    if math.isfinite(value) and value == int(value) and limits.min <= value <= limits.max:
        return value
    note = f"nodata {value:g} cannot occur in {dtype} and is ignored"
    if note not in notes:
        notes.append(note)
    return None
