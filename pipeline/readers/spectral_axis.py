"""Wavelengths, widths and good-band flags as files state them, made nanometres and checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.readers.packing import FloatArray

_TO_NM = {
    "nm": 1.0,
    "nanometer": 1.0,
    "nanometre": 1.0,
    "um": 1e3,
    "µm": 1e3,
    "μm": 1e3,
    "micron": 1e3,
    "micrometer": 1e3,
    "micrometre": 1e3,
    "angstrom": 0.1,
    "mm": 1e6,
    "m": 1e9,
}
_UNKNOWN = ("", "unknown", "none", "undefined")


def to_nanometres(
    wavelength: Iterable[Any] | None,
    fwhm: Iterable[Any] | None,
    units: str | None,
    bands: int,
    notes: list[str],
) -> tuple[FloatArray | None, FloatArray | None]:
    """Wavelengths and widths in nm, shape (bands,), or None with a note where unusable."""
    centres = _numbers(wavelength, bands, "wavelength", notes)
    widths = _numbers(fwhm, bands, "fwhm", notes)
    if centres is None:
        if widths is not None:
            notes.append("fwhm ignored without wavelengths")
        return None, None
    factor = _factor(centres, units, notes)
    if factor is None:
        return None, None
    return centres * factor, None if widths is None else widths * factor


def good_bands(
    flags: Iterable[Any] | None, bands: int, notes: list[str]
) -> npt.NDArray[np.bool_] | None:
    """The bad band list as booleans (True: good), or None where the file has no usable one."""
    numbers = _numbers(flags, bands, "bbl", notes)
    return None if numbers is None else ~(numbers == 0)


def _numbers(
    values: Iterable[Any] | None, bands: int, name: str, notes: list[str]
) -> FloatArray | None:
    if values is None:
        return None
    numbers = np.array([to_number(value) for value in values], np.float64).reshape(-1)
    if numbers.size == 0 or np.isnan(numbers).all():
        return None
    if numbers.size != bands:
        notes.append(f"{name} has {numbers.size} entries for {bands} bands and is ignored")
        return None
    if name != "bbl" and not (numbers[~np.isnan(numbers)] >= 0).all():
        notes.append(f"{name} has negative entries and is ignored")
        return None
    if name == "wavelength" and not (numbers[~np.isnan(numbers)] > 0).any():
        return None
    if name == "wavelength" and np.isnan(numbers).any():
        notes.append(f"{int(np.isnan(numbers).sum())} bands have no wavelength")
    return numbers


def _factor(centres: FloatArray, units: str | None, notes: list[str]) -> float | None:
    known = centres[np.isfinite(centres)]
    in_microns = bool((known < 30).all() and (known > 0.1).all())
    indices = bool((known == np.round(known)).all())
    word = (units or "").strip().lower()
    factor = _TO_NM.get(word) or _TO_NM.get(word.removesuffix("s"))
    if factor == 1 and in_microns and not indices:
        notes.append(f"wavelengths of {known[0]:g} cannot be {word}: read as micrometres")
        return 1e3
    if factor == 1e3 and (known >= 100).all():
        notes.append(f"wavelengths of {known[0]:g} cannot be {word}: read as nanometres")
        return 1.0
    if factor is not None:
        return factor
    if word in _UNKNOWN and (known >= 100).all():
        return 1.0
    if word in _UNKNOWN and in_microns and not indices:
        notes.append("wavelengths have no unit: read as micrometres")
        return 1e3
    notes.append(f"wavelengths ignored: unit {units!r} with values from {known[0]:g}")
    return None


def to_number(value: Any) -> float:
    """The number at the start of a text such as '418.24' or '418.24 nm'; NaN if there is none."""
    found = re.match(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)", str(value))
    return float(found.group(1)) if found else float("nan")


def companion(
    shapes: dict[str, tuple[int, ...]],
) -> str | None:
    """The name among `shapes` (name -> shape) of a list of wavelengths, if there is one."""
    for name, shape in shapes.items():
        vector = len(shape) > 0 and sum(size > 1 for size in shape) == 1
        if vector and re.fullmatch(r"(wave(length)?s?|wl|lambda)(_?(nm|um))?", name.lower()):
            return name
    return None


def units_of(name: str) -> str | None:
    """The unit in a name such as `wavelength_nm`."""
    found = re.search(r"_?(nm|um)$", name.lower())
    return found.group(1) if found else None


def choose_band_axis(
    shape: Sequence[int], wavelengths: int | None, asked: int | None, notes: list[str]
) -> int:
    """Which axis of an array without dimension names holds the bands.

    In this order: the axis that was asked for; the one axis as long as the list of wavelengths;
    the last one, as MATLAB users and most benchmarks write (rows, cols, bands).
    """
    if asked is not None:
        return asked % 3
    matching = [axis for axis, size in enumerate(shape) if size == wavelengths]
    if len(matching) == 1:
        return matching[0]
    notes.append(f"axes of {'x'.join(map(str, shape))} unnamed: read as (rows, cols, bands)")
    return 2
