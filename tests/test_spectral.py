"""Which scene bands go where in the network."""

from __future__ import annotations

import json
from dataclasses import asdict
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SceneError
from pipeline.spectral import (
    BandPlan,
    BandWindow,
    band_windows,
    match_bands,
)
from pipeline.spectral.matching import default_tolerance, find_map
from pipeline.spectral.windows import stretches, window_starts
from tests.test_model import make_card, make_net

CARD = make_card(make_net())  # nine bands, 500 to 580 nm
OURS = [500.0 + 10 * band for band in range(9)]


def test_same_wavelengths_match() -> None:
    plan = match_bands(CARD, [w + 3 for w in OURS], [True] * 9)
    assert (plan.kind, plan.windows, plan.note) == (
        "match",
        (BandWindow(tuple(range(9)), 0, 9),),
        "",
    )


def test_absent_wavelengths_match_by_position_and_say_so() -> None:
    plan = match_bands(CARD, None, [True] * 9)
    assert plan.kind == "index"
    assert "by position" in plan.note


def test_a_bad_band_of_a_match_is_left_out() -> None:
    good = [True] * 9
    good[4] = False
    plan = match_bands(CARD, OURS, good)
    assert plan.kind == "match"
    assert 4 not in plan.used and len(plan.windows[0].bands) == 9
    assert "1 bad band" in plan.note
    assert plan.blend_weights(9)[0, 4] == 0


def test_shifted_wavelengths_are_never_silent() -> None:
    shifted = [w + 200 for w in OURS]
    plan = match_bands(CARD, shifted, [True] * 9)
    assert plan.kind == "windows"
    assert "200.0 nm" in plan.note and "not those" in plan.note
    with pytest.raises(SceneError, match="band-mismatch"):
        match_bands(CARD, shifted, [True] * 9, "match")


def test_too_few_bands_name_the_numbers() -> None:
    with pytest.raises(SceneError, match="3 usable bands, the model needs 9"):
        match_bands(CARD, None, [True] * 3)
    with pytest.raises(SceneError, match="too-few-bands"):
        match_bands(CARD, OURS, [True] * 3 + [False] * 6)


@given(st.integers(9, 240), st.data())
def test_windows_cover_all_good_bands(bands: int, data: st.DataObject) -> None:
    good = np.ones(bands, dtype=bool)
    bad = data.draw(st.sets(st.integers(0, bands - 1), max_size=bands - 9))
    good[list(bad)] = False
    plan = match_bands(CARD, None, good.tolist(), "windows")
    assert all(len(window.bands) == 9 for window in plan.windows)
    kept = [band for window in plan.windows for band in window.kept]
    assert set(kept) == set(plan.used) == set(np.flatnonzero(good))
    weights = plan.blend_weights(bands)
    assert np.allclose(weights.sum(axis=0), good.astype(float), atol=1e-6)


@given(st.integers(2, 64), st.integers(0, 300), st.sampled_from([0.0, 0.25, 0.5]))
def test_window_starts_reach_both_ends(size: int, more: int, overlap: float) -> None:
    starts = window_starts(size + more, size, overlap)
    assert starts[0] == 0 and starts[-1] == more
    assert all(0 <= b - a <= size - int(size * overlap) for a, b in pairwise(starts))


def test_windows_stop_at_gaps_in_the_spectrum() -> None:
    wavelengths = [400.0 + 10 * band for band in range(20)] + [900.0, 910.0, 920.0, 905.0, 915.0]
    assert [len(part) for part in stretches(range(25), wavelengths)] == [20, 3, 2]
    windows = band_windows(range(25), wavelengths, 9)
    assert all(max(w.bands) < 20 or min(w.bands) >= 20 for w in windows)
    short = next(window for window in windows if 21 in window.kept)
    assert short.bands == (22, 21, 20, 20, 21, 22, 22, 21, 20)
    assert short.kept == (20, 21, 22)


def test_windows_of_descending_bands_are_those_of_ascending_ones() -> None:
    wavelengths = [400.0 + 10 * band for band in range(20)] + [900.0, 910.0, 920.0, 930.0]
    up = band_windows(range(24), wavelengths, 9)
    down = band_windows(range(24), wavelengths[::-1], 9)
    assert [tuple(23 - band for band in window.bands) for window in down] == [w.bands for w in up]
    assert [(w.start, w.stop) for w in down] == [(w.start, w.stop) for w in up]


def test_without_wavelengths_gaps_are_runs_of_missing_bands() -> None:
    used = [*range(10), *range(15, 30)]
    assert [len(part) for part in stretches(used, None)] == [10, 15]


WIDER = [460.0 + 5 * band for band in range(31)]  # every other one, from 500 on, is the model's


def test_more_bands_go_through_windows_unless_a_match_is_asked_for() -> None:
    assert match_bands(CARD, WIDER, [True] * 31).kind == "windows"
    plan = match_bands(CARD, WIDER, [True] * 31, "match")
    assert plan.kind == "match" and plan.worst_nm == 0.0
    assert plan.windows == (BandWindow(tuple(range(8, 26, 2)), 0, 9),)
    assert plan.used == tuple(range(8, 26, 2)) and plan.upsampled == ()
    assert (
        "9 of 31 bands" in plan.note and "22 good band(s) that the model lacks: fill" in plan.note
    )


def test_bands_outside_a_match_are_enlarged_on_demand() -> None:
    good = [True] * 31
    good[3] = False
    plan = match_bands(CARD, WIDER, good, "match", outside="upsample")
    assert plan.upsampled == tuple(set(range(31)) - set(range(8, 26, 2)) - {3})
    assert "21 good band(s) that the model lacks: enlarged by bicubic" in plan.note
    roles = plan.roles(31)
    assert roles[3] == "fill" and roles[8] == "network" and roles[9] == "upsampled"
    assert plan.valued == tuple(band for band in range(31) if band != 3)
    assert np.array_equal(plan.blend_weights(31).sum(axis=0), [role == "network" for role in roles])


def test_descending_bands_are_matched_in_the_model_s_order() -> None:
    plan = match_bands(CARD, [w + 2 for w in reversed(OURS)], [True] * 9)
    assert plan.kind == "match" and plan.worst_nm == 2.0
    assert plan.windows[0].bands == tuple(range(8, -1, -1))
    assert plan.used == tuple(range(9)) and "at most 2.0 nm" in plan.note


def test_detectors_that_overlap_are_matched_one_to_one() -> None:
    """Two bands at 540 nm, and one at 541: the exact ones are taken, each once."""
    theirs = [500.0, 510.0, 520.0, 530.0, 540.0, 541.0, 550.0, 540.0, 560.0, 570.0, 580.0]
    plan = match_bands(CARD, theirs, [True] * 11, "match")
    assert plan.windows[0].bands == (0, 1, 2, 3, 4, 6, 8, 9, 10) and plan.worst_nm == 0.0


def test_a_good_band_within_tolerance_is_preferred_to_a_nearer_bad_one() -> None:
    theirs = [*OURS, 543.0]
    good = [True] * 10
    good[4] = False
    plan = match_bands(CARD, theirs, good, "match")
    assert plan.windows[0].bands == (0, 1, 2, 3, 9, 5, 6, 7, 8) and plan.worst_nm == 3.0
    good[9] = False
    plan = match_bands(CARD, theirs, good, "match")
    assert plan.windows[0].bands == tuple(range(9)) and plan.used == (0, 1, 2, 3, 5, 6, 7, 8)
    assert "1 bad band(s) interpolated" in plan.note


def test_beyond_tolerance_the_error_names_the_band_and_what_to_do() -> None:
    theirs = [w for w in WIDER if w < 573]
    with pytest.raises(SceneError) as caught:
        match_bands(CARD, theirs, [True] * len(theirs), "match")
    assert caught.value.code == "band-mismatch"
    for words in ("band 9 (580.0 nm)", "within 5 nm", "nearest is 570.0 nm", "--bands resample"):
        assert words in caught.value.message
    assert match_bands(CARD, theirs, [True] * len(theirs), "match", tolerance=10.0).worst_nm == 10.0
    sparse = [*(460.0 + 5 * band for band in range(8)), *OURS[:5], 555.0, *OURS[7:]]
    with pytest.raises(SceneError, match="several of the model's bands have only one"):
        match_bands(CARD, sparse, [True] * len(sparse), "match")
    plan = match_bands(CARD, [*theirs, 575.0, 590.0], [True] * (len(theirs) + 2), "match")
    assert plan.worst_nm == 5.0


def test_bands_without_wavelength_are_never_matched() -> None:
    theirs = [*OURS, float("nan")]
    assert match_bands(CARD, theirs, [True] * 10, "match").used == tuple(range(9))
    with pytest.raises(SceneError, match="scene has no wavelengths"):
        match_bands(CARD, None, [True] * 10, "match")


def test_mostly_bad_bands_are_refused() -> None:
    good = [False] * 5 + [True] * 26
    good[8:18] = [False] * 10
    with pytest.raises(SceneError, match="only 4 of the model's 9 bands are usable"):
        match_bands(CARD, WIDER, good, "match", tolerance=1.0)


def test_tolerance_is_half_a_step_but_not_less_than_a_quarter_of_the_width() -> None:
    assert default_tolerance(CARD) == 5.0
    crossing = CARD.model_copy(
        update={"wavelengths": [*OURS[:8], 570.2], "fwhm": [12.0] * 9}
    )  # two detectors meet: a step of 0.2 nm
    assert default_tolerance(crossing) == 3.0


def test_other_widths_are_noted() -> None:
    card = CARD.model_copy(update={"fwhm": [10.0] * 9})
    assert match_bands(card, OURS, [True] * 9, fwhm=[12.0] * 9).note == ""
    note = match_bands(card, OURS, [True] * 9, fwhm=[12.0] * 7 + [20.0, 4.0]).note
    assert note == "the FWHM of 2 band(s) is not the model's: 0.40 to 2.00 times as wide"


def test_a_plan_survives_json() -> None:
    plan = match_bands(CARD, WIDER, [True] * 31, "match", outside="upsample")
    assert BandPlan.from_dict(json.loads(json.dumps(asdict(plan)))) == plan


@given(
    st.lists(st.floats(480, 560).map(lambda w: round(w, 2)), min_size=4, max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.floats(0.5, 30),
)
def test_the_map_is_the_best_of_all(theirs: list[float], good: list[bool], allowed: float) -> None:
    """Against every assignment: fewest bad bands, then least squared distance."""
    ours = [500.0, 510.0, 515.0, 540.0]
    good = good[: len(theirs)]
    found = find_map(ours, np.array(theirs), good, allowed)
    feasible = [
        (sum(not good[band] for band in bands), sum(d * d for d in distances))
        for bands in permutations(range(len(theirs)), 4)
        if max(distances := [abs(theirs[b] - w) for b, w in zip(bands, ours, strict=True)])
        <= allowed
    ]
    if found is None:
        assert not feasible
        return
    assert len(set(found.bands)) == 4
    distances = [abs(theirs[b] - w) for b, w in zip(found.bands, ours, strict=True)]
    assert found.worst_nm == max(distances) <= allowed
    bad, squares = min(feasible)
    assert sum(not good[band] for band in found.bands) == bad
    assert sum(d * d for d in distances) == pytest.approx(squares, rel=1e-6, abs=1e-6)
