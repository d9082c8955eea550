"""What the benchmarks share: a network, arguments, medians, a table; needs torch alone."""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from model import SSPSR, Card, SSPSRConfig, save_checkpoint
from model.card import Architecture
from model.training import start_as_bicubic


def make_net(bands: int, scale: int = 4, features: int = 256, blocks: int = 3) -> SSPSR:
    """A network as it is before training; its speed is that of a trained one."""
    torch.manual_seed(0)
    net = SSPSR(SSPSRConfig(bands=bands, scale=scale, features=features, blocks=blocks))
    start_as_bicubic(net)
    return net.eval()


def write_checkpoint(net: SSPSR, path: Path) -> None:
    architecture = Architecture(**net.config.to_dict())
    save_checkpoint(path, net, Card(name="benchmark", architecture=architecture))


def scenes_to_measure(description: str | None) -> argparse.Namespace:
    """The arguments of benchmarks over the shared scenes; torch gets as many threads as asked."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("data", type=Path)
    parser.add_argument("--quick", action="store_true", help="one scene of each set")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    return given


def seconds(work: Callable[[], object], runs: int) -> float:
    """Median wall time of `work` after one run that does not count."""
    work()
    return statistics.median(timed(work) for _ in range(runs))


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def machine() -> str:
    """One line on what this runs on."""
    found = torch.cpu.get_capabilities()
    flags = [name for name in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16") if found.get(name)]
    name = found.get("cpu_name") or platform.processor()
    gpu = f"; {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = f"{torch.get_num_threads()} threads"
    return f"{name}, {threads}, {' '.join(flags)}; torch {torch.__version__}{gpu}"


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Markdown on stdout."""
    print(f"\n{title}\n\n{machine()}\n")
    print(f"| {' | '.join(header)} |")
    print(f"|{'---|' * len(header)}")
    for row in rows:
        print_row(row)


def print_row(row: Sequence[object]) -> None:
    """One more row of the table that was printed last."""
    cells = [f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row]
    print(f"| {' | '.join(cells)} |", flush=True)
