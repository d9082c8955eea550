"""A small model and small archives for tests of the whole job."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from model import load_checkpoint, save_checkpoint
from pipeline import RunSettings
from pipeline.calibration import Calibration
from pipeline.integrity import scenes_to_verify
from pipeline.job import run
from pipeline.plan import Plan, make_plan
from pipeline.provenance import RunFacts, provenance
from pipeline.quality import scene_figures
from pipeline.run_report import RunReport
from pipeline.scene_job import Model, SceneJob
from pipeline.stac.publication import bring_up_to_date
from pipeline.storage import open_filesystem
from pipeline.store import SceneStore
from pipeline.worker import Worker
from tests.scenes import write_envi, write_geotiff, write_zarr
from tests.test_model import make_card, make_net

BANDS = 12  # more than the model's nine, so windows of bands are run
SCALE_FACTOR = 1e-4
NODATA = -32768


def write_model(folder: Path) -> Path:
    """A network of nine bands with wavelengths of its own; small enough for many tiles."""
    net = make_net()
    path = folder / "small.safetensors"
    save_checkpoint(path, net, make_card(net))
    return path


def counts(rows: int, columns: int, bands: int = BANDS, seed: int = 0) -> np.ndarray:
    """Smooth int16 reflectance x 10000 with noise, `(bands, rows, columns)`."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:rows, :columns] / 12.0
    band = np.arange(bands)[:, None, None]
    values = (
        3000
        + 1500 * np.sin(x + 0.3 * band) * np.cos(y)
        + random.normal(0, 30, (bands, rows, columns))
    )
    return values.astype(np.int16)


def write_archive(folder: Path) -> Path:
    """Three sound scenes: GeoTIFF with a nodata corner, ENVI, Zarr."""
    folder.mkdir(parents=True, exist_ok=True)
    holed = counts(40, 52)
    holed[:, :9, :14] = NODATA
    write_geotiff(folder / "tiff.tif", holed, scale=SCALE_FACTOR, nodata=NODATA)
    write_envi(
        folder, counts(33, 20, seed=1), "bil", "envi", ".dat", reflectance_scale_factor=10000
    )
    write_zarr(folder / "store.zarr", counts(24, 24, seed=2), scale_factor=SCALE_FACTOR)
    return folder


def forget_connections() -> None:
    """What was opened on S3 with other credentials, or at another address, is not used again."""
    filesystem, _ = open_filesystem("s3://archive")
    type(filesystem).clear_instance_cache()


def run_job(source: Path | str, output: Path | str, model: Path, **options: object) -> RunReport:
    settings = RunSettings(
        source=str(source), output=str(output), model=str(model), **{"tile": 16, **options}
    )
    return run(settings)


def planned(
    source: str, output: str, model: Path, **options: object
) -> tuple[Worker, Model, RunSettings, Plan]:
    """What a run would do, and a worker in this process that can do it."""
    given = {"source": source, "output": output, "model": str(model), "precision": "fp32"}
    settings = RunSettings(**{**given, "tile": 16, **options})  # type: ignore[arg-type]
    loaded = Model.of(*load_checkpoint(settings.model))
    worker = Worker(loaded.data, "cpu", 1, settings.precision)
    return worker, loaded, settings, make_plan(settings, loaded)


def write_tiles(worker: Worker, job: SceneJob) -> None:
    """All of a scene, but for publishing it."""
    worker.prepare(job)
    for tile in job.grid:
        worker.process(job, tile)


def publish(source: str, output: str, model: Path, **options: object) -> None:
    """What a run does, in this process and without Ray."""
    worker, loaded, settings, plan = planned(source, output, model, **options)
    for scene in plan.scenes:
        if scene.status == "quarantined":
            facts = {"code": scene.code, "message": scene.note, "source": scene.uri}
            SceneStore(output, scene.scene_id).quarantine(facts)
    for scene in plan.work:
        assert scene.job is not None
        write_tiles(worker, scene.job)
        store = scene.job.store()
        records, constants = store.ledger(), store.calibration()
        assert constants is not None
        calibration = Calibration.from_bytes(constants)
        run = RunFacts("run", "2026-01-01T00:00:00Z", ("cpu",), ("fp32",))
        figures = scene_figures(records, calibration, scene.job.grid.scale)
        facts = provenance(scene.job, loaded, run, calibration, figures, tiles_kept=0)
        seams = worker.certify(scene.job, settings.seam_borders)
        facts["sr_archive"]["seams"] = seams.checked(settings.attention, ["fp32"])
        store.publish(facts, records)
    bring_up_to_date(output, scenes_to_verify(output))


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "pipeline", *(str(argument) for argument in arguments)]


def sr_archive(*arguments: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "COLUMNS": "200"},
    )


def array_bytes(store: Path) -> dict[str, bytes]:
    """Every object of a published scene except the root, which tells the time of publishing."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path != store / "zarr.json"
    }
