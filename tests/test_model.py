"""The network, its parts and its checkpoints, against the published implementation's figures."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from model import (
    SSPSR,
    Card,
    CheckpointError,
    SSPSRConfig,
    attention,
    degradation,
    inference,
    load_checkpoint,
    losses,
    metrics,
    receptive_field,
    save_checkpoint,
)
from model.card import Architecture
from model.checkpoint import import_published, shipped
from model.training import start_as_bicubic

CASES = ["sspsr_x2_12bands", "sspsr_x4_31bands", "sspsr_x4_unshared", "sspsr_x8_13bands"]


def make_net(**options: object) -> SSPSR:
    """A small network whose weights are large enough for every path to matter."""
    torch.manual_seed(3)
    defaults = {"bands": 9, "scale": 4, "group_size": 4, "group_overlap": 1, "features": 16}
    return SSPSR(SSPSRConfig(**{**defaults, "blocks": 1, **options})).eval()  # type: ignore[arg-type]


def make_card(net: SSPSR) -> Card:
    return Card(
        name="test",
        architecture=Architecture(**net.config.to_dict()),
        wavelengths=[500.0 + 10 * band for band in range(net.config.bands)],
    )


def golden_net(folder: Path, name: str) -> tuple[SSPSR, dict[str, torch.Tensor]]:
    path = folder / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["config"])
    tensors = load_file(path)
    net = SSPSR(SSPSRConfig.from_published(config))
    prefix = "state."
    net.load_state_dict(
        {
            key.removeprefix(prefix): value
            for key, value in tensors.items()
            if key.startswith(prefix)
        }
    )
    return net, tensors


@pytest.mark.parametrize("name", CASES)
def test_equals_the_published_network(golden: Path, name: str) -> None:
    net, case = golden_net(golden, name)
    y = net(case["x"], case["lms"])
    loss = losses.hybrid_loss(y, case["gt"])
    loss.backward()
    squares = [
        float(p.grad.double().square().sum()) for p in net.parameters() if p.grad is not None
    ]
    assert torch.allclose(y, case["y"], rtol=0, atol=1e-5)
    assert loss.item() == pytest.approx(case["loss"].item(), abs=1e-5)
    assert sum(squares) ** 0.5 == pytest.approx(case["grad_norm"].item(), abs=1e-5)


@pytest.mark.parametrize("name", ["metrics_x4", "metrics_x8_zeros"])
def test_metrics_equal_the_published_ones(golden: Path, name: str) -> None:
    case = np.load(golden / f"{name}.npz")
    figures = metrics.assess(
        case["reference"].transpose(2, 0, 1),
        case["estimate"].transpose(2, 0, 1),
        int(case["ratio"]),
    )
    published = {
        "cc": "CrossCorrelation",
        "sam": "SAM",
        "rmse": "RMSE",
        "ergas": "ERGAS",
        "psnr": "MPSNR",
        "ssim": "MSSIM",
    }
    for ours, theirs in published.items():
        assert figures[ours] == pytest.approx(float(case[theirs]), rel=1e-4), ours


def test_metrics_refuse_other_shapes() -> None:
    with pytest.raises(ValueError, match="two equal"):
        metrics.assess(np.zeros((2, 8, 8)), np.zeros((2, 8, 9)), 4)


@pytest.mark.parametrize("name", ["imresize_x4", "imresize_x8"])
def test_resampling_equals_imresize(golden: Path, name: str) -> None:
    case = {key: torch.from_numpy(value) for key, value in np.load(golden / f"{name}.npz").items()}
    scale = int(case["scale"])
    low = degradation.downsample(case["hr"].permute(2, 0, 1), scale)
    high = degradation.upsample(case["lr"].permute(2, 0, 1), scale)
    assert torch.allclose(low.permute(1, 2, 0), case["lr"], rtol=0, atol=1e-5)
    assert torch.allclose(high.permute(1, 2, 0), case["lr_upsampled"], rtol=0, atol=1e-5)


def test_resampling_keeps_constants_and_refuses_odd_sizes() -> None:
    flat = torch.full((2, 12, 8), 0.3)
    assert torch.allclose(degradation.downsample(flat, 4), torch.full((2, 3, 2), 0.3))
    with pytest.raises(ValueError, match="multiple of 4"):
        degradation.downsample(torch.zeros(1, 10, 8), 4)


@pytest.mark.parametrize("scale", [2, 4, 8])
@pytest.mark.parametrize("blocks", [1, 3])
def test_halo_is_exact(scale: int, blocks: int) -> None:
    """A change one pixel outside the halo changes nothing; at the halo it does."""
    net = make_net(scale=scale, blocks=blocks)
    halo = receptive_field.halo(net.config)
    size = 2 * halo + 5
    x = torch.rand(1, net.config.bands, 1 + 2 * 2, size)
    statistics = attention.calibrate(net, x)
    engine = inference.compile(net, statistics, "fp32")
    core = slice(0, scale)  # the core is the first LR column
    before = engine(x)[..., core]

    def change_at(column: int) -> float:
        probe = x.clone()
        probe[..., column] += 1e6  # far away its effect must exceed float32's rounding
        return float((engine(probe)[..., core] - before).abs().max())

    assert change_at(halo + 1) == 0.0
    assert change_at(halo) > 0.0


def test_halo_of_the_design() -> None:
    config = SSPSRConfig(bands=31, scale=4, features=64, blocks=3)
    assert receptive_field.halo(config) == 13


def test_frozen_statistics_of_the_whole_scene_are_the_published_forward() -> None:
    net = make_net(blocks=2)
    x = torch.rand(1, 9, 11, 14)
    bicubic = degradation.upsample(x, 4)
    with torch.no_grad():
        published = net(x, bicubic)
    frozen = inference.compile(net, attention.calibrate(net, x), "fp32")(x)
    assert torch.allclose(frozen, published, rtol=0, atol=1e-5)
    assert torch.allclose(inference.compile(net, precision="fp32")(x), published, rtol=0, atol=1e-6)


def test_statistics_matter_and_leave_no_trace() -> None:
    net = make_net()
    x, other = torch.rand(2, 9, 8, 8), torch.rand(1, 9, 8, 8) * 0.1
    plain = inference.compile(net)(x)
    statistics = attention.calibrate(net, other)
    frozen = inference.compile(net, statistics)(x)
    assert not torch.equal(frozen, plain)
    assert torch.equal(inference.compile(net)(x), plain)
    assert statistics.branches.shape == (3, 1, 16)
    assert statistics.trunk.shape == (1, 16)


@pytest.mark.parametrize(
    "samples", [torch.zeros(0, 9, 8, 8), torch.zeros(1, 8, 8, 8), torch.full((1, 9, 4, 4), np.nan)]
)
def test_calibration_refuses_bad_samples(samples: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="samples"):
        attention.calibrate(make_net(), samples)


def test_prepared_network_starts_near_bicubic() -> None:
    x = torch.rand(1, 9, 8, 8)
    bicubic = degradation.upsample(x, 4)

    def distance(net: SSPSR) -> float:
        with torch.no_grad():
            return float((net(x, bicubic) - bicubic).square().mean().sqrt())

    untouched, prepared = make_net(), make_net()
    start_as_bicubic(prepared)
    assert distance(prepared) < 0.5 * distance(untouched)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 3}, "scale"),
        ({"group_overlap": 4}, "group_overlap"),
        ({"bands": 3}, "fewer"),
        ({"features": 8}, "features"),
        ({"blocks": 0}, "blocks"),
    ],
)
def test_config_refuses(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_net(**options)


def test_last_group_ends_at_the_last_band() -> None:
    assert SSPSRConfig(bands=31, scale=4).group_starts == (0, 6, 12, 18, 23)
    assert SSPSRConfig(bands=8, scale=4).group_starts == (0,)


def test_network_refuses_wrong_shapes() -> None:
    net = make_net()
    with pytest.raises(ValueError, match="takes 9 bands"):
        net(torch.zeros(1, 8, 4, 4), torch.zeros(1, 8, 16, 16))
    with pytest.raises(ValueError, match="upsampled by 4"):
        net(torch.zeros(1, 9, 4, 4), torch.zeros(1, 9, 8, 8))


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    net = make_net()
    save_checkpoint(tmp_path / "net.safetensors", net, make_card(net))
    again, card = load_checkpoint(tmp_path / "net.safetensors")
    assert card == make_card(net)
    assert again.config == net.config
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), net.parameters(), strict=True))


def test_card_may_lie_beside_the_weights(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    net = make_net()
    save_file(dict(net.state_dict()), tmp_path / "bare.safetensors")
    with pytest.raises(CheckpointError, match="carries no card"):
        load_checkpoint(tmp_path / "bare.safetensors")
    (tmp_path / "bare.card.json").write_text(make_card(net).model_dump_json())
    assert load_checkpoint(tmp_path / "bare.safetensors")[1].name == "test"


def test_checkpoint_faults_are_one_line(tmp_path: Path) -> None:
    net = make_net()
    good = tmp_path / "good.safetensors"
    save_checkpoint(good, net, make_card(net))
    data = good.read_bytes()
    cases = {
        "absent.safetensors": (None, "no checkpoint at"),
        "garbage.safetensors": (b"garbage" * 40, "not a safetensors file"),
        "cut.safetensors": (data[: len(data) // 2], "not a safetensors file"),
        "empty.safetensors": (b"", "not a safetensors file"),
    }
    for name, (content, message) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            load_checkpoint(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_card_must_fit_the_network(tmp_path: Path) -> None:
    net = make_net()
    with pytest.raises(CheckpointError, match="architecture"):
        save_checkpoint(tmp_path / "x.safetensors", net, make_card(make_net(bands=10)))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("wrap", ["bare", "model", "module."])
def test_import_of_published_state_dicts(tmp_path: Path, shared: bool, wrap: str) -> None:
    net = make_net(shared_branch=shared, blocks=2)
    state = dict(net.state_dict())
    content: object = state
    if wrap == "model":
        content = {"epoch": 40, "model": state}
    elif wrap == "module.":
        content = {f"module.{key}": value for key, value in state.items()}
    torch.save(content, tmp_path / "published.pth")
    again, card = load_checkpoint(tmp_path / "published.pth")
    assert again.config == net.config
    assert card.name == "published"
    x = torch.rand(1, 9, 6, 6)
    assert torch.equal(inference.compile(again)(x), inference.compile(net)(x))


def test_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(make_net(), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match=r"pickled Python objects.*state_dict"):
        load_checkpoint(tmp_path / "module.pth")
    torch.save({"epoch": 1, "model": make_net()}, tmp_path / "wrapped.pth")
    with pytest.raises(CheckpointError, match="pickled Python objects"):
        load_checkpoint(tmp_path / "wrapped.pth")


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/tmp/sr-archive-bomb"),))  # type: ignore[return-value]


def test_pickle_is_never_run(tmp_path: Path) -> None:
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "bomb.pth")
    assert not Path("/tmp/sr-archive-bomb").exists()


def test_foreign_state_dict_is_refused() -> None:
    import io

    buffer = io.BytesIO()
    torch.save({"conv.weight": torch.zeros(3, 3)}, buffer)
    with pytest.raises(CheckpointError, match="not an SSPSR state dict"):
        import_published(buffer.getvalue(), name="foreign")


def test_not_finite_weights_are_refused(tmp_path: Path) -> None:
    net = make_net()
    with torch.no_grad():
        net.final.bias[0] = float("nan")
    save_checkpoint(tmp_path / "nan.safetensors", net, make_card(net))
    with pytest.raises(CheckpointError, match="NaN"):
        load_checkpoint(tmp_path / "nan.safetensors")


def test_starter_is_shipped_and_described() -> None:
    net, card = load_checkpoint("starter")
    assert card.name in shipped()
    assert net.config.bands == 31
    assert (
        card.wavelengths is not None and card.wavelengths[0] == 400 and card.wavelengths[-1] == 700
    )
    ours, bicubic = card.metrics["cave/test x4"], card.metrics["cave/test x4, bicubic"]
    assert ours["psnr"] >= bicubic["psnr"] + 3.0
    assert ours["sam"] < bicubic["sam"]


def test_starter_figures_are_true(shared_data: Path) -> None:
    """The card's figures, computed again from the held-out scenes."""
    from benchmarks.train_shipped import figures, load

    net, card = load_checkpoint("starter")
    again = figures(net, load(shared_data / "cave" / "test"))
    for name, values in again.items():
        assert values == pytest.approx(card.metrics[name], rel=2e-3), name
