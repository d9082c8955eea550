"""One training step: equal to the published loop, masked, resumable, and nothing lost."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model import SSPSR, losses
from model.augmentation import NONE, Augmentation, augment, shifted_groups
from model.composition import is_worth, through_both
from model.degradation import downsample, gaussian, upsample
from model.pairs import make_pair
from model.trainer import Trainer, TrainingOptions
from model.training import start_as_bicubic
from model.training_form import TrainingForm
from tests.test_model import make_net

SHAPES: dict[str, dict[str, object]] = {
    "x2": {"scale": 2, "blocks": 2},
    "x4": {"features": 32, "blocks": 2, "bands": 12, "group_size": 8},
    "x8": {"scale": 8, "bands": 11},
    "unshared": {"shared_branch": False},
    "more bands than features": {"bands": 40},
}


# The networks here are so small that threads only wait for each other.
pytestmark = pytest.mark.usefixtures("one_thread")


def gradients(
    forward: Callable[[Tensor, Tensor], Tensor], net: SSPSR, low: Tensor, high: Tensor
) -> tuple[float, dict[str, Tensor]]:
    net.zero_grad()
    loss = losses.hybrid_loss(forward(low, upsample(low, net.config.scale)), high, angle=0.1)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


def training(net: SSPSR, **options: object) -> Trainer:
    return Trainer(copy.deepcopy(net), TrainingOptions(**options))  # type: ignore[arg-type]


def patches(net: SSPSR, count: int = 2, side: int = 8) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    high = torch.rand(count, net.config.bands, *(net.config.scale * side,) * 2)
    return downsample(high, net.config.scale), high


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("size", [(7, 5), (1, 2)])
def test_gradients_are_those_of_the_published_form(name: str, size: tuple[int, int]) -> None:
    """In float64 to its rounding, so that the algebra is exact; in float32 to 1e-5 of the whole."""
    net = make_net(**SHAPES[name]).double()
    scale = net.config.scale
    low = torch.rand(2, net.config.bands, *size, dtype=torch.float64)
    high = torch.rand(2, net.config.bands, *(scale * side for side in size), dtype=torch.float64)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        net, pair = net.to(dtype), (low.to(dtype), high.to(dtype))
        published = gradients(net, net, *pair)
        published = published[0], {n: g.clone() for n, g in published[1].items()}
        ours = gradients(TrainingForm(net), net, *pair)
        assert ours[0] == pytest.approx(published[0], rel=tolerance)
        assert ours[1].keys() == published[1].keys() == dict(net.named_parameters()).keys()
        whole = math.sqrt(sum(float(g.square().sum()) for g in published[1].values()))
        for parameter, expected in published[1].items():
            apart = float((ours[1][parameter] - expected).norm())
            assert apart <= tolerance * float(expected.norm()) + 0.1 * tolerance * whole, parameter


def test_composition_is_left_where_it_costs_more() -> None:
    few, many = (nn.Conv2d(16, bands, 3) for bands in (8, 200))
    assert is_worth(nn.Conv2d(16, 64, 3), few, 2)
    assert not is_worth(nn.Conv2d(16, 64, 3), many, 2)


@pytest.mark.parametrize("factor", [1, 2])
def test_composition_on_any_border(factor: int) -> None:
    torch.manual_seed(0)
    first = nn.Conv2d(5, 4 * factor**2, 3, padding=1).double()
    second = nn.Conv2d(4, 3, 3, padding=1).double()
    for size in ((1, 1), (1, 6), (2, 3), (9, 8)):
        x = torch.rand(2, 5, *size, dtype=torch.float64)
        expected = second(nn.functional.pixel_shuffle(first(x), factor))
        assert second.bias is not None
        ours = through_both(x, first, second, factor) + second.bias.view(1, -1, 1, 1)
        assert torch.allclose(ours, expected, rtol=0, atol=1e-12), size


def test_shifted_groups_cover_all_bands() -> None:
    net = make_net(bands=31)
    random, seen = np.random.default_rng(0), set()
    for _ in range(50):
        starts = shifted_groups(net.config, random)
        assert len(starts) == len(net.config.group_starts)
        covered = {band for start in starts for band in range(start, start + 4)}
        assert covered == set(range(31))
        seen.update(starts)
    assert len(seen) > 2 * len(net.config.group_starts)
    low, _ = patches(net)
    bicubic = upsample(low, 4)
    form = TrainingForm(net)
    assert torch.equal(
        form(low, bicubic), form(low, bicubic, torch.tensor(net.config.group_starts))
    )
    assert not torch.equal(
        form(low, bicubic), form(low, bicubic, torch.tensor(shifted_groups(net.config, random)))
    )


def test_steps_equal_the_plain_loop() -> None:
    net = make_net()
    trainer = training(net, schedule="published", learning_rate=1e-3, clip=0.0, precision="fp32")
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    low, high = patches(net)
    for step in range(4):
        adam.param_groups[0]["lr"] = 1e-3 if step < 3 else 1e-4
        loss = losses.hybrid_loss(net(low, upsample(low, 4)), high)
        adam.zero_grad()
        loss.backward()
        adam.step()
        assert trainer.step(low, high, None, step / 4) == pytest.approx(loss.item(), rel=1e-5)
    for ours, plain in zip(trainer.net.parameters(), net.parameters(), strict=True):
        assert torch.allclose(ours, plain, rtol=0, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"angle": 0.1, "shift_groups": True}])
def test_state_goes_on_bit_by_bit(options: dict[str, object]) -> None:
    net = make_net()
    first = training(net, **options)
    low, high = patches(net)
    for step in range(3):
        first.step(low, high, None, step / 6)
    stored = io.BytesIO()
    torch.save(first.state_dict(), stored)
    stored.seek(0)
    second = training(make_net(), **options)
    second.load_state_dict(torch.load(stored, weights_only=True))
    for step in range(3, 6):
        assert first.step(low, high, None, step / 6) == second.step(low, high, None, step / 6)
    for name, value in first.state_dict().items():
        again = second.state_dict()[name]
        assert torch.equal(value, again) if isinstance(value, Tensor) else value == again, name


def test_state_is_a_copy_and_another_networks_is_refused() -> None:
    trainer = training(make_net())
    state = trainer.state_dict()
    low, high = patches(trainer.net)
    trainer.step(low, high, None, 0.5)
    assert not torch.equal(state["net.final.weight"], trainer.net.final.weight)
    before = trainer.state_dict()
    for wrong in (training(make_net(bands=10)).state_dict(), {"steps": 3}, {}):
        with pytest.raises(ValueError, match="does not fit this network"):
            trainer.load_state_dict(wrong)
    assert all(torch.equal(a, before[n]) for n, a in trainer.state_dict().items() if "." in n)


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    trainer = training(make_net())
    low, high = patches(trainer.net)
    trainer.step(low, high, None, 0.5)
    before = trainer.state_dict()
    high[0, 0, 0, 0] = float("nan")
    assert math.isnan(trainer.step(low, high, None, 0.5))
    assert (trainer.steps, trainer.skipped) == (2, 1)
    assert all(torch.equal(a, before[n]) for n, a in trainer.state_dict().items() if "." in n)
    assert math.isfinite(trainer.step(low, torch.nan_to_num(high), None, 0.5))


@pytest.mark.parametrize("shape", [1, 9])
def test_what_is_not_valid_does_not_count(shape: int) -> None:
    net = make_net()
    low, high = patches(net)
    valid = torch.rand(2, shape, 32, 32) < 0.7
    holes = high.masked_fill(~valid, float("nan"))
    other = torch.where(valid, high, torch.rand_like(high))
    found = {training(net, angle=0.1).step(low, h, valid, 0.5) for h in (holes, other)}
    assert len(found) == 1 and math.isfinite(found.pop())
    everywhere = torch.ones_like(valid)
    whole = training(net, angle=0.1).step(low, high, everywhere, 0.5)
    assert whole == pytest.approx(training(net, angle=0.1).step(low, high, None, 0.5), rel=1e-5)
    trainer = training(net)
    assert trainer.step(low, holes, torch.zeros_like(valid), 0.5) == 0.0
    assert trainer.skipped == 0


def test_angle_has_a_finite_gradient_everywhere() -> None:
    spectra = torch.rand(1, 6, 4, 4)
    spectra[..., 0], spectra[..., 1] = 0.0, 1e-7
    for reference in (spectra, 2 * spectra, torch.zeros_like(spectra), spectra.flip(1)):
        estimate = spectra.clone().requires_grad_()
        loss = losses.spectral_angle(estimate, reference)
        loss.backward()  # type: ignore[no-untyped-call]
        assert estimate.grad is not None and bool(torch.isfinite(estimate.grad).all())
    assert float(losses.spectral_angle(spectra, spectra)) == pytest.approx(0.0, abs=1e-6)


def test_angle_is_the_angle_of_bright_spectra() -> None:
    a, b = torch.tensor([[0.5, 0.5], [0.5, 0.55]]).unbind()
    angle = float(losses.spectral_angle(a.view(1, 2, 1, 1), b.view(1, 2, 1, 1)))
    cosine = float(a @ b / a.norm() / b.norm())
    assert angle == pytest.approx(math.acos(cosine), rel=0.05)


def test_published_loss_is_unchanged_by_a_full_mask() -> None:
    a, b = torch.rand(2, 5, 8, 8), torch.rand(2, 5, 8, 8)
    for bands in (1, 5):
        full = torch.ones(2, bands, 8, 8, dtype=torch.bool)
        masked = losses.hybrid_loss(a, b, valid=full)
        assert masked.item() == pytest.approx(losses.hybrid_loss(a, b).item(), rel=1e-6)


def test_training_lowers_the_loss_and_the_average_follows() -> None:
    net = make_net()
    start_as_bicubic(net)
    trainer = training(net, learning_rate=2e-3)
    low, high = patches(net, 4)
    high = upsample(low, 4) * 0.9 + 0.05
    found = [trainer.step(low, high, None, step / 30) for step in range(30)]
    assert found[-1] < 0.5 * found[0]
    assert not trainer.average.training
    with torch.no_grad():
        average = losses.hybrid_loss(trainer.average(low, upsample(low, 4)), high)
    assert average.item() < 0.7 * found[0]


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"precision": "bf16", "angle": 0.1}])
def test_bf16_steps_are_near_those_of_float32(options: dict[str, object]) -> None:
    net = make_net()
    low, high = patches(net)
    exact = training(net, **{**options, "precision": "fp32"}).step(low, high, None, 0.5)
    assert training(net, **options).step(low, high, None, 0.5) == pytest.approx(exact, rel=1e-2)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"learning_rate": 0.0}, "learning rate"),
        ({"schedule": "step"}, "schedule"),
        ({"angle": -1.0}, "angle"),
        ({"ema": 1.0}, "ema"),
        ({"precision": "fp16"}, "precision"),
    ],
)
def test_options_are_checked(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        training(make_net(), **wrong)


def test_schedules() -> None:
    published = TrainingOptions(schedule="published", learning_rate=1e-4)
    assert [published.rate(at) for at in (0.0, 0.74, 0.75, 1.0)] == pytest.approx(
        [1e-4, 1e-4, 1e-5, 1e-5]
    )
    cosine = [TrainingOptions(learning_rate=1.0).rate(at) for at in (0.0, 0.02, 0.5, 1.0, 2.0)]
    assert 0 < cosine[0] < 0.1 and cosine[1] > 0.99
    assert cosine[3] == cosine[4] == pytest.approx(0.01)


def test_parallel_training_is_the_same_training() -> None:
    """Through DistributedDataParallel, here of one process."""
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    try:
        net = make_net()
        alone, together = (
            Trainer(copy.deepcopy(net), TrainingOptions(), parallel=parallel)
            for parallel in (lambda module: module, nn.parallel.DistributedDataParallel)
        )
        low, high = patches(net)
        for step in range(2):
            losses_found = [t.step(low, high, None, step / 2) for t in (alone, together)]
            assert losses_found[0] == losses_found[1]
        high[0, 0, 0, 0] = float("nan")
        together.step(low, high, None, 0.9)
        assert together.skipped == 1
        pairs = zip(alone.net.parameters(), together.net.parameters(), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
    finally:
        torch.distributed.destroy_process_group()


def test_augmentation_turns_dims_and_repeats() -> None:
    patch = np.random.default_rng(0).random((3, 6, 6), dtype=np.float32)
    turned = {
        augment(patch, np.random.default_rng(seed), Augmentation(gain_chance=0.0)).tobytes()
        for seed in range(60)
    }
    assert len(turned) == 8
    assert np.array_equal(augment(patch, np.random.default_rng(1), NONE), patch)
    darker = augment(patch, np.random.default_rng(1), Augmentation(False, (0.5, 0.5), 1.0))
    assert np.allclose(darker, 0.5 * patch)
    noisy = [
        augment(patch, np.random.default_rng(2), Augmentation(False, gain_chance=0.0, noise=0.1))
        for _ in range(2)
    ]
    assert np.array_equal(*noisy) and 0 < np.abs(noisy[0] - patch).max() < 1
    as_tensor = augment(torch.from_numpy(patch), np.random.default_rng(5))
    assert np.array_equal(as_tensor.numpy(), augment(patch, np.random.default_rng(5)))
    with pytest.raises(ValueError, match="gain"):
        Augmentation(gain=(0.0, 1.0))


def test_pairs_without_gaps_are_the_degradations() -> None:
    high = torch.rand(2, 3, 24, 32)
    low, valid = make_pair(high)
    assert valid is None and torch.allclose(low, downsample(high, 4), rtol=0, atol=1e-6)
    low, _ = make_pair(high, torch.ones(2, 1, 24, 32, dtype=torch.bool), "mtf", 4, 0.2)
    down, across = (torch.from_numpy(gaussian(4, 0.2).matrix(s)[0]).float() for s in (6, 8))
    assert torch.allclose(low, down @ high @ across.T, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="bicubic or mtf"):
        make_pair(high, None, "nearest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="multiples of 4"):
        make_pair(high[..., :30])


@pytest.mark.parametrize("bands", [1, 3])
@pytest.mark.parametrize("degradation", ["bicubic", "mtf"])
def test_gaps_are_filled_and_what_they_reach_does_not_count(bands: int, degradation: str) -> None:
    high = torch.rand(1, 3, 64, 64)
    there = torch.ones(1, bands, 64, 64, dtype=torch.bool)
    there[:, -1, 20:23, 30:40] = False
    holes = high.masked_fill(~there, float("nan"))
    low, valid = make_pair(holes, there, degradation)  # type: ignore[arg-type]
    truth, _ = make_pair(high, None, degradation)  # type: ignore[arg-type]
    assert valid is not None and valid.shape == there.shape
    assert bool(torch.isfinite(low).all()) and float((low - truth).abs().max()) < 0.5
    assert not bool((valid & ~there).any())
    seen = valid.expand_as(high)[:, :, ::4, ::4]
    assert torch.allclose(low[seen], truth[seen], rtol=0, atol=1e-6)
    untouched = torch.isclose(low, truth, rtol=0, atol=1e-6)
    assert 0.5 < float(seen.float().mean()) <= float(untouched.float().mean()) < 1
