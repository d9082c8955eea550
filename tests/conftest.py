"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local_s3 import LocalS3
from infra.prefect_local import LocalPrefect
from infra.processes import free_port

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
