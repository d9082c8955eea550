"""Credentials occur in nothing that is written, and a run listens to nobody who has no token."""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from flows.artifacts import _page
from infra.local_s3 import LocalS3
from infra.prefect_local import LocalPrefect
from infra.processes import free_port
from model import CheckpointError
from pipeline.actors import TileActor
from pipeline.errors import SceneError, UsageError
from pipeline.job import load_model
from pipeline.metrics import ActorMeters
from pipeline.ray_session import ray_session
from pipeline.readers import open_scene, scene_stem
from pipeline.run_report import RunReport, SceneRow
from pipeline.scene_job import Model
from pipeline.settings import RunSettings
from pipeline.storage import describe, open_filesystem, redact
from tests.archives import SCALE_FACTOR, counts, sr_archive, write_model
from tests.scenes import write_geotiff

SECRET = "hunter2Xq"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": f"AKIA{SECRET}",
    "AWS_SECRET_ACCESS_KEY": f"key/{SECRET}",
    "AWS_SESSION_TOKEN": f"session-{SECRET}",
    "AZURE_STORAGE_CONNECTION_STRING": f"AccountKey={SECRET}",
    "PREFECT_API_KEY": f"pnu_{SECRET}",
}


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{SECRET}@host/x.tif",
        f"https://{SECRET}@host/x.tif",
        f"https://user:p@{SECRET}@host/x.tif",
        f"s3://KEY:sec/{SECRET}@bucket/x.tif",
        f"https://host/x.tif?X-Amz-Signature={SECRET}&x=1",
        f"https://host/x.tif?sv=1&sig={SECRET}",
        f"simplecache::https://user:{SECRET}@host/x.tif?sig={SECRET}",
    ],
)
def test_no_form_of_a_url_keeps_its_secret(url: str) -> None:
    shown = redact(url)
    assert SECRET not in shown and shown.endswith("/x.tif")
    assert SECRET not in describe(ValueError(f"cannot open '{url}' now"))


@pytest.mark.parametrize(
    "url", ["s3://bucket/a@b.tif", "http://host:8080/a@b.tif", "/data/a@b.tif"]
)
def test_an_at_sign_in_a_path_is_no_secret(url: str) -> None:
    assert redact(url) == url


def test_named_credentials_in_errors_are_hidden() -> None:
    for name in ("AWSAccessKeyId", "X-Amz-Security-Token", "sig", "password", "account_key"):
        assert SECRET not in describe(OSError(f"refused: {name}={SECRET}&next=1"))


def test_a_signed_address_gives_an_id_without_its_signature() -> None:
    assert scene_stem(f"https://host/a/scene.tif?X-Amz-Signature={SECRET}") == "scene"


def test_messages_about_addresses_and_models_hold_no_secret(tmp_path: Path) -> None:
    for address in (f"no-such://user:{SECRET}@host", f"https://u:{SECRET}@[::bad/x.tif"):
        with pytest.raises((UsageError, SceneError)) as caught:
            open_filesystem(address)
            open_scene(address)
        assert SECRET not in str(caught.value)
    for model in (
        f"https://u:{SECRET}@127.0.0.1:9/net.pth?sig={SECRET}",
        f"{tmp_path}/absent.pth?token={SECRET}",
    ):
        with pytest.raises(UsageError) as refused:
            load_model(RunSettings(source="s", output="o", model=model))
        assert SECRET not in str(refused.value)
        assert isinstance(refused.value.__cause__, CheckpointError)


def test_artifacts_hold_no_secret() -> None:
    url = f"s3://user:{SECRET}@bucket/x?sig={SECRET}"
    run = RunSettings(source=url, output=url, model=url)
    rows = [SceneRow("a", "published", output=redact(url)), SceneRow("b", "quarantined", "no")]
    assert SECRET not in _page(run, RunReport("run", "now", rows))


class _Raises:
    def process(self, *_: object) -> None:
        raise OSError(f"403 for https://host/x?sig={SECRET}")

    prepare = process


def test_a_worker_says_no_secret() -> None:
    actor = TileActor.__new__(TileActor)
    actor._worker = _Raises()  # type: ignore[assignment]
    actor._meters = ActorMeters()
    failure: Any = actor.work(None, None)  # type: ignore[arg-type]
    assert SECRET not in failure.message and "403" in failure.message


class _Signed(SimpleHTTPRequestHandler):
    """Serves a folder to whoever has the signature, with byte ranges."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if f"sig={SECRET}" not in self.path or not path.is_file():
            self.send_error(403 if path.is_file() else 404)
            return
        data, wanted = path.read_bytes(), self.headers.get("Range")
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            end = min(int(last or len(data)), len(data) - 1)
            part = data[int(first) : end + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{end}/{len(data)}")
        else:
            part = data
            self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Signed, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def holders(*folders: Path) -> list[str]:
    """The files below folders whose name or content has the secret."""
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and (SECRET in path.name or SECRET.encode() in path.read_bytes()):
                found.append(str(path))
    return found


@pytest.fixture
def sessions() -> Iterator[Path]:
    """A folder for Ray's sessions; its path is short, for sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="sr-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.slow
def test_a_job_leaves_its_credentials_nowhere(
    tmp_path: Path, sessions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed addresses from a STAC catalogue: one that works, one refused, one that is no scene."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_TMPDIR", str(sessions))
    data, output = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    write_geotiff(data / "good.tif", counts(24, 24), scale=SCALE_FACTOR)
    (data / "broken.tif").write_bytes(b"II*\0" + bytes(20))
    with serving(data) as url:
        hrefs = {
            "good": f"{url}/good.tif?sig={SECRET}",
            "broken": f"{url}/broken.tif?sig={SECRET}",
            "absent": f"{url}/absent.tif?sig={SECRET}",
        }
        features = [
            {"type": "Feature", "id": name, "links": [], "properties": {"updated": "2024-01-01"},
             "assets": {"data": {"href": href, "roles": ["data"], "type": "image/tiff"}}}
            for name, href in hrefs.items()
        ]  # fmt: skip
        document = {"type": "FeatureCollection", "features": features}
        (tmp_path / "items.json").write_text(json.dumps(document))
        model = write_model(tmp_path)
        options = ["--model", model, "--tile", "16"]
        done = sr_archive("run", tmp_path / "items.json", output, "--json", *options)
        plain = sr_archive("run", tmp_path / "items.json", output, *options)
        listed = sr_archive("list", f"{url}/good.tif?sig={SECRET}x", "--json")
    rows = {row["scene_id"]: row["status"] for row in json.loads(done.stdout)["rows"]}
    assert rows == {"good": "published", "broken": "quarantined", "absent": "quarantined"}
    for each in (done, plain, listed):
        assert SECRET not in each.stdout + each.stderr
    assert list(sessions.rglob("gcs_server.out")), (
        "the session's logs are not where they are looked for"
    )
    assert holders(output, sessions) == []


# --- what listens ---------------------------------------------------------------------------------


def listening(processes: list[psutil.Process]) -> set[tuple[str, str]]:
    """(program, address) of the TCP sockets on which processes wait for others."""
    found = set()
    for process in processes:
        for each in process.net_connections("tcp"):
            if (
                each.status == psutil.CONN_LISTEN
                and not ipaddress.ip_address(each.laddr.ip).is_loopback
            ):
                found.add((process.name(), each.laddr.ip))
    return found


_STRANGER = """
import logging, ray, sys
try:
    ray.init(address=sys.argv[1], logging_level=logging.ERROR)
except BaseException as error:
    print("refused", type(error).__name__)
else:
    print("joined")
"""


@pytest.mark.slow
def test_what_a_run_s_ray_listens_on_asks_for_a_token(tmp_path: Path) -> None:
    if ray.is_initialized():
        pytest.skip("another test's Ray runs in this process")
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
    with ray_session(None):
        assert os.environ["RAY_AUTH_MODE"] == "token"
        address = ray.get_runtime_context().gcs_address
        open_to_others = listening(psutil.Process().children(recursive=True))
        stranger = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
        done = subprocess.run(
            [sys.executable, "-c", _STRANGER, address],
            env=stranger | {"HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        token = os.environ["RAY_AUTH_TOKEN"].encode()
        session = Path(ray._private.worker._global_node.get_session_dir_path())
        logs = [path for path in (session / "logs").rglob("*") if path.is_file()]
        assert logs and not any(token in path.read_bytes() for path in logs)
    after = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
    assert before == after
    assert done.stdout.startswith("refused"), done.stdout + done.stderr
    programs = {name.partition(":")[0] for name, _ in open_to_others}
    # docs/reliability.md names these; whatever else should come to listen must be looked at first.
    # "python" is a process of Ray that has not taken its name yet.
    assert programs <= {"gcs_server", "raylet", "ray", "python"}, open_to_others


def test_the_local_s3_listens_on_loopback_only(s3: LocalS3) -> None:
    assert s3.pid is not None
    assert listening([psutil.Process(s3.pid)]) == set()


@pytest.mark.slow
def test_the_local_prefect_listens_on_loopback_only(tmp_path: Path) -> None:
    with LocalPrefect(tmp_path, free_port()):
        assert listening(psutil.Process().children(recursive=True)) == set()


def test_a_model_names_its_digest_only(tmp_path: Path) -> None:
    """The path of a checkpoint, which may be a signed address, is part of no record."""
    model = load_model(RunSettings(source="s", output="o", model=str(write_model(tmp_path))))
    assert set(Model.__dataclass_fields__) == {"data", "card", "digest", "halo"}
    assert str(tmp_path) not in model.card.model_dump_json()
