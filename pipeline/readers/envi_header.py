"""The text of an ENVI header (NV5 ENVI header format) as typed facts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyproj

from pipeline.errors import SceneError
from pipeline.readers.georeference import GeoTransform, Grid

MAX_HEADER_BYTES = 4 * 2**20
_MAX_SIDE = 2**31
_TYPES = {
    1: "u1",
    2: "i2",
    3: "i4",
    4: "f4",
    5: "f8",
    12: "u2",
    13: "u4",
    14: "i8",
    15: "u8",
}


def bad(message: str) -> SceneError:
    return SceneError("bad-header", f"ENVI header: {message}")


def parse(data: bytes) -> dict[str, str]:
    """Field names in lower case with their values; braces removed from lists.

    Raises:
        SceneError: `bad-header` where the text is no ENVI header or a brace stays open.
    """
    if len(data) > MAX_HEADER_BYTES:
        raise bad(f"longer than {MAX_HEADER_BYTES // 2**20} MiB: not a header")
    lines = iter(data.decode("utf-8", errors="replace").lstrip("\ufeff").splitlines())
    if not next(lines, "").strip().upper().startswith("ENVI"):
        raise bad("the first line is not ENVI")
    fields: dict[str, str] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not equals or line.lstrip().startswith(";"):
            continue
        value = value.strip()
        if value.startswith("{"):
            pieces = [value]
            while "}" not in pieces[-1]:
                following = next(lines, None)
                if following is None:
                    raise bad(f"the list of {_quote(name)} is never closed: add its '}}'")
                pieces.append(following)
            value = "\n".join(pieces)
            value = value[1 : value.rindex("}")].strip()
        fields[" ".join(name.lower().split())] = value
    return fields


def _quote(text: str) -> str:
    return repr(" ".join(text.split())[:60])


def split_list(text: str | None) -> list[str] | None:
    """The items of a braced list; None where the field is absent or empty."""
    if text is None or not text.strip():
        return None
    return [item.strip() for item in text.replace("\n", " ").strip().rstrip(",").split(",")]


@dataclass(frozen=True)
class Layout:
    """Where the values are: (lines, samples, bands), interleave, type, and bytes to skip."""

    lines: int
    samples: int
    bands: int
    interleave: str
    dtype: np.dtype[np.generic]
    offset: int | None

    @property
    def data_bytes(self) -> int:
        return self.lines * self.samples * self.bands * self.dtype.itemsize

    @property
    def file_shape(self) -> tuple[int, int, int]:
        sizes = {"band": self.bands, "y": self.lines, "x": self.samples}
        first, second, third = (sizes[name] for name in self._order)
        return first, second, third

    @property
    def axes(self) -> tuple[int, int, int]:
        order = self._order
        return order.index("band"), order.index("y"), order.index("x")

    @property
    def _order(self) -> tuple[str, str, str]:
        return {
            "bsq": ("band", "y", "x"),
            "bil": ("y", "band", "x"),
            "bip": ("y", "x", "band"),
        }[self.interleave]


def layout(fields: dict[str, str], notes: list[str]) -> Layout:
    """The layout a header declares; what is missing but harmless is assumed and noted."""
    kind = fields.get("file type", "").lower()
    if "library" in kind or "meta" in kind or "mosaic" in kind:
        raise SceneError("unsupported", f"ENVI file type {_quote(kind)} is no image")
    compressed = fields.get("file compression", "0").strip() not in ("0", "")
    if compressed or any(_frame_offsets(fields)):
        raise SceneError("unsupported", "ENVI with compression or frame offsets: export it plain")
    lines, samples, bands = (_count(fields, name, 1) for name in ("lines", "samples", "bands"))
    code = _count(fields, "data type", 0)
    if code in (6, 9):
        raise SceneError("unsupported", "ENVI complex data: export the reflectance as real numbers")
    if code not in _TYPES:
        raise bad(f"data type {code} is unknown")
    interleave = fields.get("interleave", "").strip().lower()
    if not interleave and bands == 1:
        interleave = "bsq"
    if interleave not in ("bsq", "bil", "bip"):
        raise bad(f"interleave is {_quote(interleave)}: write bsq, bil or bip")
    dtype = np.dtype(_TYPES[code]).newbyteorder(_byte_order(fields, _TYPES[code], notes))
    offset = _count(fields, "header offset", 0) if "header offset" in fields else None
    return Layout(lines, samples, bands, interleave, dtype, offset)


def _frame_offsets(fields: dict[str, str]) -> list[bool]:
    names = ("major frame offsets", "minor frame offsets")
    items = [item for name in names for item in split_list(fields.get(name)) or []]
    return [item.strip("0 ") != "" for item in items]


def _byte_order(fields: dict[str, str], code: str, notes: list[str]) -> Literal["<", ">"]:
    value = fields.get("byte order", "").strip()
    if value in ("0", "1"):
        return "<" if value == "0" else ">"
    if value:
        raise bad(f"byte order is {_quote(value)}: write 0 or 1")
    if not code.endswith("1"):
        notes.append("header has no byte order: read as little-endian")
    return "<"


def _count(fields: dict[str, str], name: str, least: int) -> int:
    text = fields.get(name)
    if text is None:
        raise bad(f"{name!r} is missing")
    if not re.fullmatch(r"[-+]?\d{1,18}", text.strip()):
        raise bad(f"{name!r} is {_quote(text)}: write a whole number")
    number = int(text)
    if not least <= number < (_MAX_SIDE if least else 2**62):
        raise bad(f"{name!r} is {number}, out of range")
    return number


def grid(fields: dict[str, str], notes: list[str]) -> Grid | None:
    """Georeferencing from `map info` and `coordinate system string`, or None."""
    items = split_list(fields.get("map info"))
    if items is None:
        return None
    try:
        numbers = [float(item) for item in items[1:7]]
    except ValueError:
        numbers = []
    steps_ok = len(numbers) == 6 and all(map(math.isfinite, numbers)) and numbers[4] * numbers[5]
    if not steps_ok:
        notes.append("map info cannot be read and is ignored")
        return None
    options = dict(item.lower().split("=", 1) for item in items if "=" in item)
    return Grid(_transform(numbers, options, notes), _crs(items, fields, notes))


def _transform(
    numbers: list[float], options: dict[str, str], notes: list[str]
) -> GeoTransform | None:
    """Tie point (1-based pixel edge) and steps, turned counter-clockwise by `rotation`.

    GDAL's ENVI driver gives the same for a tie point at pixel 1, 1. Of another it forgets the
    turn; here the tie point keeps its place.
    """
    column, row, east, north, dx, dy = numbers
    try:
        degrees = float(options.get("rotation", "0"))
    except ValueError:
        notes.append("map info rotation cannot be read: georeferencing ignored")
        return None
    if abs(degrees) == 180:
        notes.append("map info rotation=180 is read as GDAL writes it: rows from south to north")
        degrees, dy = 0.0, -dy
    elif degrees and (column, row) != (1, 1):
        notes.append("map info turns about a pixel other than 1, 1, which GDAL places elsewhere")
    angle = -math.radians(degrees)
    sine, cosine = math.sin(angle), math.cos(angle)
    if abs(sine) < 1e-12:  # exact zeros keep the grid axis-aligned
        sine = 0.0
    if abs(cosine) < 1e-12:
        cosine = 0.0
    xx, xy, yx, yy = cosine * dx, -sine * dx, -sine * dy, -cosine * dy
    x0 = east - (column - 1) * xx - (row - 1) * xy
    y0 = north - (column - 1) * yx - (row - 1) * yy
    return x0, xx + 0.0, xy + 0.0, y0, yx + 0.0, yy + 0.0


def _crs(items: list[str], fields: dict[str, str], notes: list[str]) -> str | None:
    text = fields.get("coordinate system string", "").strip()
    try:
        if text:
            return str(pyproj.CRS.from_wkt(text).to_wkt())
        code = _epsg(items)
        return str(pyproj.CRS.from_epsg(code).to_wkt()) if code else None
    except pyproj.exceptions.CRSError:
        notes.append("coordinate system string cannot be read and is ignored")
        return None


def _epsg(items: list[str]) -> int | None:
    """UTM and latitude/longitude on WGS-84; other projections need the coordinate system string."""
    name, words = items[0].lower(), [item.lower() for item in items[7:]]
    if not any(re.fullmatch(r"wgs[- _]?(19)?84", word) for word in words):
        return None
    if name.startswith("geographic"):
        return 4326
    if name == "utm" and len(words) >= 2 and re.fullmatch(r"\d{1,2}", words[0]):
        zone = int(words[0])
        if 1 <= zone <= 60 and words[1] in ("north", "south"):
            return (32600 if words[1] == "north" else 32700) + zone
    return None
