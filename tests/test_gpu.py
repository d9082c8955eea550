"""The network's part on a CUDA device; needs none of the archive job's packages."""

from __future__ import annotations

import copy
import logging
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from model import SSPSR, attention, inference
from model.degradation import downsample, upsample
from model.extent import Extent
from model.recording import Pool, Recorder
from model.trainer import Trainer, TrainingOptions
from model.training import FitOptions, Progress, evaluate, fit, new_network
from tests.test_model import make_net

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CUDA = torch.device("cuda")


def pair(net: SSPSR, count: int = 2, side: int = 8) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    high = torch.rand(count, net.config.bands, *(net.config.scale * side,) * 2)
    return downsample(high, net.config.scale), high


@pytest.mark.parametrize("scale", [2, 4, 8])
@torch.inference_mode()
def test_engine_equals_the_published_form_on_the_cpu(scale: int) -> None:
    net = make_net(scale=scale, bands=31, features=64, group_size=8, group_overlap=2)
    low, _ = pair(net, 1, 20)
    published = net(low, upsample(low, scale))
    statistics = attention.calibrate(net, low)
    there = copy.deepcopy(net).to(CUDA)
    for frozen in (None, statistics):
        ours = inference.compile(there, frozen, "fp32")(low.to(CUDA)).cpu()
        assert float((ours - published).abs().max()) < 2e-5
        coarse = inference.compile(there, frozen, "bf16")(low.to(CUDA)).cpu()
        assert 0 < float((coarse - published).abs().max()) < 0.02


@torch.inference_mode()
def test_statistics_are_those_of_the_cpu() -> None:
    net = make_net(bands=31, features=64, group_size=8, group_overlap=2)
    low, _ = pair(net, 2, 16)
    here, there = attention.calibrate(net, low), attention.calibrate(net.to(CUDA), low.to(CUDA))
    assert torch.allclose(here.branches, there.branches.cpu(), rtol=0, atol=1e-5)
    assert torch.allclose(here.trunk, there.trunk.cpu(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"angle": 0.1, "shift_groups": True}])
@pytest.mark.parametrize("masked", [False, True])
def test_recorded_steps_are_those_of_the_cpu(options: dict[str, object], masked: bool) -> None:
    net = new_network(make_net(bands=31).config, 0)
    low, high = pair(net)
    valid = torch.rand(2, 1, 32, 32) < 0.8 if masked else None
    chosen = TrainingOptions(precision="fp32", **options)  # type: ignore[arg-type]
    here, there = Trainer(copy.deepcopy(net), chosen), Trainer(net, chosen, CUDA)
    for step in range(8):
        ours, theirs = (t.step(low, high, valid, step / 8) for t in (there, here))
        assert ours == pytest.approx(theirs, rel=1e-3), step
    for ours, theirs in zip(there.average.parameters(), here.average.parameters(), strict=True):
        assert torch.allclose(ours.cpu(), theirs, rtol=0, atol=2e-4)


def test_recorded_step_that_is_not_finite_changes_nothing() -> None:
    trainer = Trainer(make_net(), TrainingOptions(), CUDA)
    low, high = pair(trainer.net)
    for _ in range(6):
        assert math.isfinite(trainer.step(low, high, None, 0.5))
    before = trainer.state_dict()
    broken = high.clone()
    broken[0, 0, 0, 0] = math.nan
    assert math.isnan(trainer.step(low, broken, None, 0.5))
    assert (trainer.steps, trainer.skipped) == (7, 1)
    after = trainer.state_dict()
    assert all(torch.equal(a, before[n]) for n, a in after.items() if "." in n)
    assert math.isfinite(trainer.step(low, high, None, 0.5))


def test_a_state_goes_on_in_a_recorded_training() -> None:
    low, high = pair(make_net())
    first = Trainer(make_net(), TrainingOptions(precision="fp32"), CUDA)
    for _ in range(6):
        first.step(low, high, None, 0.2)
    second = Trainer(make_net(), TrainingOptions(precision="fp32"), CUDA)
    for _ in range(6):
        second.step(high[..., ::4, ::4], high, None, 0.9)
    second.load_state_dict(first.state_dict())
    for _ in range(3):
        losses = [t.step(low, high, None, 0.5) for t in (first, second)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_other_shapes_between_recorded_ones() -> None:
    trainer = Trainer(make_net(), TrainingOptions(), CUDA)
    for count in (2, 2, 2, 2, 2, 3, 2, 1, 3, 3, 3, 2, 1, 1, 1, 1):
        assert math.isfinite(trainer.step(*pair(trainer.net, count), None, 0.5))


def test_work_that_waits_is_not_recorded_and_still_done(caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder(CUDA)
    with caplog.at_level(logging.WARNING, "model.recording"):
        found = [
            float(
                recorder(lambda x: x * float(x.sum()), torch.full((2,), float(k), device=CUDA))[0]
            )
            for k in range(6)
        ]
    assert found == [2.0 * k * k for k in range(6)]
    assert len([r for r in caplog.records if "no CUDA graph" in r.message]) == 1


def test_a_recording_that_gives_another_result_is_not_used(
    caplog: pytest.LogCaptureFixture,
) -> None:
    recorder, runs = Recorder(CUDA, Pool()), iter(range(100))
    x = torch.ones(2, device=CUDA)
    with caplog.at_level(logging.WARNING, "model.recording"):
        found = [float(recorder(lambda x: x + next(runs), x)[0]) for _ in range(6)]
    assert found == sorted(found) and len(set(found)) == 6
    assert "another result" in caplog.text


@torch.inference_mode()
def test_recorded_tiles_are_those_of_the_whole_scene() -> None:
    """Two engines, as two windows of bands have, take turns over tiles of all kinds."""
    net = make_net(bands=31, features=64, group_size=8, group_overlap=2)
    low, _ = pair(net, 1, 64)
    there, low = copy.deepcopy(net).to(CUDA), low.to(CUDA)
    other = low.flip(2).contiguous()
    for precision, bound in (("fp32", 2e-6), ("bf16", 2e-2)):
        engines = [
            inference.compile(there, attention.calibrate(there, x), precision)  # type: ignore[arg-type]
            for x in (low, other)
        ]
        wholes = [engine(x) for engine, x in zip(engines, (low, other), strict=True)]
        edges = (0, 20, 40, 64)
        for _ in range(6):
            for rows in pairwise(edges):
                for columns in pairwise(edges):
                    extents = [Extent(a, b, a == 0, b == 64) for a, b in (rows, columns)]
                    for engine, x, whole in zip(engines, (low, other), wholes, strict=True):
                        tile = engine.tile(x, *extents)
                        part = whole[
                            :, :, 4 * rows[0] : 4 * rows[1], 4 * columns[0] : 4 * columns[1]
                        ]
                        assert float((tile - part).abs().max()) <= bound
        assert all(len(engine._recorder._recordings) == 9 for engine in engines)


def test_fit_on_a_device_beats_bicubic() -> None:
    torch.manual_seed(0)
    rough = torch.rand(1, 31, 24, 24)
    cube = upsample(rough, 8)[0].clamp(0, 1).numpy()
    net = new_network(make_net(bands=31, features=32).config, 0)
    told: list[Progress] = []
    options = FitOptions(minutes=0.2, patch=8, steps=TrainingOptions(learning_rate=1e-3))
    fit(net, [cube], options, told.append, CUDA)
    ours, bicubic = evaluate(told[-1].net, cube)
    assert ours["psnr"] > bicubic["psnr"] + 0.5
