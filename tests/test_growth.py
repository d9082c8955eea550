"""A run on a real cluster to which a node is added, and what Prometheus finds there afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline import RunSettings, UsageError, events
from pipeline.events import Event
from pipeline.job import run
from pipeline.store import SceneStore
from tests.archives import NODATA, SCALE_FACTOR, counts, write_model
from tests.clusters import SmallCluster, small_cluster
from tests.scenes import write_zarr

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PATIENCE = 120.0
TILES = (112 // 8) ** 2


def until(true: Callable[[], bool]) -> bool:
    """Whether it became true within a while."""
    deadline = time.monotonic() + PATIENCE
    while not (found := true()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


class Paced:
    """Slows the driver down until each of these nodes has done some tiles."""

    def __init__(self, cluster: SmallCluster, nodes: list[str]) -> None:
        self.cluster, self.nodes, self.tiles = cluster, nodes, 0
        self._deadline = time.monotonic() + PATIENCE
        self._seen = False

    def __call__(self, event: Event) -> None:
        if not isinstance(event, events.TileFinished):
            return
        self.tiles += 1
        if not self._seen and time.monotonic() < self._deadline:
            time.sleep(0.5)
            self.cluster.find_agents()
            self._seen = all(self.cluster.tiles(node) for node in self.nodes)


class Joining(Paced):
    """Adds a node after the first tile."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, events.TileFinished) and not self.tiles:
            self.nodes.append(self.cluster.add(1))
        super().__call__(event)


def write_source(folder: Path) -> Path:
    """A scene of many tiles, one with an unreadable part, one without a valid pixel."""
    write_zarr(folder / "sound.zarr", counts(112, 112), scale_factor=SCALE_FACTOR)
    write_zarr(folder / "torn.zarr", counts(16, 16), scale_factor=SCALE_FACTOR)
    [chunk] = [p for p in (folder / "torn.zarr/reflectance/c").rglob("*") if p.is_file()]
    chunk.write_bytes(b"torn")
    empty = np.full_like(counts(16, 16), NODATA)
    write_zarr(folder / "empty.zarr", empty, scale_factor=SCALE_FACTOR, _FillValue=NODATA)
    return folder


def settings_in(folder: Path, **options: object) -> RunSettings:
    given = {"source": folder / "source", "output": folder / "out", "model": write_model(folder)}
    texts = {name: str(path) for name, path in given.items()}
    return RunSettings.from_options({**texts, "tile": 8, "devices": "cpu", **options})


def test_a_node_that_joins_gets_tiles_and_every_node_counts_its_own(tmp_path: Path) -> None:
    write_source(tmp_path / "source")
    settings = settings_in(tmp_path, max_attempts=2)
    with small_cluster() as cluster:
        first = cluster.add(1)
        joining = Joining(cluster, [first])
        report = run(settings.model_copy(update={"ray_address": cluster.address}), [joining])
        assert {row.scene_id: row.status for row in report.rows} == {
            "sound": "published",
            "torn": "quarantined",
            "empty": "quarantined",
        }
        assert until(lambda: cluster.samples()["tiles_total", "cpu"] >= TILES)
        all_nodes = cluster.samples()
        assert all_nodes["tiles_total", "cpu"] == TILES == joining.tiles
        assert all_nodes["pixel_bands_total", "cpu"] == (112 * 4) ** 2 * 12
        parts = [cluster.tiles(node) for node in joining.nodes]
        assert len(parts) == 2 and min(parts) > 0 and sum(parts) == TILES

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


@pytest.mark.long
def test_nodes_with_and_without_a_gpu_share_a_run_and_each_tile_says_where_it_was_made(
    tmp_path: Path,
) -> None:
    """The GPU is one in Ray's books only, so its actor finds none and says so: cpu."""
    write_zarr(tmp_path / "source" / "sound.zarr", counts(112, 112), scale_factor=SCALE_FACTOR)
    with small_cluster() as cluster:
        nodes = [cluster.add(1, num_gpus=1), cluster.add(1)]
        settings = settings_in(tmp_path, ray_address=cluster.address, devices="mixed")
        report = run(settings, [Paced(cluster, nodes)])
        assert report.count("published") == 1
        assert report.notes == [f"tiles by device: {TILES} on cpu"]
        assert until(lambda: sum(cluster.tiles(node) for node in nodes) >= TILES)
        assert all(cluster.tiles(node) for node in nodes)
        ledger = SceneStore(settings.output, "sound").ledger().values()
        assert {record.device for record in ledger} == {"cpu"}
        with pytest.raises(UsageError, match="no worker can be started"):
            run(settings.model_copy(update={"devices": "auto", "output": str(tmp_path / "b")}))
