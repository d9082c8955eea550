"""A scene in the model's bands: `--bands resample`.

Lazy: windows are combined as they are read. Only bands marked good take part. The weights and what
they assume are in `response`. Where a side states no FWHM, its band step is taken, as the
documentation of `resample2` in the R package `prospectr` has it.
"""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from model import Card
from pipeline.errors import SceneError, UsageError
from pipeline.settings import Bands as Policy
from pipeline.spectral.response import COVERED, Bands, Combination, combine, local_steps
from pipeline.values import Values

MISSING = 0.1  # of a band's weight that a pixel may lack; the rest is scaled up
NOTE = "resampling"  # attributes of a resampled scene: what was done, in words,
SHIFT = "resampling_shift_nm"  # and how far the centre of a band is at most off the model's

Floats = NDArray[np.float64]


def in_model_bands(scene: xr.Dataset, card: Card, policy: Policy) -> xr.Dataset:
    """The scene as the policy wants its bands: resampled, or as it is.

    Raises:
        SceneError, UsageError: as `resample`.
    """
    return resample(scene, card) if policy == "resample" else scene


def resample(scene: xr.Dataset, card: Card) -> xr.Dataset:
    """Resample a scene to the model's bands.

    Args:
        scene: keeps the Scene contract, with wavelengths.
        card: the model's, with wavelengths.

    Returns:
        A scene of the model's bands: `wavelength` are the model's; `fwhm` is what the combination
        of the scene's bands has (the model's, or more where the scene is coarser), absent where
        the scene states none; `good_band` is False where less than `COVERED` of the model band's
        response lies on good bands. The encoding is the source's: a weighted mean of stored values
        fits their type. A pixel that lacks more than `MISSING` of a band's weight is NaN there.

    Raises:
        SceneError: `band-mismatch`, no wavelengths; `too-few-bands`, none of use.
        UsageError: the card states no wavelengths, or none that give its bands a width.
    """
    if card.wavelengths is None:
        raise UsageError(
            "--bands resample: the model's card states no wavelengths; use --bands auto or windows"
        )
    if "wavelength" not in scene.coords:
        raise SceneError(
            "band-mismatch",
            "the scene states no wavelengths, so it cannot be resampled; use --bands auto",
        )
    centres = np.asarray(scene["wavelength"].values, dtype=np.float64)
    stated = np.asarray(scene["fwhm"].values, np.float64) if "fwhm" in scene.coords else None
    theirs, assumed = _bands(centres, stated)
    good = np.asarray(scene["good_band"].values, dtype=bool)
    good &= np.isfinite(centres) & (centres > 0) & np.isfinite(theirs.fwhm)
    if np.count_nonzero(good) < 2:
        raise SceneError(
            "too-few-bands",
            f"{np.count_nonzero(good)} of {len(good)} bands are good and have a wavelength and a "
            "width; resampling needs at least 2",
        )
    model = np.asarray(card.wavelengths, dtype=np.float64)
    ours, _ = _bands(model, None if card.fwhm is None else np.asarray(card.fwhm))
    if not np.isfinite([model, ours.fwhm]).all():
        raise UsageError(
            "--bands resample: the model's card gives no width to some of its bands; state its fwhm"
        )
    made = combine(Bands(theirs.centres[good], theirs.fwhm[good], theirs.steps[good]), ours)
    weights = np.zeros((len(model), len(good)))
    weights[:, good] = made.weights
    usable = made.covered >= COVERED
    weights[~usable] = 0
    fwhm = np.where(usable, made.fwhm, np.nan)
    result = _with_bands(scene, weights)
    result = result.assign_coords(
        wavelength=("band", model, {"units": "nm"}), good_band=("band", usable)
    )
    if stated is not None:
        result = result.assign_coords(fwhm=("band", fwhm, {"units": "nm"}))
    facts = _facts(scene, card, made, usable, assumed=assumed)
    return result.assign_attrs(facts)


def _bands(centres: Floats, stated: Floats | None) -> tuple[Bands, int]:
    """Bands with a width for each, and for how many the step had to be taken."""
    steps = local_steps(centres)
    if stated is None:
        return Bands(centres, steps, steps), len(centres)
    unknown = ~((stated > 0) & (stated < centres))  # wider than its own wavelength is no width
    return Bands(centres, np.where(unknown, steps, stated), steps), int(np.count_nonzero(unknown))


def _with_bands(scene: xr.Dataset, weights: Floats) -> xr.Dataset:
    """The scene with the combined bands in place of its own; nothing else along bands is kept."""
    source = scene["reflectance"]
    seen = np.flatnonzero((weights > 0).any(axis=0))
    part = slice(seen[0], seen[-1] + 1) if len(seen) else slice(0, 1)
    lazy = source.isel(band=part).data.rechunk({0: -1})
    combined = da.map_blocks(  # type: ignore[no-untyped-call]
        combine_values,
        lazy,
        weights[:, part],
        dtype=np.float32,
        chunks=((len(weights),), *lazy.chunks[1:]),
        meta=np.empty((0, 0, 0), np.float32),
    )
    rest = scene.drop_dims("band")
    variable = xr.Variable(source.dims, combined, source.attrs, dict(source.encoding))
    return rest.assign({"reflectance": variable})


def combine_values(values: Values, weights: Floats) -> Values:
    """Weighted means of `(from, rows, cols)` by `(to, from)`; NaN where too much is missing."""
    finite = np.isfinite(values)
    if finite.all():
        complete = np.tensordot(weights, values, 1)
        complete[~(weights > 0).any(axis=1)] = np.nan
        return complete.astype(np.float32)
    total = np.tensordot(weights, np.where(finite, values, np.float32(0)), 1)
    share = np.tensordot(weights, finite.astype(np.float64), 1)
    share[share < 1 - MISSING] = np.nan
    return np.asarray(total / share, dtype=np.float32)


def _facts(
    scene: xr.Dataset, card: Card, made: Combination, usable: NDArray[np.bool_], *, assumed: int
) -> dict[str, Any]:
    """Attributes that tell what was done."""
    bands, model = scene.sizes["band"], np.asarray(card.wavelengths)
    shift = np.abs(made.centres - model)[usable]
    worst = float(shift.max()) if len(shift) else 0.0
    notes = [
        f"{bands} bands resampled to the model's {len(model)} by Gaussian responses, centres at "
        f"most {worst:.1f} nm off"
    ]
    if coarse := np.count_nonzero(made.interpolated & usable):
        notes.append(
            f"{coarse} of them interpolated linearly, where the scene is too coarse for a mean"
        )
    if assumed:
        notes.append(f"{assumed} scene band(s) without FWHM: the band step is taken")
    if card.fwhm is None:
        notes.append("the model's card states no FWHM: its band step is taken")
    if lacking := np.count_nonzero(~usable):
        notes.append(f"{lacking} band(s) of the model lie on no good band of the scene")
    return {NOTE: "; ".join(notes), SHIFT: round(worst, 3)}
