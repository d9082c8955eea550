"""How many requests the product sends to an S3 store per scene and per tile, by kind.

    python -m benchmarks.requests

Every request of this process is counted where it leaves, on a real SeaweedFS, while a
plan, a worker and a store do what a run does, without Ray. Scenes of 4 and of 16 tiles tell the
part of a tile from that of its scene.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec

from benchmarks.common import make_net, print_table, write_checkpoint
from benchmarks.scenes import write_scene
from infra.local_s3 import LocalS3
from pipeline.job import load_model
from pipeline.lease import Leases
from pipeline.plan import make_plan
from pipeline.scene_job import Model, SceneJob
from pipeline.settings import RunSettings
from pipeline.traffic import Traffic, so_far
from pipeline.worker import Worker

_TILE = 16
_KINDS = ("GET", "HEAD", "LIST", "PUT", "DELETE")


@contextmanager
def _counted(counts: dict[str, Traffic], step: str) -> Iterator[None]:
    """Keep what is sent inside as the traffic of a step."""
    before = so_far()
    yield
    counts[step] = so_far() - before


def _settings(server: LocalS3, side: int, model: Path) -> RunSettings:
    paths = {"source": server.url(f"in{side}"), "output": server.url(f"out{side}")}
    return RunSettings.from_options(
        {**paths, "model": str(model), "tile": _TILE, "precision": "fp32"}
    )


def _steps(settings: RunSettings, model: Model) -> dict[str, Traffic]:
    """The requests of each step of one scene's way through a run."""
    counts: dict[str, Traffic] = {}
    with _counted(counts, "plan, new"):
        [scene] = make_plan(settings, model).work
    job = scene.job
    assert job is not None
    worker = Worker(model.data, "cpu", 1, "fp32")
    with _counted(counts, "prepare"):
        worker.prepare(job)
    with _counted(counts, "tiles"):
        for tile in job.grid:
            worker.process(job, tile)
    another = Worker(model.data, "cpu", 1, "fp32")
    with _counted(counts, "one tile by another worker"):
        another.process(job, next(iter(job.grid)))
    with _counted(counts, "lease and publish"):
        _publish(settings, job)
    with _counted(counts, "plan, published"):
        assert not make_plan(settings, model).work
    return counts


def _publish(settings: RunSettings, job: SceneJob) -> None:
    with Leases(settings.output, "run", settings.lease_seconds) as leases:
        leases.take(job.scene_id)
        store = job.store()
        facts = {"sr_archive": {"fingerprint": job.fingerprint}}
        store.publish(facts, store.ledger())
        leases.release(job.scene_id)


def _measure(server: LocalS3, side: int, model_path: Path) -> dict[str, Traffic]:
    with tempfile.TemporaryDirectory() as folder:
        write_scene(Path(folder) / "scene.zarr", 8, side * _TILE, side * _TILE, chunk=_TILE)
        filesystem = fsspec.filesystem("s3")
        filesystem.put(folder + "/", server.url(f"in{side}"), recursive=True)
    settings = _settings(server, side, model_path)
    return _steps(settings, load_model(settings))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, LocalS3(bucket="archive") as server:
        os.environ.update(server.merged_environment())
        model = Path(folder) / "model.safetensors"
        write_checkpoint(make_net(8, features=16, blocks=1), model)
        small, large = (_measure(server, side, model) for side in (2, 4))
    rows = [
        [step, tiles, *(int(counts[step].of(kind)) for kind in _KINDS)]
        for step in small
        for tiles, counts in ((4, small), (16, large))
    ]
    print_table("Requests to S3", ("step", "tiles of the scene", *_KINDS), rows)


if __name__ == "__main__":
    main()
