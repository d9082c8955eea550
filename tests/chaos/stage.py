"""Where trials take place: Ray on several nodes, an S3 server, a small disk, an archive."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import s3fs
from fsspec.implementations.local import LocalFileSystem
from ray._private import services
from ray.cluster_utils import Cluster

from infra.local_s3 import LocalS3
from pipeline.errors import StoreUnavailable
from tests.archives import SCALE_FACTOR, counts, write_model
from tests.chaos.child import drive
from tests.chaos.nursery import FOLDER, LAUNCH, Nursery
from tests.scenes import write_geotiff, write_zarr

TILE = 16
SCENES = {"first": (64, 64), "second": (40, 56)}  # 16 and 12 tiles
ACTORS = 3  # on two nodes, one of which has two
LONGEST = 240.0  # seconds for one run of a trial
BUDGET = 15  # seconds for a request to the S3 server
_NODE_CPUS = (2, 1)
_POLL = 0.01
_PYTHON_OF_RAY = "_build_python_executable_command_memory_profileable"
_SMALL_DISK = 64 << 20
_ENVIRONMENT = {
    "SR_ARCHIVE_LEASE_SECONDS": "3",
    "SR_ARCHIVE_STORE_RETRY_SECONDS": str(BUDGET),
    # A raylet that does not answer is given up after about 2 s, and not after 15.
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
    "RAY_worker_niceness": "0",  # not 15, which starves them on a machine that does other work
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",  # one CPU each; threads that wait for each other cost most of the time
}

Bytes = dict[str, dict[str, bytes]]


@dataclass(frozen=True)
class Place:
    """One trial's output and what is written down about it."""

    source: str
    output: str
    log: Path
    filesystem: Any

    @property
    def report(self) -> Path:
        return self.log.with_suffix(".json")

    def lines(self) -> list[list[str]]:
        """The log of the drivers and actors, in words."""
        text = self.log.read_text() if self.log.exists() else ""
        return [line.split() for line in text.splitlines()]

    def begun(self) -> Counter[str]:
        """How often each piece of work was begun, in all runs."""
        return Counter(f"{line[1]} {line[2]}" for line in self.lines() if line[0] == "begin")

    def seen(self, name: str) -> bool:
        """Whether readers find a scene."""
        return bool(self.filesystem.exists(f"{self._path}/{name}.zarr/zarr.json"))

    def keys(self, name: str) -> dict[str, str]:
        """Where the objects of a scene are, but for the root: that tells the time of publishing."""
        self.filesystem.invalidate_cache()
        base = f"{self._path}/{name}.zarr/"
        found = {path[len(base) :]: path for path in self.filesystem.find(base)}
        return {key: path for key, path in found.items() if key != "zarr.json"}

    def contents(self) -> Bytes:
        """All that readers find."""
        return {
            name: {key: self.filesystem.cat_file(path) for key, path in self.keys(name).items()}
            for name in SCENES
            if self.seen(name)
        }

    def leftovers(self) -> list[str]:
        """Files that a process had begun to write and that are still there."""
        found = self.filesystem.find(self._path)
        return [path for path in found if path.endswith((".tmp", ".partial"))]

    @property
    def _path(self) -> str:
        return self.output.removeprefix("s3://")


class Stage:
    """The archive, all that can be struck, and what an undisturbed run makes of the archive."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "logs").mkdir(parents=True)
        self._write_archive()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.chaos.child", "pipeline.worker"])
        with ExitStack() as parts:
            self._start_parts(parts)
            self._run_undisturbed()
            self._parts = parts.pop_all()

    def close(self) -> None:
        self._parts.close()

    def _start_parts(self, parts: ExitStack) -> None:
        parts.callback(_restore, dict(os.environ))
        self.s3 = parts.enter_context(LocalS3(bucket="chaos"))
        self.environment = _ENVIRONMENT | self.s3.environment()
        os.environ.update(self.environment | {FOLDER: str(self.folder)})
        nursery = Nursery(self.folder)
        parts.callback(nursery.close)
        parts.enter_context(
            mock.patch.object(
                services, _PYTHON_OF_RAY, lambda *_, **__: [sys.executable, str(LAUNCH)]
            )
        )
        self._cluster = Cluster()
        parts.callback(self._cluster.shutdown)
        self._add_node(0)
        self.nodes = [self._add_node(cpus) for cpus in _NODE_CPUS]
        self.small = self._mount()
        if self.small is not None:
            parts.callback(subprocess.run, ["umount", "--lazy", self.small], check=True)

    def _run_undisturbed(self) -> None:
        self.finish(self.place("reference"))
        self.reference = self.place("reference").contents()
        assert set(self.reference) == set(SCENES)
        started = time.monotonic()  # of a second run: the first one warms Ray and the fork server
        self.finish(self.place("disk-timed", self.small))
        self.typical = time.monotonic() - started
        self.need = 0 if self.small is None else shutil.disk_usage(self.small).used

    def place(self, name: str, on: Path | None = None) -> Place:
        log = self.folder / "logs" / f"{name}.log"
        output = str((on or self.folder) / name)
        return Place(str(self.source), output, log, LocalFileSystem())

    def place_on_s3(self, name: str) -> Place:
        log = self.folder / "logs" / f"{name}.log"
        own = self.s3.environment()
        filesystem = s3fs.S3FileSystem(
            endpoint_url=self.s3.endpoint,
            key=own["AWS_ACCESS_KEY_ID"],
            secret=own["AWS_SECRET_ACCESS_KEY"],
            skip_instance_cache=True,
        )
        if not filesystem.exists("chaos/source"):
            filesystem.put(f"{self.source}/", "chaos/source", recursive=True)
        return Place(self.s3.url("source"), self.s3.url(name), log, filesystem)

    def start(
        self, place: Place, fate: dict[str, Any] | None = None, *, own_ray: bool = False
    ) -> Any:
        """A driver process on this output, on the common Ray or one that it starts itself."""
        options = {
            "source": place.source,
            "output": place.output,
            "model": str(self._model),
            "tile": TILE,
            "workers": (os.cpu_count() or 1) if own_ray else ACTORS,  # so each has one CPU
            "ray_address": None if own_ray else self._cluster.gcs_address,
        }
        told = (options, self.environment, fate or {}, str(place.log), str(place.report))
        process = self._context.Process(target=drive, args=told)
        process.start()
        return process

    def finish(self, place: Place) -> int:
        """Run until every scene is published; the number of runs.

        Raises:
            TimeoutError: that takes too long.
            RuntimeError: a run ended without a report, or was refused.
        """
        deadline = time.monotonic() + LONGEST
        runs = 0
        while time.monotonic() < deadline:
            runs += 1
            place.report.unlink(missing_ok=True)
            ended(self.start(place), deadline - time.monotonic())
            report = read_report(place)
            if "usage" in report:
                raise RuntimeError(f"a run again was refused: {report['usage']}")
            if all(place.seen(name) for name in SCENES):
                return runs
            time.sleep(0.5)  # a lease of the run that was killed has still to end
        raise TimeoutError(f"not all was published within {LONGEST:.0f} s")

    def heal(self) -> None:
        """All is there again that a trial may have struck."""
        if not self.s3.alive:
            self.s3.start()
        for place, node in enumerate(self.nodes):
            if not is_alive(raylet_of(node)):
                self._cluster.worker_nodes.discard(node)
                node.kill_all_processes(check_alive=False, allow_graceful=False)
                self.nodes[place] = self._add_node(_NODE_CPUS[place])

    def _add_node(self, cpus: int) -> Any:
        return self._cluster.add_node(
            num_cpus=cpus,
            setup_worker_path=str(LAUNCH),
            include_dashboard=False,
            object_store_memory=78 << 20,
            dashboard_agent_listen_port=0,
        )

    def _write_archive(self) -> None:
        self.source = self.folder / "source"
        self.source.mkdir()
        first, second = (counts(*size, seed=seed) for seed, size in enumerate(SCENES.values()))
        write_zarr(self.source / "first.zarr", first, scale_factor=SCALE_FACTOR)
        write_geotiff(self.source / "second.tif", second, scale=SCALE_FACTOR)
        self._model = write_model(self.folder)

    def _mount(self) -> Path | None:
        """A small file system of its own, where this process may mount one."""
        folder = self.folder / "small"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK}", "chaos", str(folder)]
        done = subprocess.run(command, capture_output=True, check=False)
        return folder if done.returncode == 0 else None


def _restore(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def raylet_of(node: Any) -> int:
    """The process id of a node's raylet."""
    return int(node.all_processes["raylet"][0].process.pid) if node.all_processes else 0


def is_alive(pid: int) -> bool:
    try:
        return pid > 0 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ended(process: Any, seconds: float = LONGEST) -> None:
    """Wait for a driver.

    Raises:
        TimeoutError: it does not end; it is killed then.
    """
    process.join(max(seconds, 1.0))
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"a run did not end within {seconds:.0f} s")


def read_report(place: Place) -> dict[str, Any]:
    """What a driver reported.

    Raises:
        RuntimeError: nothing, so it ended with an error that it does not know.
    """
    if not place.report.exists():
        raise RuntimeError("a run that was not killed ended without a report")
    report: dict[str, Any] = json.loads(place.report.read_text())
    return report


class Reader(threading.Thread):
    """Someone who opens scenes all the time; remembers those that were visible and not whole."""

    def __init__(self, stage: Stage, place: Place) -> None:
        super().__init__(daemon=True)
        self._reference, self._place = stage.reference, place
        self._ended = threading.Event()
        self.partial: set[str] = set()

    def run(self) -> None:
        whole: set[str] = set()
        while not self._ended.wait(_POLL):
            for name in self._reference.keys() - whole:
                try:
                    if self._place.seen(name):
                        self._look(name)
                        whole.add(name)
                except (OSError, StoreUnavailable):  # a server that is away shows nothing
                    continue

    def _look(self, name: str) -> None:
        if not self._reference[name].keys() <= self._place.keys(name).keys():
            self.partial.add(name)

    def end(self) -> list[str]:
        self._ended.set()
        self.join()
        return sorted(self.partial)
