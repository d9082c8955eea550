"""A Ray cluster of several nodes on this machine, and what its metrics agents offer."""

from __future__ import annotations

import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ray
from prometheus_client.parser import text_string_to_metric_families
from ray.cluster_utils import Cluster

_REPORT = {"metrics_report_interval_ms": 500, "health_check_failure_threshold": 10}

Samples = Counter[tuple[str, str]]


@dataclass
class SmallCluster:
    """A head without CPUs and nodes that are added to it."""

    cluster: Cluster
    agents: dict[str, str] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return str(self.cluster.gcs_address)

    def add(self, cpus: int, **options: Any) -> str:
        """A node more; its id."""
        node: Any = self.cluster.add_node(
            num_cpus=cpus,
            include_dashboard=False,
            object_store_memory=78 << 20,
            dashboard_agent_listen_port=0,
            **options,
        )
        return str(node.node_id)

    def find_agents(self) -> None:
        """Where each node is scraped; asked while this process is connected."""
        for node in ray.nodes():
            place = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            self.agents[node["NodeID"]] = place

    def text(self, node: str) -> str:
        with urllib.request.urlopen(self.agents[node], timeout=10) as answer:
            return str(answer.read().decode())

    def samples(self, *nodes: str) -> Samples:
        """Our series on these nodes, by name and the value of our own label, over processes."""
        found: Samples = Counter()
        for node in nodes or self.agents:
            for family in text_string_to_metric_families(self.text(node)):
                for sample in family.samples:
                    if sample.name.startswith("ray_sr_archive_"):
                        own = {"stage", "code", "status", "state", "device"} & sample.labels.keys()
                        label = sample.labels[own.pop()] if own else ""
                        found[sample.name.removeprefix("ray_sr_archive_"), label] += sample.value
        return found

    def tiles(self, node: str) -> float:
        """How many the actors of a node have done."""
        return self.samples(node)["tiles_total", "cpu"]


@contextmanager
def small_cluster() -> Iterator[SmallCluster]:
    cluster: Any = Cluster()
    try:
        made = SmallCluster(cluster)
        made.add(0, _system_config=_REPORT)
        yield made
    finally:
        cluster.shutdown()
