"""What the benchmarks share: a network, a scene, medians and a table."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import dask.array as da
import numpy as np
import torch
import xarray as xr

from model import SSPSR, Card, SSPSRConfig, save_checkpoint
from model.card import Architecture
from model.training import start_as_bicubic
from pipeline import RunSettings

SCALE_FACTOR = 1e-4


def make_net(bands: int, scale: int = 4, features: int = 256, blocks: int = 3) -> SSPSR:
    """A network as it is before training; its speed is that of a trained one."""
    torch.manual_seed(0)
    net = SSPSR(SSPSRConfig(bands=bands, scale=scale, features=features, blocks=blocks))
    start_as_bicubic(net)
    return net.eval()


def write_checkpoint(net: SSPSR, path: Path) -> None:
    architecture = Architecture(**net.config.to_dict())
    save_checkpoint(path, net, Card(name="benchmark", architecture=architecture))


def write_scene(path: Path, bands: int, rows: int, columns: int, chunk: int = 64) -> None:
    """A smooth noisy scene of int16 reflectance x 10000, written in parts, as a Zarr store."""
    band = np.arange(bands)[:, None, None]
    random = np.random.default_rng(0)

    def part(
        block: np.ndarray, block_info: dict[int | None, dict[str, list[tuple[int, int]]]]
    ) -> np.ndarray:
        (_, _), (top, bottom), (left, right) = block_info[None]["array-location"]
        y, x = np.mgrid[top:bottom, left:right] / 12.0
        values = 3000 + 1500 * np.sin(x + 0.03 * band) * np.cos(y)
        counts: np.ndarray = (values + random.normal(0, 30, values.shape)).astype(np.int16)
        return counts

    lazy = da.zeros((bands, rows, columns), dtype=np.int16, chunks=(bands, chunk, chunk))
    values = lazy.map_blocks(part, dtype=np.int16)
    scene = xr.Dataset({"reflectance": (("band", "y", "x"), values)})
    scene["reflectance"].attrs = {"scale_factor": SCALE_FACTOR, "_FillValue": -32768}
    scene.to_zarr(path, mode="w", zarr_format=2, consolidated=True)


def job_settings(source: Path, model: Path, output: Path, **options: object) -> RunSettings:
    paths = {"source": str(source), "model": str(model), "output": str(output)}
    return RunSettings.from_options(paths | options)


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
