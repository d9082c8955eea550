"""Which scene bands go where in the network."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SceneError
from pipeline.spectral import BandWindow, band_windows, match_bands, stretches, window_starts
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
    assert "200.0 nm" in plan.note and "not trained" in plan.note
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


def test_without_wavelengths_gaps_are_runs_of_missing_bands() -> None:
    used = [*range(10), *range(15, 30)]
    assert [len(part) for part in stretches(used, None)] == [10, 15]
