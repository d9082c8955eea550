"""Scenes in the model's bands: against spectra whose band values are known, and a real scene."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from model import Card, load_checkpoint
from pipeline import SceneError, UsageError, open_scene
from pipeline.spectral import plan_bands
from pipeline.spectral.resampling import NOTE, SHIFT, combine_values, in_model_bands, resample
from pipeline.spectral.response import SIGMA, Bands, combine, local_steps
from tests.scenes import real
from tests.test_model import make_card, make_net

CARD = make_card(make_net())  # nine bands, 500 to 580 nm
FINE = np.arange(480.0, 601.0, 5.0)


def evenly(centres: np.ndarray, fwhm: float) -> Bands:
    return Bands(centres, np.full(len(centres), fwhm), local_steps(centres))


def wave(centres: np.ndarray, fwhm: float, period: float) -> np.ndarray:
    """What Gaussian bands measure of 1 + sin: the integral is known in closed form."""
    k = 2 * np.pi / period
    return 1 + np.exp(-((k * fwhm * SIGMA) ** 2) / 2) * np.sin(k * centres)


def make_scene(
    values: np.ndarray,
    wavelengths: np.ndarray | None = FINE,
    fwhm: float | None = 6.5,
    bad: tuple[int, ...] = (),
) -> xr.Dataset:
    """A scene of int16 counts as the readers give it, from `(bands, rows, cols)` values."""
    good = np.ones(len(values), dtype=bool)
    good[list(bad)] = False
    coords: dict[str, object] = {"good_band": ("band", good)}
    if wavelengths is not None:
        coords["wavelength"] = ("band", wavelengths)
    if fwhm is not None and wavelengths is not None:
        coords["fwhm"] = ("band", np.full(len(values), fwhm))
    scene = xr.Dataset(
        {"reflectance": (("band", "y", "x"), values.astype(np.float32))},
        coords=coords,
        attrs={"scene_id": "made"},
    ).chunk({"band": -1, "y": 4, "x": 4})
    scene["reflectance"].encoding = {"dtype": "int16", "scale_factor": 1e-4, "_FillValue": -32768}
    return scene


def cube(spectrum: np.ndarray, rows: int = 6, columns: int = 5) -> np.ndarray:
    return np.broadcast_to(spectrum[:, None, None], (len(spectrum), rows, columns)).copy()


@pytest.mark.parametrize("period", [30, 50, 100])
def test_wider_bands_get_their_own_width(period: float) -> None:
    """Within 3e-4 of the true band value, where interpolation is off by 50 times more."""
    theirs, ours = evenly(np.arange(380.0, 721.0, 5.0), 6.5), evenly(np.arange(400.0, 701, 10), 10)
    made = combine(theirs, ours)
    seen, truth = wave(theirs.centres, 6.5, period), wave(ours.centres, 10.0, period)
    error = np.abs(made.weights @ seen - truth).max()
    interpolated = np.abs(np.interp(ours.centres, theirs.centres, seen) - truth).max()
    assert error < 5e-4 and error < interpolated / 50
    assert np.allclose(made.fwhm, 10.0, atol=0.1) and not made.interpolated.any()
    assert np.allclose(made.covered, 1.0)


def test_a_coarser_scene_is_interpolated_and_says_so() -> None:
    theirs = evenly(np.arange(470.0, 620.0, 20.0), 20.0)
    ours = evenly(np.array(CARD.wavelengths), 10.0)
    made = combine(theirs, ours)
    seen = wave(theirs.centres, 20.0, 200)
    expected = np.interp(ours.centres, theirs.centres, seen)
    assert made.interpolated.all() and (made.fwhm >= 20.0 - 1e-9).all()
    assert np.allclose(made.weights @ seen, expected, atol=1e-4)


@given(
    st.lists(st.floats(2.0, 25.0), min_size=3, max_size=30),
    st.floats(1.0, 30.0),
    st.floats(1.0, 30.0),
    st.floats(0.2, 0.8),
)
def test_linear_spectra_are_exact_whatever_the_spacing(
    steps: list[float], theirs: float, ours: float, place: float
) -> None:
    centres = 400.0 + np.cumsum(steps)
    middle = centres[0] + place * (centres[-1] - centres[0])
    made = combine(evenly(centres, theirs), Bands(np.array([middle]), *np.full((2, 1), ours)))
    assert (made.weights >= 0).all() and made.weights.sum() == pytest.approx(1)
    inside = min(middle - centres[0], centres[-1] - middle) > 4 * ours * SIGMA
    if inside:
        assert made.centres[0] == pytest.approx(middle, abs=0.05)


def test_order_and_duplicates_do_not_matter() -> None:
    ours = evenly(np.array(CARD.wavelengths), 10.0)
    plain = combine(evenly(FINE, 6.5), ours)
    turned = combine(evenly(FINE[::-1].copy(), 6.5), ours)
    assert np.allclose(turned.weights[:, ::-1], plain.weights)
    twice = np.repeat(FINE, 2)
    doubled = combine(evenly(twice, 6.5), ours)
    assert np.allclose(doubled.weights.reshape(9, -1, 2).sum(axis=2), plain.weights, atol=1e-9)
    assert np.allclose(doubled.covered, plain.covered)


def test_steps_follow_the_detector_and_ignore_gaps() -> None:
    meeting = np.array([900.0, 908.0, 916.0, 905.0, 915.0, 925.0, 1100.0, 1110.0, 1110.0])
    expected = [8.0, 8.0, 8.0, 10.0, 10.0, 10.0, 10.0, 10.0, np.nan]
    assert np.array_equal(local_steps(meeting), expected, equal_nan=True)


def test_the_scene_keeps_its_contract() -> None:
    scene = make_scene(cube(wave(FINE, 6.5, 60)), bad=(12,))
    result = resample(scene, CARD)
    assert result["reflectance"].dims == ("band", "y", "x") and result.sizes["band"] == 9
    assert result["reflectance"].dtype == np.float32
    assert result["reflectance"].encoding == scene["reflectance"].encoding
    assert result["wavelength"].values.tolist() == CARD.wavelengths
    assert result.attrs["scene_id"] == "made" and "25 bands resampled" in result.attrs[NOTE]
    assert result["good_band"].values.all()  # one bad band of 5 nm leaves enough of each response
    assert result["reflectance"].chunks is not None
    values = result["reflectance"].values
    assert np.abs(values[:, 0, 0] - wave(np.array(CARD.wavelengths), 10, 60)).max() < 0.02
    window = result["reflectance"].isel(y=slice(1, 6), x=slice(2, 4)).values
    assert np.array_equal(window, values[:, 1:6, 2:4])


def test_what_no_good_band_covers_is_no_good_band() -> None:
    scene = make_scene(cube(wave(FINE, 6.5, 60)), bad=(11, 12, 13))  # 535 to 545 nm
    result = resample(scene, CARD)
    assert np.flatnonzero(~result["good_band"].values).tolist() == [4]
    assert np.isnan(result["reflectance"].values[4]).all() and np.isnan(result["fwhm"].values[4])
    assert "1 band(s) of the model lie on no good band" in result.attrs[NOTE]
    plan = plan_bands(result, CARD, result["good_band"].values.tolist(), "resample")
    assert plan.kind == "resample" and plan.used == (0, 1, 2, 3, 5, 6, 7, 8)
    assert plan.worst_nm == result.attrs[SHIFT] and "fill in the output" in plan.note
    short = make_scene(cube(wave(FINE[:10], 6.5, 60)), FINE[:10])  # ends at 525 nm
    short = resample(short, CARD)
    with pytest.raises(SceneError, match="cover 3 of the model's 9"):
        plan_bands(short, CARD, short["good_band"].values.tolist(), "resample")


def test_narrow_bands_far_apart_cover_what_lies_between_them() -> None:
    """Bands of 2 nm every 10 nm: the spectrum is taken to be linear between them, up to a gap."""
    centres = np.array([*np.arange(480.0, 531.0, 10), *np.arange(560.0, 601.0, 10)])
    covered = combine(evenly(centres, 2.0), evenly(np.array(CARD.wavelengths), 10.0)).covered
    assert np.allclose(covered[[0, 1, 2, 7, 8]], 1.0, atol=0.01)
    assert covered[4] < 0.25 and covered[5] < 0.25  # 540 and 550 nm


def test_a_gap_of_one_pixel_is_bridged_only_where_little_is_missing() -> None:
    weights = np.array([[0.5, 0.45, 0.05], [0.1, 0.4, 0.5], [0.0, 0.0, 0.0]])
    values = np.array([[[2.0, 2.0]], [[4.0, 4.0]], [[np.nan, np.inf]]], np.float32)
    made = combine_values(values, weights)
    assert made[0].tolist() == [[pytest.approx((1.0 + 1.8) / 0.95)] * 2]
    assert np.isnan(made[1:]).all()
    complete = combine_values(np.nan_to_num(values, nan=6.0, posinf=6.0), weights)
    assert complete[:2, 0, 0].tolist() == [pytest.approx(3.1), pytest.approx(4.8)]
    assert np.isnan(complete[2]).all()


def test_unknown_widths_are_the_step_and_stay_unknown() -> None:
    scene = make_scene(cube(wave(FINE, 5.0, 60)), fwhm=None)
    result = resample(scene, CARD)
    assert "fwhm" not in result.coords and "25 scene band(s) without FWHM" in result.attrs[NOTE]
    stated = resample(make_scene(cube(wave(FINE, 5.0, 60)), fwhm=5.0), CARD)
    assert np.array_equal(result["reflectance"].values, stated["reflectance"].values)
    nonsense = resample(make_scene(cube(wave(FINE, 5.0, 60)), fwhm=1e30), CARD)
    assert np.array_equal(nonsense["reflectance"].values, stated["reflectance"].values)


def test_nothing_to_resample_by_is_said() -> None:
    values = cube(wave(FINE, 6.5, 60))
    with pytest.raises(SceneError, match="no wavelengths"):
        resample(make_scene(values, None), CARD)
    with pytest.raises(UsageError, match="card states no wavelengths"):
        resample(make_scene(values), CARD.model_copy(update={"wavelengths": None}))
    with pytest.raises(UsageError, match="no width"):
        resample(make_scene(values), CARD.model_copy(update={"wavelengths": [500.0] * 9}))
    with pytest.raises(SceneError, match="too-few-bands"):
        resample(make_scene(values, np.full(25, np.nan)), CARD)
    scene = make_scene(values)
    assert in_model_bands(scene, CARD, "auto") is scene


def integrated(
    spectrum: np.ndarray, centres: np.ndarray, fwhm: np.ndarray, card: Card
) -> np.ndarray:
    """The resampled bands by brute force: a fine grid, sums, no closed form."""
    assert card.wavelengths is not None
    grid = np.arange(centres[0], centres[-1], 0.02)
    there = np.interp(grid, centres, spectrum)
    result = []
    for wanted in card.wavelengths[4:]:  # away from the end, beyond which nothing is known
        right = int(np.searchsorted(centres, wanted))
        step = centres[right] - centres[right - 1]
        width = np.interp(wanted, centres, fwhm)
        variance = max((10.0**2 - width**2) * SIGMA**2 - step**2 / 6, 1e-2)
        weight = np.exp(-((grid - wanted) ** 2) / (2 * variance))
        result.append((weight * there).sum() / weight.sum())
    return np.array(result)


def test_a_real_scene_equals_direct_integration() -> None:
    """EnMAP to the shipped model's 31 bands; what lies below 415 nm EnMAP does not see."""
    scene = open_scene(real("enmap_potsdam/enmap_potsdam_A_64x96.tif"))
    _, card = load_checkpoint("starter")
    result = resample(scene, card)
    usable = result["good_band"].values
    assert np.flatnonzero(~usable).tolist() == [0, 1] and result.attrs[SHIFT] < 0.5
    assert np.all((result["fwhm"].values[usable] > 8.5) & (result["fwhm"].values[usable] < 11.5))
    visible = slice(0, 60)  # one detector, ascending
    values = scene["reflectance"].isel(band=visible).values[:, 20:24, 30:34].astype(np.float64)
    centres, fwhm = scene["wavelength"].values[visible], scene["fwhm"].values[visible]
    made = result["reflectance"].values[:, 20:24, 30:34]
    for row, column in np.ndindex(4, 4):
        direct = integrated(values[:, row, column], centres, fwhm, card)
        assert np.allclose(made[4:, row, column], direct, rtol=1e-3)
    between = np.interp(card.wavelengths, centres, values.mean(axis=(1, 2)))[usable]
    assert np.allclose(made[usable].mean(axis=(1, 2)), between, rtol=0.04)
