"""A run on a real cluster to which a node is added, and what Prometheus finds there afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import RunSettings, events
from pipeline.events import Event
from pipeline.job import run
from pipeline.store import SceneStore
from tests.archives import NODATA, SCALE_FACTOR, counts, write_model
from tests.clusters import SmallCluster, small_cluster
from tests.scenes import write_zarr

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PATIENCE = 120.0


def until(true: Callable[[], bool]) -> bool:
    """Whether it became true within a while."""
    deadline = time.monotonic() + PATIENCE
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


class Joining:
    """Adds a node after the first tile, and slows the driver down until that node has done some."""

    def __init__(self, cluster: SmallCluster) -> None:
        self.cluster, self.node, self.tiles, self.seen = cluster, "", 0, False
        self._deadline = time.monotonic() + PATIENCE

    def __call__(self, event: Event) -> None:
        if not isinstance(event, events.TileFinished):
            return
        self.tiles += 1
        if not self.node:
            self.node = self.cluster.add(1)
        if not self.seen and time.monotonic() < self._deadline:
            time.sleep(0.5)
            self.cluster.find_agents()
            self.seen = self.cluster.samples(self.node)["tiles_total", "cpu"] > 0


def write_source(folder: Path) -> Path:
    """A scene of 400 tiles, one with an unreadable part, one without a valid pixel."""
    write_zarr(folder / "sound.zarr", counts(160, 160), scale_factor=SCALE_FACTOR)
    write_zarr(folder / "torn.zarr", counts(16, 16), scale_factor=SCALE_FACTOR)
    [chunk] = [p for p in (folder / "torn.zarr/reflectance/c").rglob("*") if p.is_file()]
    chunk.write_bytes(b"torn")
    empty = np.full_like(counts(16, 16), NODATA)
    write_zarr(folder / "empty.zarr", empty, scale_factor=SCALE_FACTOR, _FillValue=NODATA)
    return folder


def test_a_node_that_joins_gets_tiles_and_every_node_counts_its_own(tmp_path: Path) -> None:
    settings = RunSettings(
        source=str(write_source(tmp_path / "source")),
        output=str(tmp_path / "out"),
        model=str(write_model(tmp_path)),
        tile=8,
        devices="cpu",
        max_attempts=2,
    )
    with small_cluster() as cluster:
        first = cluster.add(1)
        joining = Joining(cluster)
        report = run(settings.model_copy(update={"ray_address": cluster.address}), [joining])
        assert {row.scene_id: row.status for row in report.rows} == {
            "sound": "published",
            "torn": "quarantined",
            "empty": "quarantined",
        }
        assert until(lambda: cluster.samples()["tiles_total", "cpu"] >= 400)
        all_nodes = cluster.samples()
        assert all_nodes["tiles_total", "cpu"] == 400 == joining.tiles
        assert all_nodes["pixel_bands_total", "cpu"] == (160 * 4) ** 2 * 12
        parts = [cluster.samples(node)["tiles_total", "cpu"] for node in (first, joining.node)]
        assert min(parts) > 0 and sum(parts) == 400

        ledger = SceneStore(settings.output, "sound").ledger().values()
        for stage in ("read", "wait", "compute", "write"):
            spent = sum(record.seconds[stage] for record in ledger)
            assert all_nodes["stage_seconds_total", stage] == pytest.approx(spent, abs=0.1)
        assert all_nodes["stage_seconds_total", "prepare"] > 0
        assert all_nodes["stage_seconds_total", "idle"] > 0

        assert all_nodes["scenes_total", "published"] == 1
        assert all_nodes["scenes_total", "quarantined"] == 2
        assert all_nodes["retries_total", ""] == 1
        assert all_nodes["failures_total", "unreadable"] == 2
        assert all_nodes["failures_total", "no-valid-pixels"] == 1
        for gauge in ("open_tiles", ""), ("actors", "alive"), ("actors", "waiting"):
            assert gauge in all_nodes and all_nodes[gauge] == 0
        assert not any("sound" in cluster.text(node) for node in cluster.agents)
