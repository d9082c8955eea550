"""`ray job submit` to a head that asks for a token, as docs/operate.md has it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from infra.processes import free_port, start, stop, wait_until
from tests.archives import command, write_archive, write_model
from tests.processes import running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parent.parent
RAY = str(Path(sys.executable).with_name("ray"))


@dataclass(frozen=True)
class Head:
    """A Ray head: the addresses of its dashboard and for clients, and the file of its token."""

    dashboard: str
    client: str
    token: Path

    def ray(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Ray's command with this environment, beside the address, and no other token."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        given = {"RAY_API_SERVER_ADDRESS": self.dashboard, "HOME": str(self.token.parent)}
        return subprocess.run(
            [RAY, *arguments],
            env=clean | given | environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    @property
    def known(self) -> dict[str, str]:
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def answers(self) -> bool:
        """Whether the dashboard is up; it says 401 to who has no token."""
        try:
            urllib.request.urlopen(f"{self.dashboard}/api/version", timeout=5)
        except urllib.error.HTTPError as error:
            return error.code == 401
        except OSError:
            return False
        raise AssertionError("it answers without a token")


@contextmanager
def ray_head(folder: Path) -> Iterator[Head]:
    """Started as an operator does; its own folder, so that no other Ray here is found or is hit."""
    token, log, port, client = folder / "token", folder / "head.log", free_port(), free_port()
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    head = Head(f"http://127.0.0.1:{port}", f"ray://127.0.0.1:{client}", token)
    options = {
        "num-cpus": 2,
        "node-ip-address": "127.0.0.1",
        "dashboard-host": "127.0.0.1",
        "dashboard-port": port,
        "port": free_port(),
        "ray-client-server-port": client,
        "dashboard-agent-listen-port": free_port(),
        "object-store-memory": 100 << 20,
    }
    with tempfile.TemporaryDirectory(prefix="ray-") as short:  # sockets have short names
        own = {
            "RAY_TMPDIR": short,
            "PYTHONPATH": str(ROOT),
            "RAY_USAGE_STATS_ENABLED": "0",
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": "10",
        }
        words = [f"--{name}={value}" for name, value in options.items()]
        process = start(
            [RAY, "start", "--head", "--block", *words], log, os.environ | own | head.known, folder
        )
        try:
            wait_until(head.answers, process, 120, "Ray", log)
            yield head
        finally:
            stop(process, patience=1.0)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("head")) as started:
        yield started


def published(output: Path) -> list[str]:
    names = ("envi", "store", "tiff")
    return [name for name in names if (output / f"{name}.zarr" / "zarr.json").exists()]


def test_a_job_is_submitted_with_the_token_and_refused_without(head: Head, tmp_path: Path) -> None:
    source, output = write_archive(tmp_path / "source"), tmp_path / "out"
    model = write_model(tmp_path)
    run = command("run", source, output, "--model", model, "--tile", "16", "--devices", "cpu")
    submit = ("job", "submit", "--submission-id", "night-1", "--", *run)
    unknown = head.ray(*submit)
    assert unknown.returncode != 0 and "authentication" in unknown.stderr.lower()
    wrong = head.ray(*submit, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
    assert wrong.returncode != 0 and "authentication" in wrong.stderr.lower()
    assert not output.exists()

    done = head.ray(*submit, **head.known)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 published" in done.stdout
    assert "JobStatus.SUCCEEDED" in head.ray("job", "list", **head.known).stdout
    assert published(output) == ["envi", "store", "tiff"]
    assert head.token.read_text() not in done.stdout + done.stderr


def test_a_driver_elsewhere_runs_through_ray_client(head: Head, tmp_path: Path) -> None:
    """Its metrics are seen by nobody, and do no harm."""
    source, output = write_archive(tmp_path / "source"), tmp_path / "out"
    options = ("--model", write_model(tmp_path), "--tile", 16, "--ray-address", head.client)
    done = subprocess.run(
        command("run", source, output, *options),
        env=os.environ | head.known,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert published(output) == ["envi", "store", "tiff"]


JOIN = """
import sys, ray
from pipeline.ray_session import ray_session
with ray_session(sys.argv[1]):
    print(int(ray.cluster_resources()["CPU"]), "processors")
"""


def test_a_server_for_a_driver_that_dies_at_once_is_asked_for_again(head: Head) -> None:
    """As it does now and then of its own, when Ray forks it."""
    earlier = {server.pid for server in client_servers()}
    driver = subprocess.Popen(
        [sys.executable, "-c", JOIN, head.client],
        env=os.environ | head.known,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    killed = kill_first_server(driver, earlier)
    said, _ = driver.communicate(timeout=240)
    assert killed and driver.returncode == 0, said
    assert "2 processors" in said


def client_servers() -> Iterator[psutil.Process]:
    """The processes of Ray Client that a head has for its drivers."""
    return running("--mode=specific-server")


def kill_first_server(driver: subprocess.Popen[str], earlier: set[int]) -> bool:
    """The one that the head starts for this driver; False if it started none."""
    while driver.poll() is None:
        for server in client_servers():
            if server.pid not in earlier:
                with suppress(psutil.NoSuchProcess):
                    server.kill()
                    return True
        time.sleep(0.01)
    return False
