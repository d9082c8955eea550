"""Whole fine-tunings on real Ray, on a real S3 server, and on a real Prefect server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
import torch

from infra.local_s3 import LocalS3
from model import SSPSR, load_checkpoint, save_checkpoint
from model.training import start_as_bicubic
from pipeline.evaluation import Evaluation
from pipeline.finetune.driver import FinetuneReport, finetune
from pipeline.finetune.plan import make_plan
from pipeline.finetune.settings import FinetuneSettings
from pipeline.ray_session import ray_session
from pipeline.settings import RunSettings
from tests.archives import SCALE_FACTOR, command, counts, run_job
from tests.processes import running
from tests.scenes import write_geotiff
from tests.test_finetune import BANDS, card

OPTIONS = {"epochs": 6, "batch": 2, "patch": 4, "report_steps": 4, "patience": 1000}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    for place in range(2):
        write_geotiff(folder / f"s{place}.tif", counts(48, 80, BANDS, place), scale=SCALE_FACTOR)
    return folder


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = SSPSR(card().architecture.config())
    start_as_bicubic(net)
    save_checkpoint(tmp_path / "parent.safetensors", net, card())
    return tmp_path / "parent.safetensors"


def settings(source: object, out: object, parent: Path, **given: object) -> FinetuneSettings:
    paths = {"source": str(source), "out": str(out), "parent": str(parent)}
    return FinetuneSettings.from_options(paths | OPTIONS | given)


@pytest.mark.slow
@pytest.mark.long
def test_an_archive_becomes_a_model_that_a_run_takes(
    archive: Path, parent: Path, tmp_path: Path
) -> None:
    out, seen = tmp_path / "models", []
    given = settings(
        archive, out, parent, name="mine", workers=1, registry=str(tmp_path / "registry")
    )
    with ray_session(None):
        report = finetune(given, [seen.append])
        again = finetune(given)
        job = run_job(archive, tmp_path / "sr", out / "mine.safetensors")
    assert [row.status for row in job.rows] == ["published", "published"]
    assert "windows" not in job.rows[0].note

    total = make_plan(given).job_for(1, 1).ending.steps
    assert report.steps == again.steps == total
    assert "finished before" in again.notes[0]
    check_files(out, report)
    names = [type(event).__name__ for event in seen]
    assert names[:2] == ["TrainingPlanned", "TrainingStarted"]
    assert names[-1] == "TrainingFinished" and "TrainingProgress" in names


def check_files(out: Path, report: FinetuneReport) -> None:
    _, made = load_checkpoint(out / "mine.safetensors")
    assert made.training["steps"] == report.steps
    assert made.training["parent_weights_sha256"]
    assert [Path(each).name for each in made.training_data[:2]] == ["s0.tif", "s1.tif"]
    assert made.metrics["held out x4"]["psnr"] == report.figures["new"]["psnr"]
    evaluation = Evaluation.from_json((out / "mine.evaluation.json").read_bytes())
    assert set(evaluation.names) == {"bicubic", "new", "start"}
    assert "<svg" in (out / "mine.curves.svg").read_text()
    [events] = (out / "tensorboard" / "mine").iterdir()
    assert b"psnr/validation" in events.read_bytes()


@contextmanager
def started(*arguments: object, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command, writing to `log`; killed at the end if it still runs."""
    environment = {**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command(*arguments),
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[1],
            env=environment,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(text: str, log: Path, process: subprocess.Popen[bytes], count: int = 1) -> None:
    while log.read_text(errors="replace").count(text) < count:
        assert process.poll() is None, log.read_text(errors="replace")
        time.sleep(0.1)


def kill_worker(driver: int) -> None:
    workers = list(running("RayTrainWorker", below=driver))
    assert len(workers) == 2
    workers[-1].send_signal(signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_it_goes_on_and_ends_with_the_same_number_of_steps(
    archive: Path, parent: Path, tmp_path: Path, s3: LocalS3
) -> None:
    """A worker dies, then the driver; scenes and checkpoints are on S3 all the time."""
    filesystem, _ = fsspec.core.url_to_fs(s3.url())
    for file in archive.iterdir():
        filesystem.put_file(str(file), f"{s3.bucket}/finetune/scenes/{file.name}")
    source, out = s3.url("finetune/scenes"), s3.url("finetune/models")
    given = settings(source, out, parent, workers=2, name="mine", epochs=12)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    options += [f"--from={parent}", f"--out={out}", "--name=mine", "--workers=2", "--epochs=12"]
    log = tmp_path / "log"
    with started("finetune", source, *options, log=log) as process:
        wait_for("step 20:", log, process)  # Ray Train takes a second or two to keep a checkpoint
        kill_worker(process.pid)
        wait_for("interrupted, going on", log, process)
        wait_for("going on after step", log, process)
        resumed = log.read_text().count(": loss ")
        wait_for(": loss ", log, process, resumed + 2)
        process.send_signal(signal.SIGKILL)
    with started("finetune", source, *options, "--json", log=tmp_path / "log2") as process:
        assert process.wait(600) == 0, (tmp_path / "log2").read_text()
    text = (tmp_path / "log2").read_text()
    assert "going on after step" in text
    total = make_plan(given).job_for(2, 1).ending.steps
    report = json.loads(filesystem.cat_file(f"{s3.bucket}/finetune/models/mine.report.json"))
    assert report["steps"] == total
    net, made = load_checkpoint(f"{out}/mine.safetensors")
    assert made.training["steps"] == total and net.config.bands == BANDS
    states = filesystem.find(f"{s3.bucket}/finetune/models/_sr-archive/training")
    assert any(path.endswith("state.safetensors") for path in states)
    assert not [path for path in states if path.endswith((".pkl", ".pt", ".pth"))]


def test_every_option_of_a_run_that_normalises_is_one_here() -> None:
    shared = {"normalise", "mask", "asset", "include", "exclude", "ray_address", "workers"}
    assert shared <= FinetuneSettings.model_fields.keys() & RunSettings.model_fields.keys()
