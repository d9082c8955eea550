"""The STAC items of published scenes, their collection and its table."""

from __future__ import annotations

import copy
import io
import json
from pathlib import Path
from typing import Any

import fsspec
import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pystac
import pytest
import rustac
import xarray as xr

from infra.local_s3 import LocalS3
from pipeline.catalog import list_scenes
from pipeline.errors import SceneError
from pipeline.readers.georeference import crs_attrs
from pipeline.stac.catalogue import (
    catalogued,
    output_collection,
    rebuild_catalogue,
    update_catalogue,
)
from pipeline.stac.facts import PublishedScene, facts_of_published
from pipeline.stac.item import scene_item
from pipeline.stac.table import from_bytes, items_of, table_of, to_bytes
from pipeline.store import SceneStore
from tests.archives import run_job, write_archive, write_model
from tests.scenes import CRS
from tests.stac_schemas import asset_bands, validate

FOOTPRINT = {
    "type": "Polygon",
    "coordinates": [[[13.0, 52.0], [13.1, 52.0], [13.1, 52.1], [13.0, 52.1], [13.0, 52.0]]],
}
MADE = {
    "fingerprint": "f" * 64,
    "source": "s3://bucket/scenes/a scene.tif",
    "source_version": "etag:1",
    "model": "sspsr-x4",
    "weights_sha256": "a" * 64,
    "scale": 4,
    "packages": {"torch": "2.13.0", "sr-archive": "0.1.0"},
    "code_version": "0.1.0+abc",
    "run_id": "20240101T000000Z-abc",
    "published": "2024-01-02T03:04:05+00:00",
    "consistency": {
        "degradation": "bicubic",
        "rmse": 0.01,
        "sam_degrees": 1.5,
        "relative_rmse": None,
        "bicubic": {"rmse": 0.02},
    },
}


def facts(name: str = "a", **changes: Any) -> PublishedScene:
    known: dict[str, Any] = {
        "scene_id": name,
        "attributes": {"sensor": "EnMAP", "datetime": "2022-07-15T10:00:00", "sr_archive": MADE},
        "shape": (3, 80, 120),
        "dtype": "int16",
        "scale_factor": 1e-4,
        "fill": -32768.0,
        "wavelength": (420.5, 550.0, 2450.25),
        "fwhm": (6.5, 6.6, 9.9),
        "good_band": (True, True, False),
        "crs_wkt": str(crs_attrs(_wkt())["crs_wkt"]),
        "transform": (7.5, 0.0, 364095.0, 0.0, -7.5, 5809965.0),
        "geometry": FOOTPRINT,
        "quality": {"rmse": 0.01, "SAM (deg)": 1.5, "nan": float("nan"), "note": "text"},
        "flags": True,
        "quicklook": True,
    }
    return PublishedScene(**(known | changes))


def bare(name: str = "bare", **changes: Any) -> PublishedScene:
    """A scene of which little is known: no place, no time, no wavelengths."""
    attributes = {"sr_archive": {"published": MADE["published"], "scale": 4}}
    return PublishedScene(name, attributes, (2, 8, 8), "float32", fill=float("nan"), **changes)


def _wkt() -> str:
    import pyproj

    return str(pyproj.CRS.from_user_input(CRS).to_wkt())


def test_items_are_valid(tmp_path: Path) -> None:
    spread = facts("d", spread=True, units="W m-2")
    nowhere = facts("c", crs_wkt=None, transform=None, geometry=None)
    for scene in (facts(), bare(), nowhere, spread):
        item = scene_item(scene)
        validate(item)
        assert pystac.Item.from_dict(copy.deepcopy(item)).id == scene.scene_id
        json.dumps(item, allow_nan=False)


def test_the_validation_can_fail() -> None:
    for path, value in (
        (("properties", "datetime"), None),
        (("assets", "data", "proj:shape"), [1]),
        (("assets", "data", "bands"), [{"eo:center_wavelength": -1}]),
        (("assets", "data", "raster:nonsense"), 1),
        (("stac_extensions",), []),
        (("collection",), ""),
    ):
        item = scene_item(facts())
        place = item
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            validate(item)


def test_an_item_says_what_the_scene_says() -> None:
    item = scene_item(facts())
    data, properties = item["assets"]["data"], item["properties"]
    assert data["bands"][0] == {
        "name": "band_1",
        "eo:center_wavelength": 0.4205,
        "eo:full_width_half_max": 0.0065,
        "sr:good": True,
    }
    assert data["bands"][2]["eo:center_wavelength"] == 2.45025
    assert data["proj:code"] == "EPSG:32633"
    assert data["proj:shape"] == [80, 120]
    assert data["proj:bbox"] == [364095.0, 5809965.0 - 600, 364095.0 + 900, 5809965.0]
    assert data["proj:transform"] == [7.5, 0.0, 364095.0, 0.0, -7.5, 5809965.0]
    assert (data["raster:scale"], data["raster:offset"], data["nodata"]) == (1e-4, 0.0, -32768)
    assert (data["raster:spatial_resolution"], properties["gsd"]) == (7.5, 30.0)
    assert item["bbox"] == [13.0, 52.0, 13.1, 52.1]
    assert properties["instruments"] == ["EnMAP"]
    assert properties["created"] == "2024-01-02T03:04:05Z"
    assert (properties["sr:rmse"], properties["sr:sam_deg"]) == (0.01, 1.5)
    assert "sr:nan" not in properties and "sr:note" not in properties
    assert properties["processing:software"]["torch"] == "2.13.0"
    (derived,) = [link for link in item["links"] if link["rel"] == "derived_from"]
    assert derived["href"] == "s3://bucket/scenes/a%20scene.tif"


def test_times_are_not_invented() -> None:
    unknown = scene_item(bare())["properties"]
    assert unknown["datetime"] is None
    assert unknown["end_datetime"] == "2024-01-02T03:04:05Z"
    assert unknown["sr:datetime_unknown"] is True
    naive = scene_item(facts())["properties"]
    assert naive["datetime"] == "2022-07-15T10:00:00Z"
    assert naive["sr:datetime_zone_unknown"] is True
    stated = {"datetime": "2022-07-15T12:00:00.5+02:00", "sr_archive": MADE}
    zoned = scene_item(facts(attributes=stated))["properties"]
    assert zoned["datetime"] == "2022-07-15T10:00:00.500000Z"
    assert "sr:datetime_zone_unknown" not in zoned


def test_no_credentials_and_no_absolute_hrefs() -> None:
    source = "s3://key:secret@bucket/a.tif?X-Amz-Signature=secret"
    item = scene_item(facts(attributes={"sr_archive": MADE | {"source": source}}))
    assert "secret" not in json.dumps(item)
    hrefs = [asset["href"] for asset in item["assets"].values()]
    hrefs += [link["href"] for link in item["links"] if link["rel"] != "derived_from"]
    assert all(href.startswith("../") for href in hrefs)
    assert not any(link["rel"] == "self" for link in item["links"])


def test_a_store_without_a_record_is_refused_in_one_line() -> None:
    for attributes in ({}, {"sr_archive": "x"}, {"sr_archive": {"published": "yesterday"}}):
        with pytest.raises(SceneError, match="record"):
            scene_item(facts(attributes=attributes))
    with pytest.raises(SceneError, match="cannot describe the scene"):
        scene_item(facts(crs_wkt="PROJCS["))


def publish(output: Path, name: str = "a", zarr_format: int = 3) -> SceneStore:
    """A small store in the layout of the job's outputs."""
    crs = crs_attrs(_wkt()) | {"GeoTransform": "364095.0 7.5 0.0 5809965.0 0.0 -7.5"}
    values = np.full((3, 4, 5), 0.25, np.float32)
    encoding = {"dtype": "int16", "scale_factor": 1e-4, "_FillValue": -32768}
    dataset = xr.Dataset(
        {
            "reflectance": (("band", "y", "x"), values, {"grid_mapping": "spatial_ref"}),
            "quality": (("y", "x"), np.zeros((4, 5), np.uint16)),
        },
        {
            "wavelength": ("band", [420.5, 550.0, 700.0], {"units": "nm"}),
            "good_band": ("band", [True, True, False]),
            "spatial_ref": ((), np.int64(0), crs),
            "x": 364098.75 + 7.5 * np.arange(5),
            "y": 5809961.25 - 7.5 * np.arange(4),
        },
        {"sensor": "EnMAP", "datetime": "2022-07-15T10:00:00", "sr_archive": MADE},
    )
    target = output / f"{name}.zarr"
    dataset.to_zarr(
        target,
        mode="w",
        consolidated=True,
        zarr_format=zarr_format,  # type: ignore[arg-type]
        encoding={"reflectance": encoding},
    )
    return SceneStore(str(output), name)


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_facts_are_read_back_from_the_store(tmp_path: Path, zarr_format: int) -> None:
    read = facts_of_published(publish(tmp_path, zarr_format=zarr_format), geometry=FOOTPRINT)
    assert read.shape == (3, 4, 5)
    assert (read.dtype, read.scale_factor, read.fill) == ("int16", 1e-4, -32768.0)
    assert read.wavelength == (420.5, 550.0, 700.0) and read.fwhm is None
    assert read.good_band == (True, True, False)
    assert read.transform == (7.5, 0.0, 364095.0, 0.0, -7.5, 5809965.0)
    assert read.flags and read.zarr_format == zarr_format
    assert read.quality == {
        "consistency_rmse": 0.01,
        "consistency_sam_degrees": 1.5,
        "bicubic_consistency_rmse": 0.02,
    }
    item = scene_item(read)
    validate(item)
    assert item["assets"]["data"]["proj:code"] == "EPSG:32633"


def test_what_is_not_published_has_no_facts(tmp_path: Path) -> None:
    with pytest.raises(SceneError, match="not published"):
        facts_of_published(SceneStore(str(tmp_path), "none"))


def various() -> list[dict[str, Any]]:
    """Items that differ in which fields they have."""
    north = {"type": "Point", "coordinates": [10.0, 80.0]}
    return [scene_item(scene) for scene in (facts(), bare(), facts("p", geometry=north, fill=0.0))]


def test_items_survive_the_table() -> None:
    items = various()
    collection = output_collection(items)
    data = to_bytes(table_of(items), collection)
    assert list(items_of(from_bytes(data, "x"))) == items
    assert [item["id"] for item in items_of(from_bytes(data, "x"), ["p"])] == ["p"]
    plain = pq.read_table(io.BytesIO(data))
    assert plain["bbox"].to_pylist()[1] is None
    assert str(plain.schema.field("datetime").type) == "timestamp[us, tz=UTC]"
    geo = json.loads(plain.schema.metadata[b"geo"])
    assert geo["columns"]["geometry"]["geometry_types"] == ["Point", "Polygon"]
    stated = json.loads(plain.schema.metadata[b"stac-geoparquet"])
    assert stated["version"] == "1.1.0" and collection["id"] in stated["collections"]


def test_another_reader_finds_the_same_items(tmp_path: Path) -> None:
    update_catalogue(str(tmp_path), various())
    read = rustac.read_sync(str(tmp_path / "stac" / "items.parquet"))
    found = {item["id"]: item for item in read["features"]}
    assert set(found) == {"a", "bare", "p"}
    assert found["a"]["properties"]["datetime"] == "2022-07-15T10:00:00Z"
    assert found["a"]["assets"]["data"]["href"] == "../a.zarr"
    assert found["a"]["geometry"] == FOOTPRINT
    assert found["p"]["assets"]["data"]["bands"][2]["eo:center_wavelength"] == 2.45025


def test_the_collection_is_valid_and_sums_up() -> None:
    collection = output_collection(various())
    validate(collection)
    pystac.Collection.from_dict(copy.deepcopy(collection))
    assert collection["extent"]["spatial"]["bbox"] == [[10.0, 52.0, 13.1, 80.0]]
    span = ["2022-07-15T10:00:00Z", "2022-07-15T10:00:00Z"]
    assert collection["extent"]["temporal"]["interval"] == [span]
    summaries = collection["summaries"]
    assert summaries["eo:center_wavelength"] == {"minimum": 0.4205, "maximum": 2.45025}
    assert summaries["instruments"] == ["EnMAP"] and summaries["sr:scale"] == [4]
    assert summaries["proj:code"] == ["EPSG:32633"]


def test_extents_of_nothing_known_and_across_the_antimeridian() -> None:
    for items in ([], [scene_item(bare())]):
        collection = output_collection(items)
        validate(collection)
        assert collection["extent"]["spatial"]["bbox"] == [[-180.0, -90.0, 180.0, 90.0]]
        assert collection["extent"]["temporal"]["interval"] == [[None, None]]
    across = scene_item(facts(bbox=[179.0, -1.0, -179.0, 1.0]))
    assert output_collection([across])["extent"]["spatial"]["bbox"] == [[-180.0, -1.0, 180.0, 1.0]]


def test_an_update_writes_only_what_changed(tmp_path: Path) -> None:
    output = str(tmp_path)
    assert sorted(update_catalogue(output, various()).written) == ["a", "bare", "p"]
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = update_catalogue(output, various())
    assert (again.written, again.unchanged, again.items) == ([], 3, 3)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    better = facts(quality={"rmse": 0.005})
    report = update_catalogue(output, [scene_item(better), scene_item(facts("new"))], ["p"])
    assert (report.written, report.removed, report.items) == (["a", "new"], ["p"], 3)
    folder = tmp_path / "stac"
    assert {path.stem for path in (folder / "items").iterdir()} == {"a", "bare", "new"}
    rows = {
        item["id"]: item
        for item in items_of(from_bytes((folder / "items.parquet").read_bytes(), "x"))
    }
    assert rows["a"]["properties"]["sr:rmse"] == 0.005
    for name, row in rows.items():
        assert row == json.loads((folder / "items" / f"{name}.json").read_text())
    collection = json.loads((folder / "collection.json").read_text())
    listed = [link["href"] for link in collection["links"] if link["rel"] == "item"]
    assert listed == ["./items/a.json", "./items/bare.json", "./items/new.json"]


def test_the_last_scene_can_be_removed(tmp_path: Path) -> None:
    update_catalogue(str(tmp_path), [scene_item(facts())])
    report = update_catalogue(str(tmp_path), [], ["a", "never"])
    assert (report.removed, report.items) == (["a"], 0)
    assert not list((tmp_path / "stac").rglob("*.parquet"))
    validate(json.loads((tmp_path / "stac" / "collection.json").read_text()))
    assert update_catalogue(str(tmp_path), [scene_item(facts("b"))]).items == 1


def test_an_update_that_was_killed_before_the_table_is_done_again(tmp_path: Path) -> None:
    output, table = str(tmp_path), tmp_path / "stac" / "items.parquet"
    update_catalogue(output, [scene_item(facts("a")), scene_item(facts("b"))])
    before = table.read_bytes()
    update_catalogue(output, [scene_item(facts("new"))], ["b"])
    done = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    table.write_bytes(before)  # all but the table was written
    assert catalogued(output) == {"a": MADE["fingerprint"], "b": MADE["fingerprint"]}
    update_catalogue(output, [scene_item(facts("new"))], ["b"])
    assert set(catalogued(output)) == {"a", "new"}
    assert done == {path: path.read_bytes() for path in tmp_path.rglob("*.json")}


@pytest.mark.parametrize("what", ["torn", "foreign", "other"])
def test_a_broken_table_is_made_anew(tmp_path: Path, what: str) -> None:
    update_catalogue(str(tmp_path), various())
    table = tmp_path / "stac" / "items.parquet"
    if what == "torn":
        table.write_bytes(table.read_bytes()[:-100])
    elif what == "foreign":
        rustac.write_sync(str(table), [_foreign()])
    else:
        table.write_bytes(b"not parquet")
    (tmp_path / "stac" / "items" / "odd.json").write_text('{"id": "odd"}')
    report = update_catalogue(str(tmp_path), [scene_item(facts("new"))])
    assert report.items == 4
    assert len(report.notes) == 2 and all("\n" not in note for note in report.notes)
    assert "made anew" in report.notes[0] and "odd.json" in report.notes[1]
    assert {item["id"] for item in items_of(from_bytes(table.read_bytes(), "x"))} == {
        "a",
        "bare",
        "p",
        "new",
    }


def _foreign() -> dict[str, Any]:
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": "other",
        "geometry": {"type": "Point", "coordinates": [1, 2]},
        "bbox": [1, 2, 1, 2],
        "properties": {"datetime": "2020-01-01T00:00:00Z"},
        "links": [],
        "assets": {},
    }


def test_a_catalogue_is_rebuilt_from_its_items(tmp_path: Path) -> None:
    update_catalogue(str(tmp_path), various())
    before = (tmp_path / "stac" / "collection.json").read_text()
    (tmp_path / "stac" / "items.parquet").unlink()
    (tmp_path / "stac" / "collection.json").unlink()
    assert rebuild_catalogue(str(tmp_path)).items == 3
    assert (tmp_path / "stac" / "collection.json").read_text() == before


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_a_published_archive_can_be_moved_and_read_as_a_source(tmp_path: Path) -> None:
    output = tmp_path / "first"
    items = [scene_item(facts_of_published(publish(output, name))) for name in ("a", "b")]
    update_catalogue(str(output), items)
    output.rename(tmp_path / "second")
    stac = tmp_path / "second" / "stac"
    for document in ("collection.json", "items.parquet"):
        listed = list_scenes(str(stac / document))
        assert [ref.uri for ref in listed.scenes] == [
            str(tmp_path / "second" / f"{name}.zarr") for name in ("a", "b")
        ]
        assert not listed.rejected


def test_a_catalogue_on_s3(s3: LocalS3) -> None:
    output = s3.url("cat")
    update_catalogue(output, various())
    report = update_catalogue(output, [scene_item(facts("new"))], ["bare"])
    assert (report.written, report.removed, report.items) == (["new"], ["bare"], 3)
    filesystem = fsspec.filesystem("s3")
    filesystem.invalidate_cache()
    names = filesystem.ls(f"{s3.bucket}/cat/stac/items", detail=False)
    assert sorted(name.rsplit("/", 1)[-1] for name in names) == ["a.json", "new.json", "p.json"]
    assert rebuild_catalogue(output).items == 3


def test_what_the_job_publishes_becomes_valid_items(tmp_path: Path) -> None:
    archive, output = write_archive(tmp_path / "archive"), tmp_path / "output"
    assert run_job(archive, output, write_model(tmp_path)).exit_status == 0
    for name in ("tiff", "envi", "store"):
        item = scene_item(facts_of_published(SceneStore(str(output), name)))
        validate(item)
        assert len(asset_bands(item["assets"]["data"])) == 12
        assert item["properties"]["sr:scale"] == 4
    assert item["properties"]["sr:weights_sha256"]
