"""What a source holds, listed without opening a scene."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import zarr

from pipeline.catalog import Catalogue, list_scenes, scene_id
from pipeline.errors import UsageError
from pipeline.readers import open_scene
from tests.scenes import (
    cube,
    envi_header,
    real,
    write_envi,
    write_geotiff,
    write_matlab,
    write_zarr,
)


def formats(catalogue: Catalogue) -> dict[str, str]:
    return {scene.scene_id: scene.format for scene in catalogue.scenes}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """One scene of every format at several depths, and much that is no scene."""
    root = tmp_path / "archive"
    for folder in ("a/b", "weird name (1)", ".hidden", "_sr-archive/ledger"):
        (root / folder).mkdir(parents=True)
    write_geotiff(root / "a" / "one.tif", cube())
    write_geotiff(root / "a" / "ENMAP01-____L2A-X-QL_VNIR.TIF", cube())
    write_envi(root / "a" / "b", cube(), name="two")
    write_zarr(root / "a" / "three.zarr", cube())
    write_matlab(root / "weird name (1)" / "four.mat", data=cube())
    np.savez(root / "five.npz", cube=cube())
    write_geotiff(root / ".hidden" / "no.tif", cube())
    np.savez(root / "_sr-archive" / "ledger" / "no.npz", cube=cube())
    np.savez(root / ".no.npz", cube=cube())
    for name in ("README.md", "x.png", "x.txt", "x.xml", "x.csv", "x.pdf"):
        (root / name).write_text("x")
    (root / "other.hdr").write_text("SIMPLE = T")
    (root / "later.zip").write_bytes(b"PK")
    return root


def test_walk(archive: Path) -> None:
    catalogue = list_scenes(str(archive))
    assert formats(catalogue) == {
        "a__b__two": "envi",
        "a__one": "geotiff",
        "a__three": "zarr",
        "five": "npz",
        "weird_name__1___four": "matlab",
    }
    assert [scene.scene_id for scene in catalogue.scenes] == sorted(formats(catalogue))
    assert not catalogue.rejected
    assert catalogue.ignored == [str(archive / "later.zip")]
    assert list_scenes(str(archive) + "/") == catalogue
    assert all(scene.bytes > 0 for scene in catalogue.scenes)
    for scene in catalogue.scenes:
        assert open_scene(scene.uri).sizes["band"] > 0


def test_globs(archive: Path) -> None:
    assert set(formats(list_scenes(str(archive), include=["a__*"], exclude=["*two"]))) == {
        "a__one",
        "a__three",
    }
    assert not list_scenes(str(archive), include=["nothing"]).scenes


def test_one_request_lists_a_bucket(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(archive), "/bucket", recursive=True)
    asked: list[str] = []
    for name in ("find", "cat_file", "open", "info"):
        original = getattr(type(memory), name)

        def spy(
            self: object,
            *args: object,
            _name: str = name,
            _original: object = original,
            **kwargs: object,
        ) -> object:
            asked.append(_name)
            return _original(self, *args, **kwargs)  # type: ignore[operator]

        monkeypatch.setattr(type(memory), name, spy)
    catalogue = list_scenes("memory://bucket")
    assert asked.count("find") == 1
    assert asked.count("cat_file") <= 1 and asked.count("open") <= 1
    assert formats(catalogue) == formats(list_scenes(str(archive)))
    assert all(scene.uri.startswith("memory://") for scene in catalogue.scenes)


@pytest.mark.parametrize(
    ("below", "identity", "kind"),
    [
        ("a/one.tif", "one", "geotiff"),
        ("a/three.zarr", "three", "zarr"),
        ("a/three.zarr/", "three", "zarr"),
        ("a/b/two.hdr", "two", "envi"),
        ("a/b/two.img", "two", "envi"),
        ("five.npz", "five", "npz"),
        ("weird name (1)/four.mat", "four", "matlab"),
    ],
)
def test_one_scene(archive: Path, below: str, identity: str, kind: str) -> None:
    (scene,) = list_scenes(f"{archive}/{below}").scenes
    assert (scene.scene_id, scene.format) == (identity, kind)
    walked = {ref.uri: ref for ref in list_scenes(str(archive)).scenes}[scene.uri]
    assert (walked.version, walked.bytes) == (scene.version, scene.bytes)


def test_versions_follow_every_object(archive: Path) -> None:
    before = {scene.scene_id: scene.version for scene in list_scenes(str(archive)).scenes}
    changed = {
        "a__one": archive / "a/one.tif",
        "a__b__two": archive / "a/b/two.img",
        "a__three": archive / "a/three.zarr/wavelength/zarr.json",
    }
    for path in changed.values():
        os.utime(path, (1, 1))
    after = {scene.scene_id: scene.version for scene in list_scenes(str(archive)).scenes}
    assert {name for name in before if before[name] != after[name]} == set(changed)


def test_rejected(tmp_path: Path) -> None:
    (tmp_path / "lonely.hdr").write_text(envi_header(cube()))
    write_geotiff(tmp_path / "twin.tif", cube())
    np.savez(tmp_path / "twin.npz", cube=cube())
    catalogue = list_scenes(str(tmp_path))
    assert [(name, error.code) for name, _, error in catalogue.rejected] == [
        ("lonely", "missing-data"),
        ("twin", "duplicate-id"),
    ]
    assert formats(catalogue) == {"twin": "npz"}
    (tmp_path / "notes.txt").write_text("x")
    alone = list_scenes(str(tmp_path / "notes.txt"))
    assert not alone.scenes and alone.rejected[0][2].code == "unsupported"
    assert list_scenes(str(tmp_path / "lonely.hdr")).rejected[0][2].code == "missing-data"


def test_unpublished_store_is_no_scene(archive: Path) -> None:
    group = zarr.open_group(str(archive / "a/three.zarr"), mode="r+")
    group.create_array("inner", data=cube())
    (archive / "a/three.zarr/zarr.json").unlink()
    assert set(formats(list_scenes(str(archive)))) == {
        "a__b__two",
        "a__one",
        "five",
        "weird_name__1___four",
    }


def test_nothing_there(tmp_path: Path) -> None:
    for source in (str(tmp_path), f"{tmp_path}/no", "memory://nowhere-at-all", "nope://x"):
        with pytest.raises(UsageError) as caught:
            list_scenes(source)
        assert "\n" not in str(caught.value)
    (tmp_path / "README.md").write_text("x")
    with pytest.raises(UsageError, match="no scene"):
        list_scenes(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b", "a__b"),
        ("..", "scene_"),
        ("...secret", "secret"),
        ("_sr-archive", "scene__sr-archive"),
        ("größe", "gr__e"),
        ("a\nb\0c", "a_b_c"),
    ],
)
def test_scene_ids_are_safe(name: str, expected: str) -> None:
    assert scene_id(name) == expected


def test_long_ids_stay_distinct() -> None:
    first, second = scene_id("x" * 300 + "1"), scene_id("x" * 300 + "2")
    assert first != second and len(first) == len(second) == 120


def test_real_archive(tmp_path: Path) -> None:
    root = Path(real("README.md")).parent
    catalogue = list_scenes(str(root))
    assert len(catalogue.scenes) >= 30 and not catalogue.rejected
    kinds = {scene.format for scene in catalogue.scenes}
    assert kinds == {"geotiff", "envi", "matlab", "npz", "product"}
    product = real("enmap_l2a_metadata/enmap_L2A_gtif_qualification.zip")
    shutil.unpack_archive(product, tmp_path)
    (scene,) = list_scenes(str(tmp_path)).scenes
    assert scene.scene_id.endswith("-SPECTRAL_IMAGE")
