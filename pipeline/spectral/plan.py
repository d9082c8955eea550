"""Match the bands of a scene to the bands of the model.

`match`: scene bands lie at the model's wavelengths; the network sees them as trained. If the scene
has more bands, and if asked for, those are used that are the model's; the others come out as fill
or, as asked, enlarged by plain bicubic interpolation.
`index`: equally many bands, and one side states no wavelengths; matched by position, and said so.
`resample`: the scene was resampled to the model's bands before (`pipeline.spectral.resampling`).
`windows`: other bands. The network runs on windows of as many neighbouring good bands as it has,
moved along the spectrum with overlap, and the overlaps are blended. Windows do not reach across
gaps in the spectrum (water vapour, detector changes); a stretch that is shorter than a window is
mirrored at its ends. The groups share their weights, so they know spectra of any position; the
trunk does not, so this is a default that is measured (docs/bands.md) and no claim that the model
was trained for the sensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from model import Card
from pipeline.errors import SceneError
from pipeline.settings import Bands, Outside
from pipeline.spectral.matching import (
    BandMap,
    default_tolerance,
    find_map,
    fwhm_note,
    in_order,
    why_not,
)
from pipeline.spectral.resampling import NOTE, SHIFT
from pipeline.spectral.windows import BandWindow, Wavelengths, band_windows

Kind = Literal["match", "index", "resample", "windows"]
Role = Literal["fill", "network", "upsampled"]


@dataclass(frozen=True)
class BandPlan:
    """How the bands of one scene go through the network.

    Attributes:
        kind: see the module.
        used: scene bands that the network super-resolves, ascending.
        windows: the passes. Unless kind is `windows` there is one, of all of the model's bands in
            its order, bad ones included (their input is interpolated from neighbours).
        note: one line for the operator; empty where there is nothing to say.
        upsampled: good scene bands that the model lacks and that are enlarged by bicubic
            interpolation, ascending. What is neither here nor in `used` comes out as fill.
        worst_nm: largest distance between a scene band and the band of the model that it stands
            for; None where no wavelengths were compared.
    """

    kind: Kind
    used: tuple[int, ...]
    windows: tuple[BandWindow, ...]
    note: str = ""
    upsampled: tuple[int, ...] = ()
    worst_nm: float | None = None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BandPlan:
        """The inverse of `dataclasses.asdict`, also after a way through JSON."""
        windows = tuple(
            BandWindow(tuple(window["bands"]), window["start"], window["stop"])
            for window in values["windows"]
        )
        return cls(
            values["kind"],
            tuple(values["used"]),
            windows,
            values["note"],
            tuple(values["upsampled"]),
            values["worst_nm"],
        )

    @property
    def valued(self) -> tuple[int, ...]:
        """Scene bands that hold values in the output, ascending."""
        return tuple(sorted({*self.used, *self.upsampled}))

    def roles(self, bands: int) -> list[Role]:
        """Where the values of each of so many scene bands come from in the output."""
        roles: list[Role] = ["fill"] * bands
        for band in self.upsampled:
            roles[band] = "upsampled"
        for band in self.used:
            roles[band] = "network"
        return roles

    def blend_weights(self, bands: int) -> NDArray[np.float32]:
        """Weight of each window for each scene band, `(windows, bands)`; sums to 1 where used."""
        weights = np.zeros((len(self.windows), bands), dtype=np.float64)
        for row, window in zip(weights, self.windows, strict=True):
            centre = (window.stop - window.start - 1) / 2
            row[list(window.kept)] = 1.0 + centre - np.abs(np.arange(len(window.kept)) - centre)
        total = weights.sum(axis=0)
        unused = np.ones(bands, dtype=bool)
        unused[list(self.used)] = False
        total[unused] = np.inf
        return np.asarray(weights / total, dtype=np.float32)


def plan_bands(
    scene: xr.Dataset,
    card: Card,
    good: Sequence[bool],
    policy: Bands = "auto",
    outside: Outside = "fill",
    tolerance: float | None = None,
) -> BandPlan:
    """`match_bands` for what a scene states of its bands.

    Args:
        scene: keeps the Scene contract; with the policy `resample`, of `resampling.resample`.
        card, good, policy, outside, tolerance: as for `match_bands`.

    Raises:
        SceneError: `too-few-bands` or `band-mismatch`.
    """
    wavelengths, fwhm = (
        scene[name].values if name in scene.coords else None for name in ("wavelength", "fwhm")
    )
    plan = match_bands(
        card, wavelengths, good, policy, fwhm=fwhm, outside=outside, tolerance=tolerance
    )
    if NOTE not in scene.attrs:
        return plan
    note = _joined(scene.attrs[NOTE], plan.note)
    return replace(plan, note=note, worst_nm=scene.attrs[SHIFT])


def match_bands(
    card: Card,
    wavelengths: Wavelengths | None,
    good: Sequence[bool],
    policy: Bands = "auto",
    *,
    fwhm: Wavelengths | None = None,
    outside: Outside = "fill",
    tolerance: float | None = None,
) -> BandPlan:
    """Decide how the scene's bands go through the model.

    Args:
        card: the model's card.
        wavelengths: nm, one per scene band, in any order; None where the scene states none.
        good: False for bands that must not be used.
        policy: `match` refuses what `auto` would send through windows, but takes the model's bands
            out of a scene that has more; `windows` forces them; `resample` says that the bands are
            the model's already.
        fwhm: nm, one per scene band, to be compared with the card's.
        outside: what becomes of good bands that a match leaves over.
        tolerance: nm by which a scene band may miss the model's;
            None: `matching.default_tolerance`.

    Raises:
        SceneError: `too-few-bands` or `band-mismatch`.
    """
    size, used = card.architecture.bands, _indices(good)
    if policy == "resample":
        return _resampled(used, size)
    reason = f"{len(good)} bands, the model has {size}"
    if policy == "match" or len(good) == size:
        found, reason = _find(card, wavelengths, good, tolerance)
        if policy == "windows":
            reason = reason or "windows asked for"
        elif found is not None:
            plan = _direct(card, found, good, fwhm, outside)
            if 2 * len(plan.used) >= size:
                return plan
            reason = f"only {len(plan.used)} of the model's {size} bands are usable"
    if len(used) < size:
        raise SceneError(
            "too-few-bands",
            f"{len(used)} usable bands, the model needs {size}; use a model for this sensor",
        )
    if policy == "match":
        raise SceneError(
            "band-mismatch",
            f"{reason}; use --bands resample or windows, another model, or a larger --tolerance",
        )
    windows = band_windows(used, wavelengths, size)
    note = (
        f"{reason}: run as {len(windows)} overlapping windows of {size} bands, which are not "
        "those that the model states"
    )
    return BandPlan("windows", used, windows, note)


def _find(
    card: Card, wavelengths: Wavelengths | None, good: Sequence[bool], tolerance: float | None
) -> tuple[BandMap | None, str]:
    """The scene's band for each of the model's; where there is none, why, in words."""
    size, ours = card.architecture.bands, card.wavelengths
    if wavelengths is None or ours is None:
        if len(good) == size:
            return BandMap(tuple(range(size)), None), ""
        side = "scene" if wavelengths is None else "model's card"
        return None, f"{len(good)} bands, the model has {size}, and the {side} has no wavelengths"
    if len(good) < size:
        return None, f"{len(good)} bands, the model has {size}"
    theirs = np.asarray(wavelengths, dtype=np.float64)
    allowed = default_tolerance(card) if tolerance is None else tolerance
    if len(good) == size and (same := in_order(ours, theirs, allowed)) is not None:
        return same, ""
    if (found := find_map(ours, theirs, good, allowed)) is not None:
        return found, ""
    if len(good) > size:
        return None, why_not(ours, theirs, allowed)
    worst = float(np.abs(theirs - np.asarray(ours)).max())
    return None, f"wavelengths differ from the model's by up to {worst:.1f} nm"


def _direct(
    card: Card, found: BandMap, good: Sequence[bool], fwhm: Wavelengths | None, outside: Outside
) -> BandPlan:
    used = tuple(sorted(band for band in found.bands if good[band]))
    left = tuple(band for band in _indices(good) if band not in set(found.bands))
    size = len(found.bands)
    notes = []
    if found.worst_nm is None:
        notes.append("no wavelengths to compare: bands matched to the model's by position")
    elif found.bands != tuple(range(len(good))):
        notes.append(
            f"{size} of {len(good)} bands are matched to the model's by wavelength, at most "
            f"{found.worst_nm:.1f} nm away"
        )
    if left:
        fate = "enlarged by bicubic interpolation" if outside == "upsample" else "fill"
        notes.append(f"{len(left)} good band(s) that the model lacks: {fate}")
    if bad := size - len(used):
        notes.append(f"{bad} bad band(s) interpolated for the network, fill in the output")
    if found.worst_nm is not None:
        widths = None if fwhm is None else np.asarray(fwhm, dtype=np.float64)
        notes.append(fwhm_note(card, widths, found.bands))
    return BandPlan(
        "index" if found.worst_nm is None else "match",
        used,
        (BandWindow(found.bands, 0, size),),
        _joined(*notes),
        left if outside == "upsample" else (),
        found.worst_nm,
    )


def _resampled(used: tuple[int, ...], size: int) -> BandPlan:
    """The plan of a scene whose bands are the model's because they were made so."""
    if 2 * len(used) < size:
        raise SceneError(
            "band-mismatch",
            f"the scene's usable bands cover {len(used)} of the model's {size}, and at least half "
            "must be; use --bands windows or another model",
        )
    lacking = size - len(used)
    note = f"{lacking} band(s) interpolated for the network, fill in the output" if lacking else ""
    return BandPlan("resample", used, (BandWindow(tuple(range(size)), 0, size),), note)


def _indices(good: Sequence[bool]) -> tuple[int, ...]:
    return tuple(int(band) for band in np.flatnonzero(np.asarray(good, dtype=bool)))


def _joined(*notes: str) -> str:
    return "; ".join(filter(None, notes))
