"""The engine: equal to the published form, exactly tileable, precise, and bounded in memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from itertools import product
from pathlib import Path

import pytest
import torch

from benchmarks.train_shipped import load
from model import (
    SSPSR,
    AttentionStatistics,
    attention,
    convolution,
    degradation,
    fused,
    inference,
    load_checkpoint,
    metrics,
    receptive_field,
    upsampling,
)
from model.extent import Extent
from tests.test_model import make_net

SCALES = [2, 4, 8]


def published(net: SSPSR, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y: torch.Tensor = net(x, degradation.upsample(x, net.config.scale))
    return y


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def cut(
    x: torch.Tensor, core: tuple[slice, slice], margin: int
) -> tuple[torch.Tensor, list[Extent]]:
    """A core with so many pixels around it, as far as x goes."""
    extents, windows = [], []
    for part, size in zip(core, x.shape[2:], strict=True):
        begin, end = max(0, part.start - margin), min(size, part.stop + margin)
        extents.append(Extent(part.start - begin, part.stop - begin, begin == 0, end == size))
        windows.append(slice(begin, end))
    return x[:, :, windows[0], windows[1]], extents


def tiles(height: int, width: int, tile: int) -> list[tuple[slice, slice]]:
    return [
        (slice(row, min(row + tile, height)), slice(column, min(column + tile, width)))
        for row, column in product(range(0, height, tile), range(0, width, tile))
    ]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(("blocks", "shared"), [(1, True), (3, True), (2, False)])
def test_equals_the_published_form_up_to_the_border(scale: int, blocks: int, shared: bool) -> None:
    """Every size, down to scenes smaller than a kernel."""
    net = make_net(scale=scale, blocks=blocks, shared_branch=shared)
    engine = inference.compile(net, precision="fp32")
    for height, width in [(1, 1), (1, 6), (2, 3), (3, 2), (5, 4), (17, 30)]:
        x = torch.rand(2, 9, height, width)
        exact = published(net, x)
        assert largest(engine(x), exact) < 3e-6, (height, width)
        statistics = attention.calibrate(net, x[:1])
        assert largest(engine.with_statistics(statistics)(x[:1]), exact[:1]) < 3e-6


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("tile", [5, 16, 40])
def test_tiles_are_the_whole(scale: int, tile: int) -> None:
    """Odd sizes, tiles of one pixel's width at the end, windows with more than the halo."""
    net = make_net(scale=scale, blocks=2)
    x = torch.rand(1, 9, 41, 46)
    engine = inference.compile(net, attention.calibrate(net, x), "fp32")
    whole = engine(x)
    for extra, core in zip([0, 1, 0, 3] * 100, tiles(41, 46, tile), strict=False):
        window, extents = cut(x, core, engine.halo + extra)
        rows, columns = (slice(scale * part.start, scale * part.stop) for part in core)
        same = 1e-6 if tile > 5 else 2e-6  # products of very small matrices add in another order
        assert largest(engine.tile(window, *extents), whole[:, :, rows, columns]) <= same


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("blocks", [1, 2, 3, 4, 5, 8])
def test_every_halo_is_enough_for_a_tile_inside(scale: int, blocks: int) -> None:
    """The window of a one-pixel core reaches exactly as far as the halo says."""
    net = make_net(scale=scale, blocks=blocks)
    halo = receptive_field.halo(net.config)
    x = torch.rand(1, 9, 2 * halo + 3, 2 * halo + 3)
    engine = inference.compile(net, attention.calibrate(net, x), "fp32")
    core = slice(halo + 1, halo + 2)
    window, extents = cut(x, (core, core), halo)
    assert window.shape[2:] == (2 * halo + 1, 2 * halo + 1)
    there = slice(scale * core.start, scale * core.stop)
    assert largest(engine.tile(window, *extents), engine(x)[:, :, there, there]) <= 2e-6


def test_refusals_are_clear() -> None:
    net = make_net()
    x = torch.rand(1, 9, 40, 40)
    statistics = attention.calibrate(net, x)
    engine = inference.compile(net, statistics)
    halo = engine.halo
    inside = Extent(halo, 40 - halo)
    with pytest.raises(
        ValueError, match=f"halo of {halo - 1} LR pixels is too small.*needs {halo}"
    ):
        engine.tile(x, inside, Extent(halo - 1, 20))
    with pytest.raises(ValueError, match="not a part"):
        engine.tile(x, inside, Extent(30, 50, True, True))
    with pytest.raises(ValueError, match="frozen attention statistics"):
        inference.compile(net).tile(x, inside, inside)
    with pytest.raises(ValueError, match=r"takes \[N, 9, H, W\] float32"):
        engine(x[:, :8])
    with pytest.raises(ValueError, match=r"float32, not .* float64"):
        engine(x.double())
    with pytest.raises(ValueError, match="this network's are"):
        engine.with_statistics(AttentionStatistics(statistics.branches[:1], statistics.trunk))
    with pytest.raises(ValueError, match="auto, fp32 or bf16"):
        inference.compile(net, precision="fp16")  # type: ignore[arg-type]


def test_measures_what_calibrate_measures() -> None:
    net = make_net(blocks=2)
    samples = torch.rand(3, 9, 12, 15)
    expected = attention.calibrate(net, samples)
    measured = inference.compile(net, precision="fp32").measure(samples)
    assert largest(measured.branches, expected.branches) < 1e-6
    assert largest(measured.trunk, expected.trunk) < 1e-6
    with pytest.raises(ValueError, match="samples"):
        inference.compile(net).measure(samples[:0])


def test_chunks_and_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    net = make_net(bands=24)
    x = torch.rand(1, 24, 20, 22)
    engine = inference.compile(net, attention.calibrate(net, x), "fp32")
    usual = engine(x)
    for name, value in (("_CPU_CHUNK", 1), ("_CPU_CHUNK", 1 << 30), ("_STRIP", 1)):
        monkeypatch.setattr(inference, name, value)
        assert largest(engine(x), usual) <= 1e-6


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("below", [20, 40, 1000])
def test_padded_columns_change_nothing(
    monkeypatch: pytest.MonkeyPatch, scale: int, below: int
) -> None:
    """As on AMX, where narrow bodies, or all, are padded in the middle of the scene too."""
    for module in (fused, upsampling):
        monkeypatch.setattr(module, "padded_below", lambda *_: below)
    net = make_net(scale=scale, blocks=2, bands=24)
    x = torch.rand(1, 24, 41, 46)
    engine = inference.compile(net, attention.calibrate(net, x), "fp32")
    whole = published(net, x)  # whose pooling is what was frozen
    for core in tiles(41, 46, 11):
        window, extents = cut(x, core, engine.halo)
        rows, columns = (slice(scale * part.start, scale * part.stop) for part in core)
        assert largest(engine.tile(window, *extents), whole[:, :, rows, columns]) <= 3e-6


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_fused_convolutions_the_result_is_the_same(
    monkeypatch: pytest.MonkeyPatch, precision: inference.Precision
) -> None:
    """What runs on a GPU, and on a CPU whose torch has no oneDNN."""
    net = make_net(blocks=2)
    x = torch.rand(1, 9, 14, 17)
    statistics = attention.calibrate(net, x)
    usual = inference.compile(net, statistics, precision)(x)
    monkeypatch.setattr(convolution, "_onednn_takes", lambda dtype: False)
    plain = inference.compile(net, statistics, precision)(x)
    assert largest(plain, usual) < (2e-6 if precision == "fp32" else 0.02)


def test_later_changes_of_the_network_do_not_count() -> None:
    net = make_net()
    x = torch.rand(1, 9, 8, 8)
    engine = inference.compile(net, attention.calibrate(net, x), "fp32")
    before = engine(x)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(engine(x), before)


@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_bfloat16_keeps_the_skip_precise(factor: float) -> None:
    """A network that is nothing but its skip: a constant comes out precisely, noise nearly so."""
    net = make_net()
    with torch.no_grad():
        for parameter in net.trunk.parameters():
            parameter.zero_()
        net.skip_conv.weight *= factor
    x = torch.rand(1, 9, 12, 12)
    exact, y = published(net, x), inference.compile(net, precision="bf16")(x)
    assert largest(y, exact) < 5e-3 * float(exact.abs().max())
    flat = torch.full((1, 9, 12, 12), 0.37)
    exact, y = published(net, flat), inference.compile(net, precision="bf16")(flat)
    inside = (..., slice(8, -8), slice(8, -8))
    assert largest(y[inside], exact[inside]) < 2e-5 * float(exact.abs().max())


@pytest.mark.slow
def test_bfloat16_keeps_the_quality(shared_data: Path) -> None:
    """Trained weights: PSNR within 0.01 dB, spectral angle within 0.005 degrees."""
    net, _ = load_checkpoint("starter")
    engines = {name: inference.compile(net, precision=name) for name in ("fp32", "bf16")}  # type: ignore[arg-type]
    for name, truth in load(shared_data / "cave" / "test").items():
        x = degradation.downsample(torch.from_numpy(truth), 4)[None]
        results = {kind: engine(x) for kind, engine in engines.items()}
        assert largest(results["fp32"], published(net, x)) < 1e-5, name
        fp32, bf16 = (metrics.assess(truth, y[0].numpy(), 4) for y in results.values())
        assert abs(bf16["psnr"] - fp32["psnr"]) < 0.01, name
        assert abs(bf16["sam"] - fp32["sam"]) < 0.005, name


def test_auto_is_bfloat16_only_with_matrix_units() -> None:
    expected = "bf16" if torch.cpu.get_capabilities().get("amx_bf16") else "fp32"
    assert inference.compile(make_net()).precision == expected


MEASURE = """
    import resource, sys
    import torch
    from model import SSPSR, SSPSRConfig, attention, inference

    torch.set_num_threads(2)
    torch.manual_seed(0)
    config = SSPSRConfig(bands=24, scale=4, features=64, blocks=1)
    net = SSPSR(config).eval()
    statistics = attention.calibrate(net, torch.rand(1, 24, 8, 8))
    engine = inference.compile(net, statistics, "fp32")
    engine(torch.rand(1, 24, 8, 8))  # libraries and weights are in memory now
    x = torch.rand(1, 24, 160, 160)

    def memory(name):
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024
"""


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_memory_stays_below_the_formula() -> None:
    """Peak resident memory of one tile, in a process of its own; the bound is not a loose one."""
    used, foretold = map(
        int,
        run_python(
            """
            open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
            before = memory("VmRSS")
            y = engine(x)
            print(memory("VmHWM") - before, engine.memory(160, 160))
            """
        ).split(),
    )
    assert 0.3 * foretold < used < 1.1 * foretold


class Scarce(inference.Engine):
    """An engine on a device whose memory ends, as torch reports it of a GPU."""

    groups, pixels = 1, 120

    def _features(self, x, rows, columns, gate_of):  # type: ignore[no-untyped-def]
        core = [axis.core[1] - axis.core[0] for axis in (rows, columns)]
        if self._most_groups > self.groups or core[0] * core[1] > self.pixels:
            raise torch.OutOfMemoryError("tried to allocate too much")
        return super()._features(x, rows, columns, gate_of)


def test_runs_in_smaller_parts_when_memory_ends() -> None:
    net = make_net(bands=24)
    x = torch.rand(1, 24, 40, 33)
    engine = inference.compile(net, attention.calibrate(net, x), "fp32")
    scarce = Scarce(engine._network, engine.statistics)
    assert largest(scarce(x), engine(x)) <= 2e-6
    assert scarce._most_groups == 1
    window, extents = cut(x, (slice(20, 40), slice(5, 30)), engine.halo)
    assert largest(scarce.tile(window, *extents), engine.tile(window, *extents)) <= 2e-6
    scarce.pixels = 0
    with pytest.raises(MemoryError, match=r"needs about .* GiB .*smaller tiles.*too much"):
        scarce(x)
    with pytest.raises(MemoryError, match="smaller tiles"):  # global pooling cannot be cut
        Scarce(engine._network, None)(x)
