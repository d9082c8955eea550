"""The demo's figures and picture, on results whose quality is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from infra.demo import _source
from infra.figures import Comparison, Figure, _pieces, choose_pixels, composite_bands, draw, figures
from infra.simulate import WAVELENGTHS, SceneSpec, simulate_truth
from model.degradation import downsample, upsample
from pipeline.errors import UsageError


@pytest.fixture(scope="module")
def perfect() -> Comparison:
    """A result that equals the truth, with a nodata corner and a bad band."""
    truth = simulate_truth(SceneSpec("scene", "town", 24, 20, "zarr", 2))
    low = downsample(torch.from_numpy(truth), 4).numpy()
    bicubic, high = upsample(torch.from_numpy(low), 4).numpy(), truth.copy()
    low[:, :3, :3] = np.nan
    bicubic[:, :12, :12] = high[:, :12, :12] = np.nan
    good = np.ones(len(WAVELENGTHS), dtype=bool)
    good[7] = False
    high[7] = np.nan
    return Comparison("scene", 4, low, bicubic, high, good, WAVELENGTHS, truth * 1.001, False)


def test_a_perfect_result_wins(perfect: Comparison) -> None:
    rows = figures(perfect)
    assert [row.name for row in rows] == ["PSNR, dB", "SAM, degrees", "consistency RMSE"]
    assert {row.better for row in rows} == {"super-resolved"}
    assert all(np.isfinite([row.high, row.bicubic]).all() for row in rows)


def test_a_worse_result_is_said_to_be_worse() -> None:
    assert Figure("PSNR, dB", 30.0, 31.0, higher_is_better=True).better == "bicubic"
    assert Figure("SAM, degrees", 3.0, 2.0).better == "bicubic"
    assert Figure("SAM, degrees", 2.0, 2.00001).better == "equal"


def test_nodata_and_its_surroundings_do_not_count(perfect: Comparison) -> None:
    assert not perfect.valid[:5, :5].any()
    assert perfect.valid[6:, 6:].all()
    assert all(perfect.valid[place] for place in choose_pixels(perfect))


def test_the_picture_is_drawn(perfect: Comparison, tmp_path: Path) -> None:
    draw([perfect], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_composites_say_what_they_show() -> None:
    good = np.ones(31, dtype=bool)
    assert composite_bands(WAVELENGTHS, good) == ([25, 15, 5], "RGB 650, 550, 450 nm")
    assert composite_bands(None, good)[1] == "false colour: bands 26, 16, 6"
    infrared = composite_bands(WAVELENGTHS + 1000.0, good)
    assert infrared[1].startswith("false colour")
    good[25] = False
    assert composite_bands(WAVELENGTHS, good)[0] == [24, 15, 5]


def test_lines_break_at_gaps_and_second_detectors() -> None:
    along = np.array([400.0, 410.0, 420.0, 415.0, 425.0, 500.0, 510.0])
    assert _pieces(along) == [slice(0, 3), slice(3, 5), slice(5, 7)]


def test_a_bad_source_is_one_line(tmp_path: Path) -> None:
    assert _source(None) is None
    assert _source(str(tmp_path)) == tmp_path
    with pytest.raises(UsageError, match="does not exist"):
        _source(str(tmp_path / "absent"))
    with pytest.raises(UsageError, match="sr-archive run"):
        _source("s3://bucket/scenes")
