"""Fixtures that several test files share."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from infra.local_s3 import LocalS3
from infra.prefect_local import LocalPrefect
from infra.processes import free_port
from pipeline.run_report import RunReport, SceneRow
from pipeline.store import STATE
from tests.archives import counts, forget_connections, publish, write_archive, write_model
from tests.scenes import write_geotiff

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session", autouse=True)
def ray_env() -> Iterator[None]:
    """Ray sends no usage statistics and starts its workers with this interpreter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        # A developer's own defaults would change what the tests run.
        for name in [name for name in os.environ if name.startswith("SR_ARCHIVE_")]:
            if not name.startswith("SR_ARCHIVE_TEST_"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session")
def s3() -> Iterator[LocalS3]:
    """A local S3 server; this process and its children find it through the environment."""
    with LocalS3(bucket="archive") as server, pytest.MonkeyPatch.context() as patch:
        merged = server.merged_environment()
        for name in os.environ.keys() - merged.keys():
            patch.delenv(name)
        for name, value in merged.items():
            if os.environ.get(name) != value:
                patch.setenv(name, value)
        forget_connections()
        yield server


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPrefect]:
    """A Prefect server with a process worker and the deployment."""
    with LocalPrefect(tmp_path_factory.mktemp("prefect"), free_port()) as server:
        yield server


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real scenes, which are not part of the repository."""
    return _optional("SR_ARCHIVE_TEST_DATA", "data", "real scenes")


@pytest.fixture(scope="session")
def golden() -> Path:
    """Inputs and outputs of the published network, which are not part of the repository."""
    return _optional("SR_ARCHIVE_TEST_GOLDEN", "golden", "reference outputs")


def _optional(variable: str, name: str, what: str) -> Path:
    folder = Path(os.environ.get(variable) or SHARED / name)
    if not folder.is_dir():
        pytest.skip(f"no {what}: ../shared/{name} is absent and {variable} names no folder")
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch computes in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network for the scenes of `tests.archives`."""
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scene of each common format; no test changes it."""
    return write_archive(tmp_path_factory.mktemp("data") / "archive")


@pytest.fixture(scope="session")
def archive_output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `source` and the `output` made of it; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("output")
    write_archive(folder / "source")
    (folder / "source" / "deep").mkdir()
    write_geotiff(folder / "source" / "deep" / "rgb.tif", counts(20, 20, bands=3), tags=False)
    publish(str(folder / "source"), str(folder / "output"), write_model(folder))
    rows = [SceneRow(name, "published") for name in ("envi", "store", "tiff")]
    rows.append(SceneRow("deep__rgb", "quarantined"))
    record = asdict(RunReport("20260101T000000Z-abc123", "2026-01-01T00:00:00+00:00", rows, 1.5))
    (folder / "output" / STATE / "runs").mkdir()
    (folder / "output" / STATE / "runs" / f"{record['run_id']}.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def uncertain(archive_output: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the `out` made of one of these scenes, which holds the spread."""
    folder = tmp_path_factory.mktemp("uncertain")
    source = archive_output / "source" / "tiff.tif"
    publish(str(source), str(folder / "out"), write_model(folder), uncertainty=True)
    return folder
