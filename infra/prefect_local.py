"""A Prefect server, a process worker and the deployments of prefect.yaml on this machine."""

from __future__ import annotations

import http
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import yaml

from infra.processes import StartError, port_is_free, start, stop, wait_until

ROOT = Path(__file__).resolve().parent.parent
AUTOMATIONS = ROOT / "infra" / "prefect" / "automations.yaml"
POOL = "sr-pool"
DEPLOYMENT = "sr-archive/default"
NEW_ACQUISITIONS = "sr-archive/new-acquisitions"
ARRIVALS_TOKEN = "SR_ARCHIVE_ARRIVALS_TOKEN"  # variable with what notifications must carry
SERVER_TIMEOUT = 120.0  # the first start creates the database
WORKER_TIMEOUT = 60.0
COMMAND_TIMEOUT = 120.0
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback needs no proxy
_TRIES = 5  # of a request that a busy server puts off
# The worker first ends its flow runs.
PATIENCE = {"worker": 20.0, "server": 5.0, "arrivals": 5.0}
DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
# These would lead the commands to another server, or give this one another database.
FOREIGN = ("PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_API_AUTH_STRING",
           "PREFECT_SERVER_API_AUTH_STRING", "PREFECT_API_DATABASE_CONNECTION_URL",
           DATABASE, "PREFECT_SERVER_API_BASE_PATH",
           "PREFECT_UI_API_URL", "PREFECT_PROFILES_PATH")  # fmt: skip


@dataclass(frozen=True)
class Watch:
    """An archive whose new scenes are processed as they arrive.

    Attributes:
        source: folder or bucket prefix.
        output: of the results.
        token: that the bucket's notifications carry.
        port: where they are taken, on 127.0.0.1.
        quiet: seconds without a new object until a run begins.
    """

    source: str
    output: str
    token: str
    port: int
    quiet: float = 30.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"


class LocalPrefect:
    """Server, worker and deployments, up together and down together.

    Args:
        home: folder for the database, the logs and Prefect's settings.
        port: of the server, on 127.0.0.1.
        verbose: the worker writes to this terminal instead of a log file.
        watch: the archive of the deployment new-acquisitions; without one it is not made.
        database: SQLAlchemy's address of a Postgres database; default: SQLite below `home`.
    """

    def __init__(
        self,
        home: Path,
        port: int,
        verbose: bool = False,
        watch: Watch | None = None,
        database: str | None = None,
    ) -> None:
        self.home = home.resolve()
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.api = f"{self.url}/api"
        self._verbose = verbose
        self._watch = watch
        self._database = {} if database is None else {DATABASE: database}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> LocalPrefect:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Bring all of it up.

        Raises:
            StartError: a part did not start; the line says which and where its log is.
        """
        if not port_is_free(self.port):
            raise StartError(
                f"port {self.port} is in use: stop what listens there, or choose "
                f"another port (make serve PORT={self.port + 42})"
            )
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / ".gitignore").write_text("*\n")
        self._start_server()
        self.prefect("work-pool", "create", POOL, "--type", "process", "--overwrite")
        self.prefect("--no-prompt", "deploy", "--name", "default")
        self._make_automations()
        self._start_worker()
        if self._watch is not None:
            self._start_arrivals(self._watch)

    def stop(self) -> None:
        """End the worker with its flow runs, then the server."""
        for name in reversed(list(self._processes)):
            stop(self._processes.pop(name), PATIENCE[name])

    def pid(self, name: str) -> int:
        """The process id of the `server` or the `worker`."""
        return self._processes[name].pid

    def restart(self, name: str) -> None:
        """Start the `server` or the `worker` again, after it has ended.

        Raises:
            StartError: it did not start.
        """
        self._processes.pop(name).wait()
        self._start_server() if name == "server" else self._start_worker()

    def ended(self) -> str | None:
        """The name of a part that ended by itself, or None."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                return name
        return None

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """`base` (default: this process's environment) with this server as Prefect's API."""
        merged = dict(os.environ if base is None else base)
        for name in FOREIGN:
            merged.pop(name, None)
        return merged | {
            "PREFECT_API_URL": self.api,
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # seconds; the automations rely on it
            "DO_NOT_TRACK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def prefect(
        self,
        *arguments: str,
        timeout: float = COMMAND_TIMEOUT,
        extra: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """Run a `prefect` command against this server and return what it prints.

        Args:
            arguments: of the command.
            timeout: seconds.
            extra: variables of its environment.

        Raises:
            StartError: it failed; the message holds its last line.
        """
        command = " ".join(("prefect", *arguments))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "prefect", *arguments],
                cwd=ROOT,
                env={**self.environment(), **extra},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired:
            raise StartError(f"`{command}` did not end within {timeout:.0f} s") from None
        if done.returncode != 0:
            lines = done.stdout.strip().splitlines() or ["no message"]
            raise StartError(f"`{command}` failed: {lines[-1]}")
        return done.stdout

    def request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """One call of the server's REST API: POST with a body, GET without.

        A server whose database is busy (503) is asked again.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.api}{path}", data=data, headers=headers)
        for left in reversed(range(_TRIES)):
            try:
                with _OPENER.open(request, timeout=10) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != http.HTTPStatus.SERVICE_UNAVAILABLE or not left:
                    raise
                time.sleep(1.0)

    def _start_server(self) -> None:
        log = self.home / "server.log"
        command = ["server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        process = self._run("server", command, log, self._database)
        wait_until(self._healthy, process, SERVER_TIMEOUT, "the Prefect server", log)

    def _start_worker(self) -> None:
        log = None if self._verbose else self.home / "worker.log"
        command = ["worker", "start", "--pool", POOL, "--name", f"local-{os.getpid()}"]
        process = self._run("worker", command, log)
        wait_until(self._worker_online, process, WORKER_TIMEOUT, "the Prefect worker", log)

    def _make_automations(self) -> None:
        """Those of infra/prefect that the server, if it was here before, does not have yet."""
        known = {each["name"] for each in self.request("/automations/filter", {})}
        for automation in yaml.safe_load(AUTOMATIONS.read_text())["automations"]:
            if automation["name"] not in known:
                self.request("/automations/", automation)

    def _start_arrivals(self, watch: Watch) -> None:
        place = {"SR_ARCHIVE_SOURCE": watch.source, "SR_ARCHIVE_OUTPUT": watch.output}
        self.prefect("--no-prompt", "deploy", "--name", "new-acquisitions", extra=place)
        log = self.home / "arrivals.log"
        options = ["--source", watch.source, "--port", str(watch.port), "--quiet", str(watch.quiet)]
        environment = self.environment() | {ARRIVALS_TOKEN: watch.token}
        process = start([sys.executable, "-m", "infra.arrivals", *options], log, environment, ROOT)
        self._processes["arrivals"] = process
        ready = partial(_answers, f"{watch.url}health")
        wait_until(ready, process, WORKER_TIMEOUT, "the receiver of notifications", log)

    def _run(
        self,
        name: str,
        arguments: list[str],
        log: Path | None,
        extra: Mapping[str, str] = MappingProxyType({}),
    ) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "prefect", *arguments]
        process = start(command, log, {**self.environment(), **extra}, ROOT)
        self._processes[name] = process
        return process

    def _healthy(self) -> bool:
        return _answers(f"{self.api}/health")

    def _worker_online(self) -> bool:
        try:
            workers = self.request(f"/work_pools/{POOL}/workers/filter", {})
        except (urllib.error.URLError, OSError, ValueError):
            return False
        name = f"local-{os.getpid()}"
        return any(w["name"] == name and w["status"] == "ONLINE" for w in workers)


def _answers(url: str) -> bool:
    """Whether a service says that it is well."""
    try:
        with _OPENER.open(url, timeout=10) as answer:
            return json.load(answer) is True
    except (OSError, ValueError):
        return False
