"""The METADATA.XML beside an EnMAP L1C/L2A spectral image (DLR EN-PCV-ICD-2009).

Only the few facts needed are picked out by pattern: the file is untrusted and 4 MB long, so no XML
tree and no entities.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pipeline.readers.boundary import is_file
from pipeline.readers.scene import known_attrs

_IMAGE = re.compile(r"(?i)-SPECTRAL_IMAGE\.TIFF?$")
_QUICKLOOK = re.compile(r"(?i)/?ENMAP[^/]*-QL_[^/]*\.TIFF?$")
_BAND = re.compile(
    r'<bandID number="(\d+)">\s*<wavelengthCenterOfBand>([^<]+)</wavelengthCenterOfBand>'
    r"\s*<FWHMOfBand>([^<]+)</FWHMOfBand>\s*<GainOfBand>([^<]+)</GainOfBand>"
    r"\s*<OffsetOfBand>([^<]+)</OffsetOfBand>"
)
_START = re.compile(r"<startTime>([^<]+)</startTime>")
_LARGEST = 16 * 2**20


@dataclass(frozen=True)
class EnmapFacts:
    """Per band: centre and width (nm), gain and offset to reflectance or radiance."""

    wavelength: list[float]
    fwhm: list[float]
    gain: list[float]
    offset: list[float]
    attrs: dict[str, str]


def sidecar(image: str) -> str | None:
    """Where the metadata of an EnMAP image is, by the product's naming rule."""
    return _IMAGE.sub("-METADATA.XML", image) if _IMAGE.search(image) else None


def is_quicklook(path: str) -> bool:
    """Whether a TIFF is one of a product's quicklooks and quality masks, no scene."""
    return _QUICKLOOK.search(path) is not None


def read_sidecar(filesystem: Any, image: str, bands: int) -> EnmapFacts | None:
    """The facts of an image with `bands` bands, or None where its metadata does not fit."""
    path = sidecar(image)
    if path is None or not is_file(filesystem, path):
        return None
    text = filesystem.cat_file(path, start=0, end=_LARGEST).decode("utf-8", errors="replace")
    try:
        rows = [[float(part) for part in found] for found in _BAND.findall(text)]
    except ValueError:
        return None
    if len(rows) != bands:
        return None
    _, centres, widths, gains, offsets = (list(column) for column in zip(*rows, strict=True))
    start = _START.search(text)
    facts = {"sensor": "EnMAP"} | ({"start_time": start.group(1)} if start else {})
    return EnmapFacts(centres, widths, gains, offsets, known_attrs(facts))
