"""DESIS L1C/L2A products (DLR PAV-DLR-ICD-003): METADATA.xml and the quality layers.

From documents only, no real product was at hand: the elements of `bandCharacterisation` and the
order of the bands of QL_QUALITY-2 (1 shadow, 2 land, 3 snow, 4 and 5 haze over land and water,
6 and 7 cloud over land and water, 8 water) as public readers of the product state them. The bits of
the per-band QL_QUALITY could not be verified and are not used.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.readers.geotiff import BandFacts
from pipeline.readers.product import Layer, Sensor
from pipeline.readers.scene import known_attrs

# `band` elements also stand under `interiorOrientation`; only these are the spectral ones.
_TABLE = re.compile(r"(?s)<bandCharacterisation>(.*?)</bandCharacterisation>")
_BAND = re.compile(r"(?s)<band>(.*?)</band>")
_FIELDS = ("wavelengthCenterOfBand", "wavelengthWidthOfBand", "gainOfBand", "offsetOfBand")
_START = re.compile(r"<startTime>([^<]+)</startTime>")
_FILL = -32768.0
_FLAG_BANDS = 8


def read_metadata(text: str) -> BandFacts | None:
    """Centres, widths (nm), gains, offsets, start time; None where the XML has no bands."""
    table = _TABLE.search(text)
    rows = [_row(found) for found in _BAND.findall(table.group(1))] if table else []
    known = [row for row in rows if row is not None]
    if not known or len(known) != len(rows):
        return None
    centres, widths, gains, offsets = (list(column) for column in zip(*known, strict=True))
    start = _START.search(text)
    facts = {"sensor": "DESIS"} | ({"start_time": start.group(1)} if start else {})
    return BandFacts(centres, widths, gains, offsets, _FILL, known_attrs(facts))


def _row(band: str) -> list[float] | None:
    found = [re.search(f"<{name}>([^<]+)</{name}>", band) for name in _FIELDS]
    try:
        numbers = [float(match.group(1)) for match in found if match is not None]
    except ValueError:
        return None
    return numbers if len(numbers) == len(_FIELDS) and np.isfinite(numbers).all() else None


def quality(values: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.bool_]]:
    """The flags of the first eight bands of QL_QUALITY-2."""
    shadow, _, snow, haze_land, haze_water, cloud_land, cloud_water, water = values > 0
    return {
        "cloud_shadow": shadow,
        "snow": snow,
        "haze": haze_land | haze_water,
        "cloud": cloud_land | cloud_water,
        "water": water,
    }


DESIS = Sensor("desis", read_metadata, (Layer("QL_QUALITY-2", quality, bands=_FLAG_BANDS),))
