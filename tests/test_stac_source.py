"""A STAC catalogue as the source: which items become scenes, and what is refused."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest
import rustac
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from infra.local_s3 import LocalS3
from pipeline.catalog import list_scenes
from pipeline.cli import app
from pipeline.errors import SceneError, UsageError
from pipeline.stac.links import Root
from pipeline.stac.source import reconcile
from tests import scenes

COG = "image/tiff; application=geotiff; profile=cloud-optimized"

_KINDS = ["Feature", "FeatureCollection", "Catalog", "Collection", "next", "child", "item"]
_LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
_ANY = st.recursive(
    _LEAF
    | st.text(max_size=8)
    | st.sampled_from([*_KINDS, "data", "a.tif", "..", "s3://", "http://["]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


def _shaped(**fields: Any) -> st.SearchStrategy[Any]:
    """Objects that may lack any field, and any field of which may be anything."""
    return st.fixed_dictionaries({}, optional={name: _ANY | kind for name, kind in fields.items()})


_ASSET = {"href": _ANY, "roles": _ANY, "type": _ANY, "updated": _ANY}
_ASSETS = st.dictionaries(st.text(max_size=3), _shaped(**_ASSET, **{"file:size": _ANY}), max_size=3)
_LINKS = st.lists(_shaped(rel=st.sampled_from(_KINDS), href=_ANY, method=_ANY), max_size=3)
_ITEM = {"id": _ANY, "assets": _ASSETS, "links": _LINKS, "properties": _shaped(updated=_ANY)}
_DOCUMENT = _shaped(features=st.lists(_shaped(**_ITEM), max_size=3), **_ITEM)


def item(name: str, href: str = "", **asset: Any) -> dict[str, Any]:
    """An item with the one data asset `href`."""
    data = {"href": href or f"../data/{name}.tif", "roles": ["data"], **asset}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": name,
        "geometry": {"type": "Point", "coordinates": [13.0, 52.4]},
        "bbox": [13.0, 52.4, 13.0, 52.4],
        "properties": {"datetime": "2022-07-15T10:00:00Z"},
        "links": [],
        "assets": {"data": data},
    }


def collection(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(items), **more}


def catalogue(*links: tuple[str, str]) -> dict[str, Any]:
    stated = [{"rel": rel, "href": href} for rel, href in links]
    described = {"id": "c", "description": "a catalogue", "stac_version": "1.1.0"}
    return {"type": "Catalog", **described, "links": stated}


def write(path: Path, document: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return str(path)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three scenes in data/, and stac/ beside it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "stac").mkdir()
    scenes.write_geotiff(tmp_path / "data" / "a.tif", scenes.cube())
    scenes.write_zarr(tmp_path / "data" / "b.zarr", scenes.cube())
    scenes.write_envi(tmp_path / "data", scenes.cube(), name="c")
    return tmp_path


def three() -> list[dict[str, Any]]:
    zarr = item("b", "../data/b.zarr", type="application/vnd.zarr; version=3")
    return [item("a", type=COG), zarr, item("c", "../data/c.img")]


def found(source: str, **options: Any) -> dict[str, str]:
    return {ref.scene_id: ref.format for ref in list_scenes(source, **options).scenes}


def reasons(source: str, **options: Any) -> dict[str, SceneError]:
    return {name: error for name, _, error in list_scenes(source, **options).rejected}


ALL = {"a": "geotiff", "b": "zarr", "c": "envi"}


def test_every_kind_of_document_gives_the_same_scenes(archive: Path) -> None:
    stac = archive / "stac"
    together = write(stac / "items.json", collection(*three()))
    links = [("item", f"./items/{entry['id']}.json") for entry in three()]
    for entry in three():
        entry["assets"]["data"]["href"] = "../" + entry["assets"]["data"]["href"]
        write(stac / "items" / f"{entry['id']}.json", entry)
    static = write(stac / "catalog.json", catalogue(("child", "deep.json"), *links[:1]))
    write(stac / "deep.json", catalogue(*links[1:], ("child", "catalog.json")))
    rustac.write_sync(str(stac / "items.parquet"), three())
    expected = list_scenes(together)
    assert found(together) == ALL
    assert not expected.rejected
    assert list_scenes(static) == expected
    assert list_scenes(str(stac / "items.parquet")) == expected
    assert found(str(stac / "items" / "b.json")) == {"b": "zarr"}
    assert expected.scenes[0].uri == str(archive / "data" / "a.tif")


def test_a_scene_of_an_item_opens(archive: Path) -> None:
    from pipeline.readers import open_scene

    for ref in list_scenes(write(archive / "stac" / "i.json", collection(*three()))).scenes:
        assert open_scene(ref.uri).sizes["band"] == 6


def test_a_real_scene_by_its_item(tmp_path: Path) -> None:
    from pipeline.readers import open_scene

    path = scenes.real("enmap_potsdam/enmap_potsdam_A_64x96.tif")
    (ref,) = list_scenes(write(tmp_path / "i.json", item("potsdam", path, type=COG))).scenes
    (walked,) = list_scenes(path).scenes
    assert (ref.uri, ref.version, ref.bytes) == (walked.uri, walked.version, walked.bytes)
    assert open_scene(ref.uri).sizes["y"] == 64


def test_versions_follow_the_bytes_where_the_item_states_none(archive: Path) -> None:
    source = write(archive / "stac" / "i.json", collection(*three()))
    before = {ref.scene_id: ref.version for ref in list_scenes(source).scenes}
    assert {ref.scene_id: ref.version for ref in list_scenes(source).scenes} == before
    scenes.write_geotiff(archive / "data" / "a.tif", scenes.cube(rows=12))
    scenes.write_zarr(archive / "data" / "b.zarr", scenes.cube(rows=12))
    scenes.write_envi(archive / "data", scenes.cube(rows=12), name="c")
    after = {ref.scene_id: ref.version for ref in list_scenes(source).scenes}
    assert all(after[name] != before[name] for name in before)


def test_stated_versions_are_taken(archive: Path) -> None:
    checked = item("a", **{"file:checksum": "1220ab", "file:size": 5})
    dated = item("gone", "../data/gone.tif", updated="2024-01-01T00:00:00Z")
    sized = item("b", "../data/b.zarr", **{"file:size": 5})
    listed = list_scenes(write(archive / "stac" / "i.json", collection(checked, dated, sized)))
    versions = {ref.scene_id: ref.version for ref in listed.scenes}
    assert versions["a"] == "multihash:1220ab"
    assert versions["gone"] == "updated:2024-01-01T00:00:00Z,size:None"
    assert versions["b"].startswith("sha256:")  # a size alone tells no version
    assert listed.scenes[0].bytes == 5


def test_the_choice_of_the_asset(archive: Path) -> None:
    several = item("s", "../data/a.tif")
    several["assets"] |= {
        "cube": {"href": "../data/b.zarr", "roles": ["data"]},
        "quick": {"href": "q.png", "type": "image/png", "roles": ["thumbnail"]},
    }
    source = write(archive / "stac" / "i.json", collection(several))
    assert found(source) == {"s": "zarr"}  # preferred to GeoTIFF
    assert found(source, asset="data") == {"s": "geotiff"}
    assert reasons(source, asset="b8")["s"].message.endswith("no asset 'b8', but cube, data, quick")
    assert reasons(source, asset="quick")["s"].code == "unsupported"


def test_equally_good_assets_are_ambiguous(archive: Path) -> None:
    bands = item("s")
    bands["assets"] = {name: {"href": "../data/a.tif", "roles": ["data"]} for name in ("B1", "B2")}
    error = reasons(write(archive / "stac" / "i.json", bands))["s"]
    assert error.code == "ambiguous"
    assert "--asset" in error.message


def test_assets_without_roles_are_taken_as_old_catalogues_write_them(archive: Path) -> None:
    old = item("s", "../data/a.tif")
    del old["assets"]["data"]["roles"]
    old["assets"]["thumb"] = {"href": "t.png", "type": "image/png"}
    assert found(write(archive / "stac" / "i.json", old)) == {"s": "geotiff"}


def test_faulty_items_are_set_aside_with_their_reason(archive: Path) -> None:
    bad = {
        "absent": item("absent"),
        "text": item("text", "../data/a.txt", type="text/plain"),
        "none": item("none") | {"assets": {}},
        "odd": item("odd") | {"assets": [1]},
        "a": item("a"),
        "nozarr": item("nozarr", "../data/nozarr.zarr"),
    }
    source = write(archive / "stac" / "i.json", collection(*bad.values(), item("a"), {"id": 3}))
    listed = list_scenes(source)
    found_codes = sorted((name, error.code) for name, _, error in listed.rejected)
    assert found_codes == [
        ("3", "bad-header"),
        ("a", "duplicate-id"),
        ("absent", "unreadable"),
        ("none", "missing-data"),
        ("nozarr", "unreadable"),
        ("odd", "missing-data"),
        ("text", "unsupported"),
    ]
    assert [ref.scene_id for ref in listed.scenes] == ["a"]


@pytest.mark.parametrize(
    "href",
    [
        "../../outside.tif",
        "../data/../../outside.tif",
        "simplecache::file:///etc/hosts",
        "zip://x.tif::/etc/a.zip",
        "ftp://host/x.tif",
        "memory://x.tif",
        "x\ny.tif",
        "\ud800.tif",
        "\x1b[2J.tif",
        "x" * 5000,
        7,
        " ",
    ],
)
def test_hrefs_that_are_refused(archive: Path, href: Any) -> None:
    source = write(archive / "stac" / "i.json", collection(item("x", "a") | assets(href)))
    listed = list_scenes(source)
    assert not listed.scenes
    assert listed.rejected[0][2].code in ("bad-header", "missing-data")
    assert listed.rejected[0][2].message.isprintable()


def assets(href: Any) -> dict[str, Any]:
    return {"assets": {"data": {"href": href, "roles": ["data"], "type": COG}}}


def test_a_remote_catalogue_names_no_local_files() -> None:
    root = Root.of("s3://bucket/x/stac/collection.json")
    base = "s3://bucket/x/stac/items/a.json"
    assert root.resolve("../../a.tif", base) == "s3://bucket/x/a.tif"
    assert root.resolve("https://host/a.tif?sig=1", base) == "https://host/a.tif?sig=1"
    for href in ("/etc/passwd", "file:///etc/passwd", "local:///etc/passwd", "../../../o/a.tif"):
        with pytest.raises(SceneError, match="refused"):
            root.resolve(href, base)
    web = Root.of("https://host/c/catalog.json")
    assert web.resolve("./x/a.tif", "https://host/c/catalog.json") == "https://host/c/x/a.tif"
    for href in ("//other/a.tif", "/a.tif", "../a.tif"):
        with pytest.raises(SceneError, match="refused"):
            web.resolve(href, "https://host/c/catalog.json")


def test_a_folder_that_only_begins_like_the_root_is_outside() -> None:
    root = Root.of("/archive/one/catalog.json")
    with pytest.raises(SceneError, match="leaves the catalogue's root"):
        root.resolve("../one-secret/a.tif", "/archive/one/catalog.json")


def test_credentials_in_hrefs_are_not_shown(archive: Path) -> None:
    secret = "https://me:hunter2@127.0.0.1:9/a.tif?X-Amz-Signature=hunter2"
    error = reasons(write(archive / "i.json", collection(item("a", secret))))["a"]
    assert error.code == "unreadable"
    assert "hunter2" not in str(error)


def test_what_a_document_says_cannot_upset_a_terminal(archive: Path) -> None:
    odd = "\x1b[2J\ud800"
    entries = [item(odd) | {"assets": {odd: {"href": odd, "type": odd, "roles": [odd]}}}]
    entries += [item("b"), item("c", odd)]
    links = [{"rel": "next", "href": odd}, {"rel": "next"}, 7]
    source = write(archive / "stac" / "i.json", collection(*entries, links=links))
    listed = list_scenes(source, asset="x")
    assert len(listed.rejected) == 5
    shown = " ".join(f"{name} {uri} {error}" for name, uri, error in listed.rejected)
    assert shown.isprintable()
    assert CliRunner().invoke(app, ["list", source], catch_exceptions=False).exit_code == 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(document=_DOCUMENT, kind=st.sampled_from(_KINDS))
def test_no_document_ends_in_anything_but_a_reason(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, Any], kind: str
) -> None:
    source = write(tmp_path_factory.getbasetemp() / "fuzz.json", document | {"type": kind})
    with suppress(UsageError):
        assert all(isinstance(error, SceneError) for _, _, error in list_scenes(source).rejected)


def test_loops_end_and_depth_is_bounded(archive: Path) -> None:
    for level in range(40):
        links = [("child", f"{level + 1}.json"), ("child", "0.json")]
        write(archive / "deep" / f"{level}.json", catalogue(*links))
    listed = list_scenes(str(archive / "deep" / "0.json"))
    assert [error.code for _, _, error in listed.rejected] == ["bad-header"]
    assert "levels below" in listed.rejected[0][2].message


def test_a_document_that_cannot_be_read_is_reported_not_dropped(archive: Path) -> None:
    (archive / "stac" / "torn.json").write_text('{"type": "Cat')
    (archive / "stac" / "other.json").write_text('{"type": "Topology"}')
    links = [("item", "gone.json"), ("child", "torn.json"), ("child", "other.json")]
    source = write(archive / "stac" / "catalog.json", catalogue(*links))
    codes = sorted(error.code for _, _, error in list_scenes(source).rejected)
    assert codes == ["bad-header", "bad-header", "unreadable"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "no valid JSON"),
        ('{"a": 1}', "no STAC Item"),
        ("{" + '"a": {' * 100_000, "no valid JSON"),
        ('{"type": "FeatureCollection", "features": []}', "leads to no STAC item"),
    ],
)
def test_a_source_that_is_no_stac_ends_in_one_line(archive: Path, text: str, what: str) -> None:
    (archive / "x.json").write_text(text)
    with pytest.raises(UsageError, match=what):
        list_scenes(str(archive / "x.json"))


def test_a_torn_or_foreign_parquet_file_ends_in_one_line(archive: Path) -> None:
    (archive / "x.parquet").write_bytes(b"PAR1" + b"\0" * 100)
    with pytest.raises(UsageError, match="cannot read the STAC document"):
        list_scenes(str(archive / "x.parquet"))
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"id": ["a"]}), archive / "y.parquet")
    with pytest.raises(UsageError, match="without STAC's id and assets"):
        list_scenes(str(archive / "y.parquet"))


def test_globs_and_options_of_a_stac_source(archive: Path) -> None:
    source = write(archive / "stac" / "i.json", collection(*three()))
    assert set(found(source, include=["[ab]"], exclude=["b"])) == {"a"}
    with pytest.raises(UsageError, match="--asset needs a STAC source"):
        list_scenes(str(archive / "data"), asset="data")


def test_catalogue_and_bucket_are_compared(archive: Path) -> None:
    entries = [entry for entry in three() if entry["id"] != "b"]
    entries += [item("gone"), item("told", **{"file:checksum": "12"})]
    source = write(archive / "stac" / "i.json", collection(*entries))
    listed = list_scenes(source, bucket=str(archive / "data"))
    assert listed.reconciliation is not None
    assert [name for name, _ in listed.reconciliation.unlisted] == ["b"]
    assert [name for name, _ in listed.reconciliation.absent] == ["gone", "told"]
    assert [ref.scene_id for ref in listed.scenes] == ["a", "c", "told"]
    walked = list_scenes(str(archive / "data"))
    assert listed.scenes[0].version == walked.scenes[0].version  # taken from the listing
    same = list_scenes(write(archive / "stac" / "i.json", collection(*three())))
    assert not reconcile(same, walked).unlisted
    assert not reconcile(same, walked).absent


def test_the_command_lists_the_differences(archive: Path) -> None:
    source = write(archive / "stac" / "i.json", collection(item("a"), item("gone")))
    options = ["list", source, "--bucket", str(archive / "data"), "--json"]
    shown = json.loads(CliRunner().invoke(app, options, catch_exceptions=False).stdout)
    assert [(row["where"], row["scene_id"]) for row in shown["differences"]] == [
        ("bucket only", "b"),
        ("bucket only", "c"),
        ("catalogue only", "gone"),
    ]


@contextmanager
def served(folder: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_pages_of_a_search_over_http(archive: Path) -> None:
    pages = [collection(entry) for entry in three()[:2]]
    for page in pages:
        page["features"][0]["assets"]["data"]["href"] = (
            "data/" + page["features"][0]["assets"]["data"]["href"].rpartition("/")[2]
        )
    pages[0]["links"] = [{"rel": "next", "href": "/page2.json?token=2"}]
    pages[1]["links"] = [{"rel": "next", "href": "/page1.json", "method": "POST"}]
    write(archive / "page1.json", pages[0])
    write(archive / "page2.json", pages[1])
    with served(archive) as address:
        listed = list_scenes(f"{address}/page1.json")
        assert [ref.scene_id for ref in listed.scenes] == ["a", "b"]
        assert listed.scenes[0].uri == f"{address}/data/a.tif"
        assert not listed.scenes[0].version.endswith("mtime:")
        assert "asks for POST" in listed.rejected[0][2].message


def test_a_catalogue_and_its_scenes_on_s3(archive: Path, s3: LocalS3) -> None:
    filesystem = fsspec.filesystem("s3")
    filesystem.put(str(archive / "data"), f"{s3.bucket}/st/", recursive=True)
    entries = [*three(), item("gone")]
    filesystem.pipe_file(f"{s3.bucket}/st/stac/i.json", json.dumps(collection(*entries)).encode())
    listed = list_scenes(s3.url("st/stac/i.json"), bucket=s3.url("st/data"))
    assert {ref.scene_id for ref in listed.scenes} == {"a", "b", "c"}
    assert [name for name, _, _ in listed.rejected] == ["gone"]
    assert listed.reconciliation is not None
    assert not listed.reconciliation.unlisted
    alone = list_scenes(s3.url("st/stac/i.json"))
    assert {ref.scene_id for ref in alone.scenes} == {"a", "b", "c"}
