"""How physical values are stored, and back: the source's integer scale, or float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.values import Values

_AT_ONCE = 1 << 16  # values: with what is made of them they stay in a core's cache


@dataclass(frozen=True)
class ValueRange:
    """How many values are valid and between which they lie; no limits where none is."""

    count: int = 0
    minimum: float | None = None
    maximum: float | None = None

    @classmethod
    def of(cls, valid: NDArray[Any]) -> ValueRange:
        """Of values without NaN."""
        return cls(valid.size, float(valid.min()), float(valid.max())) if valid.size else cls()

    @classmethod
    def over(cls, parts: Iterable[ValueRange]) -> ValueRange:
        """The range of all parts together."""
        some = [part for part in parts if part.minimum is not None and part.maximum is not None]
        if not some:
            return cls()
        return cls(
            sum(part.count for part in some),
            min(part.minimum for part in some if part.minimum is not None),
            max(part.maximum for part in some if part.maximum is not None),
        )


@dataclass(frozen=True)
class ValueEncoding:
    """How physical values are stored: stored = (physical - add_offset) / scale_factor.

    Attributes:
        dtype: NumPy name of the stored type.
        fill: stored value of nodata; None where an integer source has none and needs none.
    """

    dtype: str
    scale_factor: float = 1.0
    add_offset: float = 0.0
    fill: float | int | None = None

    @classmethod
    def of_scene(
        cls, encoding: Mapping[Any, Any], *, float32: bool, needs_fill: bool
    ) -> ValueEncoding:
        """The source's own integer scale, or float32 with NaN.

        Args:
            encoding: of the source variable: `dtype`, `scale_factor`, `add_offset`, `_FillValue`.
            float32: ask for physical float32 whatever the source.
            needs_fill: some output values are fill though the source declares no fill value;
                the type's lowest (signed) or highest (unsigned) value is taken then.
        """
        dtype = np.dtype(encoding.get("dtype", "float32"))
        if float32 or not np.issubdtype(dtype, np.integer):
            return cls("float32", fill=float("nan"))
        fill = encoding.get("_FillValue")
        limits = np.iinfo(dtype)
        if fill is None or not limits.min <= float(fill) <= limits.max:
            fill = (limits.min if limits.min < 0 else limits.max) if needs_fill else None
        return cls(
            dtype.name,
            float(encoding.get("scale_factor", 1.0)),
            float(encoding.get("add_offset", 0.0)),
            None if fill is None else int(fill),
        )

    def to_xarray(self) -> dict[str, Any]:
        """Encoding for xarray; what is neutral is left out."""
        facts: dict[str, Any] = {"dtype": self.dtype}
        if self.scale_factor != 1.0:
            facts["scale_factor"] = self.scale_factor
        if self.add_offset != 0.0:
            facts["add_offset"] = self.add_offset
        facts["_FillValue"] = self.fill
        return facts

    def encode(self, physical: Values) -> tuple[NDArray[Any], ValueRange]:
        """Stored values of `(bands, rows, cols)`; NaN becomes fill, valid values never do.

        Returns:
            The stored values, and the range of the valid ones as a reader will decode them.

        Raises:
            ValueError: NaN where no fill value is declared.
        """
        dtype = np.dtype(self.dtype)
        if not np.issubdtype(dtype, np.integer):
            floats = physical.astype(dtype)
            return floats, ValueRange.over(_valid_range(plane) for plane in floats)
        stored = np.empty(physical.shape, dtype)
        some = max(1, _AT_ONCE // max(1, physical[0].size))
        # float32 holds every count of a 16-bit type as exactly as it holds the physical value.
        kind = np.float32 if dtype.itemsize <= 2 else np.float64
        work = np.empty((min(some, len(physical)), *physical.shape[1:]), kind)
        counts = ValueRange.over(  # some bands at a time: they fit the cache
            self._encode_some(part, into, work[: len(part)])
            for part, into in (
                (physical[first : first + some], stored[first : first + some])
                for first in range(0, len(physical), some)
            )
        )
        return stored, self._decoded(counts)

    @property
    def step(self) -> float:
        """Between two stored values, physical; 0 where they are floats."""
        return abs(self.scale_factor) if np.issubdtype(np.dtype(self.dtype), np.integer) else 0.0

    def decode(self, stored: NDArray[Any]) -> NDArray[np.float64]:
        """Physical values, NaN where there is fill."""
        physical = stored.astype(np.float64) * self.scale_factor + self.add_offset
        if self.fill is not None and not np.isnan(self.fill):
            physical[stored == self.fill] = np.nan
        return physical

    def _encode_some(
        self, physical: NDArray[np.float32], encoded: NDArray[Any], work: NDArray[Any]
    ) -> ValueRange:
        """Fill `encoded`; the result counts its valid part. `work` is space of the same shape."""
        limits = np.iinfo(encoded.dtype)
        kind = work.dtype.type
        if self.add_offset:
            physical = np.subtract(physical, kind(self.add_offset), out=work)
        np.divide(physical, kind(self.scale_factor), out=work)
        np.rint(work, out=work)
        lowest, highest = work.min(), work.max()  # NaN if there is one
        missing = np.isnan(work) if np.isnan(lowest) else None
        if missing is not None:
            if self.fill is None:
                raise ValueError("nodata in the output, but no fill value is declared")
            work[missing] = 0
        if not (lowest >= limits.min and highest <= limits.max):
            np.clip(work, limits.min, limits.max, out=work)
        encoded[...] = work
        if self.fill is not None and not (lowest > self.fill or highest < self.fill):
            beside = self.fill + 1 if self.fill < limits.max else self.fill - 1
            encoded[encoded == self.fill] = beside
        elif limits.min <= lowest and highest <= limits.max:  # nothing was moved
            return ValueRange(encoded.size, float(lowest), float(highest))
        valid = ValueRange.of(encoded if missing is None else encoded[~missing])
        if missing is not None:
            encoded[missing] = self.fill
        return valid

    def _decoded(self, counts: ValueRange) -> ValueRange:
        if counts.minimum is None or counts.maximum is None:
            return counts
        ends = [
            end * self.scale_factor + self.add_offset for end in (counts.minimum, counts.maximum)
        ]
        return ValueRange(counts.count, min(ends), max(ends))


class Encoded:
    """Physical values as they are stored, each part encoded when it is taken.

    A tile is written by chunks: so no second array of its size is in memory.
    """

    def __init__(self, physical: Values, encoding: ValueEncoding) -> None:
        self.shape = physical.shape
        self._physical, self._encoding = physical, encoding
        self._ranges: list[ValueRange] = []

    def __getitem__(self, part: Any) -> NDArray[Any]:
        stored, valid = self._encoding.encode(self._physical[part])
        self._ranges.append(valid)  # from several threads
        return stored

    @property
    def valid(self) -> ValueRange:
        """Of the parts that were taken, none of them twice."""
        return ValueRange.over(self._ranges)


def _valid_range(plane: NDArray[Any]) -> ValueRange:
    lowest, highest = plane.min(), plane.max()
    if np.isnan(lowest):
        return ValueRange.of(plane[~np.isnan(plane)])
    return ValueRange(plane.size, float(lowest), float(highest))
