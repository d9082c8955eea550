"""The engine against the network as published, on the same input in one run.

    python -m benchmarks.engine [--bands 128] [--size 64] [--runs 3] [--device cpu]

The published form is this project's plain network, which equals the published code's output: a
loop over groups, NCHW, float32, eager. The second opponent is the same network under bfloat16
autocast in channels-last. The last column is the share of this machine's measured speed of a 3x3
convolution with 256 channels in the same type, counted in the fused network's own operations.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import get_args

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.common import make_net, print_table, seconds
from model import SSPSR, SSPSRConfig, attention, inference
from model.degradation import upsample
from model.precision import Precision


def published_operations(config: SSPSRConfig) -> float:
    """Multiply-adds of the published form per LR pixel, 3x3 and 1x1 convolutions alone."""
    features, bands, group = config.features, config.bands, config.group_size
    between, body = (config.scale // 2) ** 2, config.blocks * 20 * features**2
    branch = 9 * group * features + body
    pixels = 1
    while pixels < between:
        branch += pixels * 36 * features**2
        pixels *= 4
    branch += between * 9 * features * group
    trunk = 9 * bands * features + body + 36 * features**2
    ends = config.scale**2 * 18 * bands * features
    return len(config.group_starts) * branch + between * trunk + ends


def fused_operations(config: SSPSRConfig) -> float:
    """Multiply-adds of the engine per LR pixel: what is left after fusing."""
    features, bands, group = config.features, config.bands, config.group_size
    between, body = (config.scale // 2) ** 2, config.blocks * 20 * features**2
    taps = {1: 9, 4: 16, 16: 25}[between]
    branch = 9 * group * features + body + taps * between * features * group
    trunk = 9 * bands * features + body + 16 * 4 * features * bands
    skip = config.scale**2 * 25 * bands**2
    return len(config.group_starts) * branch + between * trunk + skip


def convolution_speed(dtype: torch.dtype, device: str, runs: int) -> float:
    """Multiply-adds per second of a 3x3 convolution with 256 channels, the best of some shapes."""
    weight = torch.rand(256, 256, 3, 3, device=device).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    best = 0.0
    for samples, size in ((1, 64), (4, 64), (1, 128)):
        x = torch.rand(samples, 256, size, size, device=device).to(dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        spent = seconds(_synchronised(partial(functional.conv2d, x, weight, padding=1)), 3 * runs)
        best = max(best, samples * size**2 * 9 * 256**2 / spent)
    return best


def _synchronised(work: Callable[[], Tensor]) -> Callable[[], None]:
    def run() -> None:
        if work().device.type == "cuda":
            torch.cuda.synchronize()

    return run


def opponents(net: SSPSR, x: Tensor) -> dict[str, Callable[[], Tensor]]:
    """The plain network as published, and under autocast in channels-last."""
    lines = SSPSR(net.config).to(x.device).eval()
    lines.load_state_dict(net.state_dict())
    lines = lines.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def published() -> Tensor:
        y: Tensor = net(x, upsample(x, net.config.scale))
        return y

    def autocast() -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            parts = (x, upsample(x, net.config.scale))
            y: Tensor = lines(*(p.contiguous(memory_format=torch.channels_last) for p in parts))
            return y

    return {"published, fp32": published, "autocast bf16, channels-last": autocast}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bands", type=int, default=128)
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--size", type=int, default=64, help="LR pixels a side, a whole scene")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    net = make_net(given.bands, given.scale, given.features, given.blocks).to(given.device)
    torch.manual_seed(1)
    x = torch.rand(1, given.bands, given.size, given.size, device=given.device)
    statistics = attention.calibrate(net, x)
    works = opponents(net, x)
    for precision in get_args(Precision)[1:]:
        engine = inference.compile(net, statistics, precision)
        works[f"engine, {precision}"] = partial(engine, x)
        pooling = engine.with_statistics(None)
        works[f"engine, {precision}, attention as published"] = partial(pooling, x)
    exact = works["published, fp32"]()
    spent = {name: seconds(_synchronised(work), given.runs) for name, work in works.items()}
    peaks = {
        name: convolution_speed(dtype, given.device, given.runs)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    operations = fused_operations(net.config) * given.size**2
    rows = []
    for name, work in works.items():
        peak = next((peak for kind, peak in peaks.items() if kind in name), 0.0)
        share = operations / spent[name] / peak if name.startswith("engine") else float("nan")
        rows.append(
            [
                name,
                spent[name],
                spent["published, fp32"] / spent[name],
                spent["autocast bf16, channels-last"] / spent[name],
                float((work() - exact).abs().max()),
                share,
            ]
        )
    header = ["form", "s", "x published", "x autocast", "max abs difference", "of conv speed"]
    title = f"{net.config}\n{given.size} x {given.size} LR pixels, median of {given.runs} runs"
    print_table(title, header, rows)
    ratio = fused_operations(net.config) / published_operations(net.config)
    speeds = ", ".join(f"{name} {2 * peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items())
    print(f"\nconvolution speed: {speeds}; fused operations: {ratio:.2f} of the published")


if __name__ == "__main__":
    main()
