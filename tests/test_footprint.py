"""A worker's memory: foretold by the plan, and the same however large the scene."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from benchmarks.common import make_net, write_checkpoint
from benchmarks.memory import peak_of_worker
from benchmarks.scenes import job_settings, write_scene


@pytest.mark.slow
@pytest.mark.long
def test_memory_is_foretold_and_does_not_grow_with_the_scene(tmp_path: Path) -> None:
    write_checkpoint(make_net(48, features=16, blocks=1), tmp_path / "net.safetensors")
    peaks = []
    for size in (256, 768):
        source = tmp_path / str(size)
        write_scene(source / "scene.zarr", 48, size, size)
        model = tmp_path / "net.safetensors"
        settings = job_settings(source, model, tmp_path / f"out{size}", tile=32)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peak, foretold, _ = pool.submit(peak_of_worker, settings).result()
        assert peak <= foretold
        peaks.append(peak)
    assert peaks[1] <= 1.1 * peaks[0]  # 9 x the pixels; the rest is chance in what coincides
