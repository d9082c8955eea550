"""EnMAP L1C/L2A products (DLR EN-PCV-ICD-2009): METADATA.XML and the quality layers.

Only the few facts needed are picked out of the XML by pattern: it is untrusted and 4 MB long, so
no tree and no entities. The layout was checked on DLR's L2A sample product of 2020; the values of
the quality layers are those that ESA's SNAP reader of the same product states: CLASSES 1 land,
2 water, 3 background; CIRRUS 1 to 3 thin to thick; PIXELMASK bit 0 defective, per band; TESTFLAGS
bits 4 and 5 saturated SWIR and VNIR; 255 is no data.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.readers.geotiff import BandFacts
from pipeline.readers.product import Layer, Sensor
from pipeline.readers.scene import known_attrs

_BAND = re.compile(
    r'<bandID number="(\d+)">\s*<wavelengthCenterOfBand>([^<]+)</wavelengthCenterOfBand>'
    r"\s*<FWHMOfBand>([^<]+)</FWHMOfBand>\s*<GainOfBand>([^<]+)</GainOfBand>"
    r"\s*<OffsetOfBand>([^<]+)</OffsetOfBand>"
)
_START = re.compile(r"<startTime>([^<]+)</startTime>")
_BACKGROUND = re.compile(r"<backgroundValue>\s*(-?\d{1,6})\s*</backgroundValue>")
_NO_DATA = 255
_WATER = 2
_SATURATED = 0b110000

Raw = npt.NDArray[Any]
Flags = dict[str, npt.NDArray[np.bool_]]


def read_metadata(text: str) -> BandFacts | None:
    """Centres, widths (nm), gains, offsets, start time; None where the XML has no bands."""
    try:
        rows = [[float(part) for part in found] for found in _BAND.findall(text)]
    except ValueError:
        return None
    if not rows or not np.isfinite(rows).all():
        return None
    _, centres, widths, gains, offsets = (list(column) for column in zip(*rows, strict=True))
    start, background = _START.search(text), _BACKGROUND.search(text)
    facts = {"sensor": "EnMAP"} | ({"start_time": start.group(1)} if start else {})
    fill = float(background.group(1)) if background else None
    return BandFacts(centres, widths, gains, offsets, fill, known_attrs(facts))


def _seen(values: Raw) -> npt.NDArray[np.bool_]:
    return np.asarray((values[0] > 0) & (values[0] != _NO_DATA))


def cloud(values: Raw) -> Flags:
    return {"cloud": _seen(values)}


def cloud_shadow(values: Raw) -> Flags:
    return {"cloud_shadow": _seen(values)}


def haze(values: Raw) -> Flags:
    return {"haze": _seen(values)}


def cirrus(values: Raw) -> Flags:
    return {"cirrus": _seen(values)}


def snow(values: Raw) -> Flags:
    return {"snow": _seen(values)}


def classes(values: Raw) -> Flags:
    return {"water": np.asarray(values[0] == _WATER)}


def saturation(values: Raw) -> Flags:
    flagged = (values[0] & _SATURATED > 0) & (values[0] != _NO_DATA)
    return {"saturated": np.asarray(flagged)}


def defective(values: Raw) -> npt.NDArray[np.bool_]:
    """Where a value of the image is defective, per band."""
    return np.asarray((values & 1 == 1) & (values != _NO_DATA))


def pixel_mask(values: Raw) -> Flags:
    return {"defective_band": np.asarray(defective(values).any(axis=0))}


ENMAP = Sensor(
    "enmap",
    read_metadata,
    (
        Layer("QL_QUALITY_CLOUD", cloud),
        Layer("QL_QUALITY_CLOUDSHADOW", cloud_shadow),
        Layer("QL_QUALITY_HAZE", haze),
        Layer("QL_QUALITY_CIRRUS", cirrus),
        Layer("QL_QUALITY_SNOW", snow),
        Layer("QL_QUALITY_CLASSES", classes),
        Layer("QL_QUALITY_TESTFLAGS", saturation),
        Layer("QL_PIXELMASK", pixel_mask, bands=None, defects=defective),
    ),
)
