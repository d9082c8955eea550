"""What is written, what is recorded, and when a reader sees it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from pipeline.arrays import Level, OutputScene, scene_template
from pipeline.grid import TileGrid, Window
from pipeline.integrity import verify_scene
from pipeline.ledger import TileRecord
from pipeline.leftovers import sweep
from pipeline.overviews import coarser
from pipeline.store import SceneStore

GRID = TileGrid(20, 24, 8, 4)


def template(layout: str = "sharded", **encoding: object) -> dict[str, bytes]:
    rows, columns = GRID.output_size
    dataset = xr.Dataset(
        {"reflectance": (("band", "y", "x"), da.zeros((3, rows, columns), dtype="f4"))},
        coords={"wavelength": ("band", [500.0, 510.0, 520.0])},
    )
    small = xr.Dataset({"reflectance": (("band", "y", "x"), da.zeros((3, 40, 48), dtype="f4"))})
    levels = {"": Level(dataset, GRID.shard), "overviews/2": Level(small, GRID.shard // 2)}
    return scene_template(levels, layout, {"dtype": "int16", "_FillValue": -1, **encoding})  # type: ignore[arg-type]


def prepared(folder: Path, layout: str = "sharded") -> SceneStore:
    store = SceneStore(str(folder), "scene")
    store.prepare(template(layout), b"constants", {"fingerprint": "f", "tiles": len(GRID)})
    return store


def fill(store: SceneStore, *, leave: int = 0) -> None:
    output = OutputScene(store.url)
    for number, tile in enumerate(list(GRID)[: len(GRID) - leave]):
        window = GRID.core(tile).scaled(4)
        height, width = window.bottom - window.top, window.right - window.left
        block = np.full((3, height, width), number, np.int16)
        objects = output.write("reflectance", window, block)
        objects += output.write("overviews/2/reflectance", coarser(window, 2), block[:, ::2, ::2])
        store.record(TileRecord(tile.key, objects))


@pytest.mark.parametrize("layout", ["sharded", "plain"])
def test_nothing_is_visible_before_publish(tmp_path: Path, layout: str) -> None:
    store = prepared(tmp_path, layout)
    fill(store)
    assert store.published() is None
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(store.url)
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(store.url, group="overviews/2")
    store.publish({"made": "by a test"}, store.ledger())
    opened = xr.open_zarr(store.url)
    assert opened.attrs["made"] == "by a test"
    assert opened["wavelength"].values.tolist() == [500.0, 510.0, 520.0]
    assert opened["reflectance"].shape == (3, 80, 96)
    assert float(opened["reflectance"][0, 0, 40]) == 1.0  # the second tile
    assert store.published() == opened.attrs
    level = xr.open_zarr(store.url, group="overviews/2")["reflectance"]
    assert level.shape == (3, 40, 48) and float(level[0, 0, 20]) == 1.0
    tree = xr.open_datatree(store.url, group="overviews", engine="zarr")
    assert set(tree.children) == {"2"}
    store.unpublish()
    with pytest.raises(FileNotFoundError):
        xr.open_zarr(store.url)


def test_an_incomplete_ledger_is_not_published(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    fill(store, leave=1)
    with pytest.raises(RuntimeError, match="8 of 9 tiles"):
        store.publish({}, store.ledger())
    assert store.published() is None


@pytest.mark.parametrize("layout", ["sharded", "plain"])
def test_every_object_is_in_the_ledger(tmp_path: Path, layout: str) -> None:
    store = prepared(tmp_path, layout)
    fill(store)
    store.publish({}, store.ledger())
    assert verify_scene(store, deep=True) == []
    assert len(store.ledger()) == len(GRID)
    recorded = {item.key for record in store.ledger().values() for item in record.objects}
    assert recorded == set(store.objects())


def test_a_tile_of_fill_still_leaves_its_shard(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    objects = OutputScene(store.url).write(
        "reflectance", Window(0, 32, 0, 32), np.full((3, 32, 32), -1, np.int16)
    )
    assert [item.key for item in objects] == ["reflectance/c/0/0/0"]
    assert store.objects() == {objects[0].key: objects[0].bytes}


@pytest.mark.parametrize(
    "window", [Window(0, 16, 0, 32), Window(8, 40, 0, 32), Window(0, 32, 4, 36)]
)
def test_unaligned_writes_are_refused(tmp_path: Path, window: Window) -> None:
    height, width = window.bottom - window.top, window.right - window.left
    with pytest.raises(ValueError, match="not aligned"):
        output = OutputScene(prepared(tmp_path).url)
        output.write("reflectance", window, np.zeros((3, height, width), np.int16))


def test_verify_finds_each_kind_of_fault(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    fill(store)
    store.publish({}, store.ledger())
    shards = tmp_path / "scene.zarr" / "reflectance" / "c" / "0"
    (shards / "0" / "0").unlink()
    (shards / "7").mkdir()
    (shards / "7" / "7").write_bytes(b"foreign")
    longer = shards / "0" / "1"
    longer.write_bytes(longer.read_bytes() + b"x")
    flipped = bytearray((shards / "1" / "1").read_bytes())
    flipped[10] ^= 1
    (shards / "1" / "1").write_bytes(bytes(flipped))
    fast = verify_scene(store)
    assert [fault.kind for fault in fast] == ["missing", "foreign", "size"]
    deep = verify_scene(store, deep=True)
    assert any("checksum of reflectance/c/0/1/1" in fault.message for fault in deep)


def test_a_record_without_its_shard_is_not_finished(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    fill(store, leave=2)
    shards = tmp_path / "scene.zarr" / "reflectance" / "c" / "0"
    (shards / "0" / "0").unlink()
    (shards / "0" / "1").write_bytes(b"cut")
    assert store.finished() == {tile.key for tile in list(GRID)[2:7]}


def test_unpublish_removes_all_but_neighbours(tmp_path: Path) -> None:
    store = prepared(tmp_path)
    fill(store)
    store.publish({}, store.ledger())
    other = SceneStore(str(tmp_path), "scene2")
    other.prepare(template(), b"", {"fingerprint": "g", "tiles": 1})
    store.unpublish()
    assert store.published() is None and store.state() is None and store.objects() == {}
    assert other.state() == {"fingerprint": "g", "tiles": 1}


def test_the_root_carries_consolidated_metadata() -> None:
    root = json.loads(template()["zarr.json"])
    assert set(root["consolidated_metadata"]["metadata"]) == {
        "reflectance",
        "wavelength",
        "overviews",
        "overviews/2",
        "overviews/2/reflectance",
    }


def test_the_next_run_removes_what_a_killed_one_had_begun(tmp_path: Path) -> None:
    record = tmp_path / "_sr-archive" / "runs" / "now.json"
    older = [tmp_path / "stac" / "items" / "a.json.12.tmp", record.with_name("then.json.12.tmp")]
    for path in (*older, record, younger := tmp_path / "stac" / "items.parquet.13.tmp"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        time.sleep(0.02)
    kept = tmp_path / "stac" / "items" / "a.json"
    kept.write_text("{}")
    sweep(str(tmp_path), "_sr-archive/runs/now.json")
    assert not any(path.exists() for path in older)
    assert younger.exists() and kept.exists()
