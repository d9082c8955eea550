"""One training step against the plain published loop: same network, batch, data and loss.

    python -m benchmarks.training_step [--bands 31] [--features 64] [--batch 8] [--patch 24]
        [--device cuda]

The plain loop sends group after group through the branch, rows first in memory, in float32, with
torch's Adam as it comes; ours is `Trainer.step`, with gradient clipping and averaged weights. The
two take turns; medians, of wall time and of CPU time, which on one thread tells the same on a busy
machine. The peak is the best rate of a large convolution measured here. On a GPU only wall time
tells; the plain loop then has TF32 convolutions, as torch has by default, and its data there.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.common import print_table, timed
from benchmarks.engine import published_operations
from model import SSPSR, SSPSRConfig
from model.degradation import downsample, upsample
from model.losses import hybrid_loss
from model.precision import Precision, resolve
from model.trainer import Trainer, TrainingOptions
from model.training import new_network

_WARM_UP = 5  # runs that do not count; a GPU's recording is among them
_PASSES = 3  # forward, gradients of activations, gradients of weights


class PlainLoop:
    """The published training step."""

    def __init__(self, net: SSPSR) -> None:
        self._net = net
        self._adam = torch.optim.Adam(net.parameters(), lr=1e-4)

    def __call__(self, low: Tensor, high: Tensor) -> float:
        loss = hybrid_loss(self._net(low, upsample(low, self._net.config.scale)), high)
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._adam.step()
        return loss.item()


def _taking_turns(
    works: dict[str, Callable[[], object]], runs: int
) -> dict[str, tuple[float, float]]:
    """Median wall and CPU seconds of each."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for turn in range(runs + _WARM_UP):
        for name, work in works.items():
            before = time.process_time()
            wall = timed(work)
            taken[name] += [(wall, time.process_time() - before)] if turn >= _WARM_UP else []
    return {
        name: (statistics.median(w for w, _ in pairs), statistics.median(c for _, c in pairs))
        for name, pairs in taken.items()
    }


def peak(dtype: torch.dtype) -> float:
    """Multiply-adds per second of CPU time of a convolution that suits a CPU."""
    size, features = 64, 256
    rates = []
    for layout in (torch.contiguous_format, torch.channels_last):
        layer = nn.Conv2d(features, features, 3, padding=1).to(dtype, memory_format=layout)  # type: ignore[call-overload]
        x = torch.rand(1, features, size, size, dtype=dtype).to(memory_format=layout)
        with torch.no_grad():
            work = {"": lambda layer=layer, x=x: layer(x)}  # type: ignore[misc]
            _, taken = _taking_turns(work, 5)[""]  # type: ignore[arg-type]
        rates.append(9 * features**2 * size**2 / taken)
    return max(rates)


def main() -> None:
    given = _arguments()
    torch.set_num_threads(given.threads)
    config = SSPSRConfig(given.bands, 4, features=given.features)
    torch.manual_seed(0)
    side = 4 * given.patch
    device = torch.device(given.device)
    high = torch.rand(given.batch, given.bands, side, side, device=device)
    low = downsample(high, 4)
    net = new_network(config, 0).to(device)
    plain = PlainLoop(copy.deepcopy(net))
    works = {"plain published loop": (lambda: plain(low, high), torch.float32)}
    precisions: list[Precision] = ["fp32"]
    if resolve("auto", device) == torch.bfloat16:
        precisions.append("bf16")
    for precision in precisions:
        trainer = Trainer(copy.deepcopy(net), TrainingOptions(precision=precision), device)
        works[f"Trainer.step, {precision}"] = (
            lambda trainer=trainer: trainer.step(low, high, None, 0.5),  # type: ignore[misc]
            torch.float32 if precision == "fp32" else torch.bfloat16,
        )
    medians = _taking_turns({name: work for name, (work, _) in works.items()}, given.runs)
    operations = _PASSES * published_operations(config) * given.batch * given.patch**2
    on_cpu = device.type == "cpu"
    peaks = {dtype: peak(dtype) if on_cpu else math.nan for _, dtype in works.values()}
    plainly = medians["plain published loop"]
    rows = [
        [
            name,
            *(f"{1e3 * value:.0f}" for value in medians[name]),
            *(f"{p / value:.2f}" for p, value in zip(plainly, medians[name], strict=True)),
            f"{operations / medians[name][1] / peaks[dtype]:.2f}",
        ]
        for name, (_, dtype) in works.items()
    ]
    title = f"Training step, {config}, {given.batch} patches of {given.patch} x {given.patch} LR"
    header = [
        "",
        "wall ms",
        "CPU ms",
        "times, wall",
        "times, CPU",
        "published work / CPU time / peak",
    ]
    print_table(title, header, rows)
    if on_cpu:
        print(
            f"\npeak: {', '.join(f'{2e-9 * rate:.0f} GFLOP/s in {d}' for d, rate in peaks.items())}"
        )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bands", type=int, default=31)
    parser.add_argument("--features", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--patch", type=int, default=24)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
