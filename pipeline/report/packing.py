"""Data as scripts: what a page opened from a disk may load, which refuses it any other file.

A script calls `srReceive(name, payload)`. Arrays are counts of 16 bits; along each row the
differences are kept, high and low bytes apart, deflated, in base64.
"""

from __future__ import annotations

import base64
import json
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

NODATA = 65535
_LEVELS = NODATA - 1
_COMPRESSION = 6

Codes = NDArray[np.uint16]
Lattice = tuple[float, float]  # scale factor and offset of stored integers


@dataclass(frozen=True)
class Quantiser:
    """How the values of one band become 16 bits: value = offset + step * code.

    Attributes:
        exact: every value that the store can hold is kept as it is.
    """

    offset: float = 0.0
    step: float = 1.0
    exact: bool = False

    @classmethod
    def of(cls, *arrays: NDArray[Any], lattice: Lattice | None = None) -> Quantiser:
        """For arrays that share one scale; NaN is nodata.

        Args:
            arrays: in physical units.
            lattice: of a store of integers, whose counts are kept where they fit.
        """
        finite = [array[np.isfinite(array)] for array in arrays]
        low = min((float(part.min()) for part in finite if part.size), default=0.0)
        high = max((float(part.max()) for part in finite if part.size), default=0.0)
        if lattice is not None:
            scale, start = lattice
            first, last = sorted(((low - start) / scale, (high - start) / scale))
            if last - first <= _LEVELS - 2:
                return cls(float(start + scale * np.floor(first)), scale, True)
        return cls(low, (high - low) / _LEVELS if high > low else 1.0)

    def codes(self, values: NDArray[Any]) -> Codes:
        """`NODATA` for NaN."""
        finite = np.isfinite(values)
        levels = np.rint((np.where(finite, values, self.offset) - self.offset) / self.step)
        return np.where(finite, np.clip(levels, 0, _LEVELS), NODATA).astype(np.uint16)


def pack(codes: Codes) -> str:
    """Text for `unpack` of the pages."""
    change = np.diff(codes, axis=-1, prepend=np.zeros_like(codes[..., :1]))
    planes = np.stack([change >> 8, change & 255]).astype(np.uint8)
    return _deflated(planes.tobytes())


def pack_json(value: Any) -> str:
    """JSON for `unpackJson` of the pages."""
    return _deflated(_json(value).encode())


def script(name: str, payload: Any) -> bytes:
    """The script that hands `payload` to a page under `name`."""
    return f"srReceive({_json(name)},{_json(payload)});\n".encode()


def _json(value: Any) -> str:
    """Letters of ASCII only, so that no text ends a line or a script where it should not."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, sort_keys=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e")


def _deflated(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, _COMPRESSION)).decode("ascii")
