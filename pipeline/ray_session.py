"""A Ray to work with: joined or started here, and how its processors and GPUs are shared out."""

from __future__ import annotations

import gc
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import ray

from pipeline.errors import UsageError
from pipeline.footprint import tiles_in_flight
from pipeline.ray_token import own_token
from pipeline.storage import describe, redact

_LOCAL_OBJECT_STORE = 256 << 20  # weights and references only
_CONNECT_SECONDS = 10.0
_CLIENT_ATTEMPTS = 4
_ROUNDING = 1e-6  # three thirds of a GPU are one


@contextmanager
def ray_session(address: str | None) -> Iterator[None]:
    """Join the cluster at `address`, the one this process was submitted to, or start one here.

    A Ray that this process already uses is used as it is and left running. SIGTERM interrupts as
    Ctrl-C does, unless the caller handles it otherwise.

    Raises:
        UsageError: the cluster cannot be reached.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS")
    _check_reachable(address)
    before = signal.getsignal(signal.SIGTERM)
    with nullcontext() if address else own_token():
        _connect(address)
        _on_terminate(before if callable(before) else signal.default_int_handler)
        try:
            yield
        finally:
            _on_terminate(before)
            # References that another thread collects during the shutdown make Ray end the process.
            gc.collect()
            ray.shutdown()


def _on_terminate(handler: Any) -> None:
    """Ray's own handler aborts the process: leases would stay, and Prefect would not know why."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _connect(address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            _join(address, quiet)
        else:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=_LOCAL_OBJECT_STORE,
                _node_ip_address="127.0.0.1",
                # Ray would keep 3 KB on each of the last 100 000 tiles, for a dashboard.
                _system_config={"task_events_report_interval_ms": 0},
                **quiet,
            )
    except Exception as error:  # a start that takes too long is a bare Exception
        place = redact(address or "this machine")
        raise UsageError(f"cannot use Ray at {place}: {describe(error)}") from error


def _join(address: str, options: Mapping[str, Any]) -> None:
    """Connect, by Ray Client at up to `_CLIENT_ATTEMPTS` tries.

    A head forks a process for each driver of Ray Client while its own threads use gRPC. Of Ray 2.60
    up to one such process in ten dies at once where the machine is busy.
    """
    for attempt in range(1, _CLIENT_ATTEMPTS + 1):
        try:
            ray.init(address=address, **options)
            return
        except ConnectionAbortedError:
            if attempt == _CLIENT_ATTEMPTS:
                raise


def _check_reachable(address: str | None) -> None:
    """Fail within seconds where nothing listens; Ray itself would go on trying for minutes."""
    match = re.fullmatch(r"(?:ray://)?(?P<host>[^:/]+):(?P<port>\d+)", address or "")
    if match is None:
        return
    try:
        socket.create_connection((match["host"], int(match["port"])), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"--ray-address {address}: nothing answers there ({error}); start a head with "
            "`ray start --head`, or leave the option out to run on this machine"
        ) from None


Nodes = Sequence[Mapping[str, float]]


def nodes_now() -> Nodes:
    """The resources of each node that is alive."""
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in known if node["Alive"]]


@dataclass(frozen=True)
class Share:
    """What one actor gets.

    Attributes:
        device: any: a GPU if the actor finds one that works, else its CPUs.
        workers: how many actors there are at first.
        grows: nobody said how many; nodes that join get some too.
        beside: what actors on nodes without a GPU get, where there are both.
    """

    device: Literal["cpu", "cuda", "any"]
    workers: int
    cpus: float
    gpus: float
    grows: bool = False
    beside: Share | None = None

    @cached_property
    def in_flight(self) -> int:
        """Tiles that each actor has at a time."""
        return tiles_in_flight(self.cpus, self.gpus)

    @property
    def parts(self) -> list[Share]:
        """Of each kind of actor its own; those with a GPU come first."""
        return [self, *(self.beside.parts if self.beside else [])]

    def places(self, nodes: Nodes) -> int:
        """How many actors with this share the nodes hold, were they empty."""
        if self.device == "any" and not self.gpus:
            nodes = _without_gpus(nodes)
        return sum(self._places_on(node) for node in nodes)

    def _places_on(self, node: Mapping[str, float]) -> int:
        places = int(node.get("CPU", 0) / self.cpus)
        if self.gpus:  # an actor's part is of one GPU
            places = min(places, int(node.get("GPU", 0)) * int(1 / self.gpus + _ROUNDING))
        return places

    @classmethod
    def of_cluster(
        cls,
        devices: str,
        workers: int | None,
        cpus: int | None = None,
        gpus: float | None = None,
    ) -> Share:
        """One actor per GPU, or per two CPUs, of what Ray has now and of nodes that join later.

        Args:
            devices: auto, cpu, cuda, or mixed: actors on GPUs and on nodes that have none.
            workers: how many actors.
            cpus: of each actor, whether Ray has them yet or not: an autoscaler brings them.
            gpus: the same of GPUs, or a part of one.

        Raises:
            UsageError: GPUs are asked for and there are none, or more workers than CPUs, or a
                number of workers that are of two kinds.
        """
        return cls.of_nodes(nodes_now(), devices, workers, cpus, gpus)

    @classmethod
    def of_nodes(
        cls,
        nodes: Nodes,
        devices: str,
        workers: int | None,
        cpus: int | None = None,
        gpus: float | None = None,
    ) -> Share:
        """The same from each node's resources.

        A share that was not asked for is no larger than the node it is for: an actor that fits on
        no node would be waited for without end.
        """
        if devices == "mixed":
            return cls._mixed(nodes, workers, cpus, gpus)
        share = cls._divided(nodes, devices, workers, cpus, gpus)
        if workers:
            return share
        return replace(share, workers=max(1, share.places(nodes)), grows=True)

    @classmethod
    def _mixed(
        cls, nodes: Nodes, workers: int | None, cpus: int | None, gpus: float | None
    ) -> Share:
        if workers:
            raise UsageError("--workers: with --devices mixed each node gets what it has room for")
        plain = _without_gpus(nodes)
        with_gpus = [node for node in nodes if node.get("GPU")]
        found = [
            replace(cls.of_nodes(part, devices, None, cpus, asked), device="any")
            for part, devices, asked in ((with_gpus, "cuda", gpus), (plain, "cpu", None))
            if any(node.get("CPU") for node in part)
        ]
        if not found:
            raise UsageError("--devices mixed: Ray has no node yet; use --devices cpu or cuda")
        return replace(found[0], beside=found[1]) if len(found) > 1 else found[0]

    @classmethod
    def _divided(
        cls,
        nodes: Nodes,
        devices: str,
        workers: int | None,
        cpus: int | None,
        gpus: float | None,
    ) -> Share:
        gpus_now = int(sum(node.get("GPU", 0) for node in nodes))
        if devices == "cpu" and gpus:
            raise UsageError("--gpus-per-worker: there are none with --devices cpu")
        if devices == "cpu" or not (gpus_now or gpus):
            if devices == "cuda":
                raise UsageError("--devices cuda: Ray sees no GPU; use --devices auto or cpu")
            return cls._of_cpus(nodes, workers, cpus)
        count = workers or int(gpus_now // (gpus or 1))
        if not count:
            raise UsageError("--workers: how many? Ray has no GPU yet from which to tell")
        each = gpus or min(1.0, gpus_now / count)
        beside = [node.get("CPU", 0) * each / node["GPU"] for node in nodes if node.get("GPU")]
        threads = cpus or max(1, int(min([_cpus(nodes) / (2 * count), *beside])))
        return cls("cuda", count, float(threads), each)

    @classmethod
    def _of_cpus(cls, nodes: Nodes, workers: int | None, each: int | None) -> Share:
        there = _cpus(nodes)
        count = workers or max(1, there // (each or 2))
        if each is None and count > there:
            raise UsageError(f"--workers {count}: Ray has {there} CPUs; use {there} or fewer")
        largest = max([1, *(int(node.get("CPU", 0)) for node in nodes)])
        return cls("cpu", count, float(each or min(there // count, largest)), 0.0)


def _without_gpus(nodes: Nodes) -> Nodes:
    return [node for node in nodes if not node.get("GPU")]


def _cpus(nodes: Nodes) -> int:
    return max(1, int(sum(node.get("CPU", 0) for node in nodes)))
