"""The whole job against its computation alone: what reading, encoding, writing and Ray cost.

    python -m benchmarks.job [--tiles 8] [--tile 64] [--precision bf16] [--runs 3]

The job is `pipeline.job.run` on a Zarr scene on the local disk, in a Ray session that runs already,
as on a cluster; its wall time runs from the listing of the source to the published scene and so
holds the start of the actor. The computation alone is the engine's part of the same work: the
attention statistics of the same sample, and every tile with its halo, from memory to memory.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from functools import partial
from pathlib import Path

import ray
import torch

from benchmarks.common import make_net, print_table, timed, write_checkpoint
from benchmarks.scenes import job_settings, write_scene
from model import Card, inference, load_checkpoint
from model.inference import Engine
from pipeline import open_scene
from pipeline.calibration import calibrate
from pipeline.encoding import ValueEncoding
from pipeline.grid import TileGrid
from pipeline.job import run
from pipeline.ray_session import ray_session
from pipeline.resolving import run_engine, scene_engines
from pipeline.tile import SceneContext, read_tile


def computation(engine: Engine, card: Card, scene_path: Path, tile: int) -> dict[str, float]:
    """Seconds of the engine's part of the job."""
    scene = open_scene(str(scene_path))
    spent: dict[str, float] = {}
    kept = []
    spent["statistics"] = timed(lambda: kept.append(calibrate(scene, engine, card)))
    engines = scene_engines(engine, kept[0])
    grid = TileGrid(scene.sizes["y"], scene.sizes["x"], tile, engine.config.scale)
    context = SceneContext(scene, grid, kept[0], ValueEncoding("int16"), engines)
    inputs = [read_tile(context, each) for each in grid]
    tensors = [(torch.from_numpy(each.values)[None], each.core) for each in inputs]
    run_engine(engines[0], *tensors[0])  # the first call lays out the weights

    def tiles() -> None:
        for x, core in tensors:
            run_engine(engines[0], x, core)

    spent["tiles"] = timed(tiles)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=8, help="tiles along a side of the scene")
    parser.add_argument("--tile", type=int, default=64)
    parser.add_argument("--bands", type=int, default=128)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="benchmark-"))
    model, source, size = folder / "net.safetensors", folder / "scenes", given.tiles * given.tile
    write_checkpoint(make_net(given.bands, features=given.features), model)
    write_scene(source / "scene.zarr", given.bands, size, size)
    net, card = load_checkpoint(model)
    engine = inference.compile(net, precision=given.precision)
    walls, alone = [], []
    with ray_session(None):
        cpus = int(ray.cluster_resources()["CPU"])  # type: ignore[no-untyped-call]
        torch.set_num_threads(cpus)
        for index in range(given.runs):
            settings = job_settings(
                source,
                model,
                folder / f"out{index}",
                tile=given.tile,
                workers=1,
                precision=given.precision,
            )
            walls.append(timed(partial(run, settings)))
            alone.append(computation(engine, card, source / "scene.zarr", given.tile))
    shutil.rmtree(folder)
    wall = statistics.median(walls)
    parts = {name: statistics.median(each[name] for each in alone) for name in alone[0]}
    total = sum(parts.values())
    print_table(
        f"{given.tiles**2} tiles of {given.tile}, {given.bands} bands, {given.features} features, "
        f"{engine.precision}, median of {given.runs} runs",
        ["", "s", "x computation alone"],
        [
            ["whole job", wall, wall / total],
            ["computation alone", total, 1.0],
            *([f"  of it {name}", spent, spent / total] for name, spent in parts.items()),
        ],
    )


if __name__ == "__main__":
    main()
