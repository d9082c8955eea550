"""One factor per band, found by stated rules."""

from __future__ import annotations

import numpy as np
import pytest

from model import load_checkpoint
from pipeline.errors import SceneError
from pipeline.normalisation import BAND_LEVEL, Levels, find_gains, measure_levels
from pipeline.settings import Normalise
from pipeline.spectral import match_bands
from tests.test_model import make_card, make_net

CARD = make_card(make_net())
SAME = match_bands(CARD, None, [True] * 9)
OTHER = match_bands(CARD, None, [True] * 12)
SCALED = {"dtype": "int16", "scale_factor": 1e-4}


def levels(high: float, bands: int = 9) -> Levels:
    return Levels(high, np.full(bands, high / 2, np.float32))


@pytest.mark.parametrize(
    ("encoding", "high", "normalise", "gain"),
    [
        (SCALED, 0.6, "auto", 1.0),
        ({"dtype": "float32"}, 0.9, "auto", 1.0),
        ({"dtype": "float32"}, 4000.0, "auto", 1 / 4000),
        ({"dtype": "uint16"}, 3000.0, "auto", 1 / 3000),
        ({"dtype": "uint16"}, 3000.0, "reflectance", 1.0),
        (SCALED, 0.5, "scene", 2.0),
        (SCALED, 0.5, "bands", BAND_LEVEL / 0.25),
    ],
)
def test_bands_of_the_model_have_one_factor(
    encoding: dict[str, object], high: float, normalise: Normalise, gain: float
) -> None:
    gains, rule = find_gains(encoding, CARD, levels(high), SAME, normalise)
    assert np.allclose(gains, gain) and gains.shape == (9,)
    assert rule


def test_full_scale_cubes_are_divided_by_the_cards_divisor() -> None:
    _, card = load_checkpoint("starter")
    counts = {"dtype": "uint16"}
    assert np.allclose(find_gains(counts, card, levels(60000.0), SAME, "auto")[0], 1 / 65535)
    assert np.allclose(find_gains(counts, card, levels(900.0), SAME, "auto")[0], 1 / 900)


def test_other_bands_have_their_own_factors() -> None:
    patch = np.ones((12, 10, 10), np.float32) * np.arange(1, 13, dtype=np.float32)[:, None, None]
    patch[3] *= 1e-6
    patch[5] = np.nan
    used = [band for band in range(12) if band != 5]
    measured = measure_levels([patch, patch * 1.5], used)
    assert np.isnan(measured.bands[5]) and measured.high == pytest.approx(18.0)
    gains, rule = find_gains(SCALED, CARD, measured, OTHER, "auto")
    assert "each band" in rule and np.isfinite(gains).all()
    assert gains[0] * 1.5 == pytest.approx(BAND_LEVEL)
    assert gains[3] * 1e-3 * 18.0 == pytest.approx(BAND_LEVEL)  # noise is not blown up further


def test_a_scene_without_light_is_refused() -> None:
    with pytest.raises(SceneError, match="no positive value"):
        find_gains({"dtype": "uint16"}, CARD, levels(0.0), SAME, "auto")
