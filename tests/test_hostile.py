"""Hostile input: whatever a file claims, it ends in a Dataset or in one line that says why."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from model import CheckpointError, load_checkpoint
from pipeline.catalog import list_scenes, scene_id
from pipeline.errors import SceneError, UsageError
from pipeline.inventory import scenes_of
from pipeline.job import load_model
from pipeline.ledger import TileRecord
from pipeline.plan import make_plan
from pipeline.readers import open_scene
from pipeline.scene_job import Model
from pipeline.settings import RunSettings
from pipeline.store import SceneStore
from tests.archives import write_model
from tests.hostile import HDF5, SEEDS, WORDS, Content, Watch, tamper_bytes, tamper_hdf5, tamper_json
from tests.scenes import cube, write_envi, write_geotiff, write_zarr

EXAMPLES = int(os.environ.get("SR_ARCHIVE_TEST_EXAMPLES", "25"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WATCH = Watch()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Model:
    return load_model(RunSettings(source="s", output="o", model=str(checkpoint)))


def one_line(error: Exception) -> None:
    text = str(error)
    assert text.strip() and text.isprintable(), repr(text)
    assert len(text) < 2000, text


def read(uri: str) -> None:
    """Open a scene and read a corner of all it has."""
    try:
        scene = open_scene(uri)
        corner = scene.isel(y=slice(0, 9), x=slice(0, 9))
        for variable in corner.variables.values():
            np.asarray(variable.data)
    except (SceneError, UsageError) as error:
        one_line(error)


def survives(source: Path, folder: Path, model: Model) -> None:
    """List, plan and read; nothing outside `folder` is touched, no connection is made."""
    output = folder / "output"
    with WATCH.watching():
        read(str(source))
        try:
            run = RunSettings(source=str(source), output=str(output), tile=16)
            for scene in make_plan(run, model).scenes:
                assert scene.note.isprintable() and "/" not in scene.scene_id
        except UsageError as error:
            one_line(error)
    assert WATCH.outside(folder) == []


# --- every reader ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SEEDS)
def test_no_bytes_end_in_anything_but_a_reason(name: str, tmp_path: Path, model: Model) -> None:
    seed = SEEDS[name]
    scene = seed.write(tmp_path)
    target = seed.target(scene)
    valid = target.read_bytes()
    read(str(scene))  # warm: what libraries load at first use is not the file's doing

    @FUZZ
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        target.write_bytes(data.draw(tampered))
        survives(scene, tmp_path, model)

    @st.composite
    def tampering(draw: st.DrawFn) -> bytes:
        return seed.tamper(draw, valid)

    tampered = tampering()
    check()


@pytest.mark.parametrize("name", HDF5)
def test_no_hdf5_content_ends_in_anything_but_a_reason(
    name: str, tmp_path: Path, model: Model
) -> None:
    scene = HDF5[name](tmp_path)
    valid = scene.read_bytes()
    read(str(scene))

    @st.composite
    def tampering(draw: st.DrawFn) -> None:
        scene.write_bytes(valid)
        tamper_hdf5(draw, scene)

    @FUZZ
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        data.draw(tampering())
        survives(scene, tmp_path, model)

    check()


# --- claims of size -------------------------------------------------------------------------------

_CLAIMS = """
import resource, sys, time
from pipeline.readers import open_scene
from pipeline.errors import SceneError
import numpy as np
open_scene(sys.argv[1]).isel(y=slice(0, 4), x=slice(0, 4)).load()
for uri in sys.argv[2:]:
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    try:
        scene = open_scene(uri)
        scene.reflectance.isel(y=slice(0, 8), x=slice(0, 8)).compute(scheduler="synchronous")
        said = "read"
    except SceneError as error:
        said = error.code
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(uri.rpartition("/")[2], said, grown, round(time.monotonic() - started, 1))
"""


def _claims(folder: Path) -> dict[str, str]:
    """Small or sparse files that claim terabytes, and what each gets."""
    made: dict[str, str] = {}

    def envi(name: str, code: str, bands: int, lines: int, samples: int) -> None:
        write_envi(folder, cube(), name=name, bands=bands, lines=lines, samples=samples)
        size = 2 * bands * lines * samples
        if size < 15 << 40:  # what a file system may hold as a hole
            os.truncate(folder / f"{name}.img", size)
        made[str(folder / f"{name}.hdr")] = code

    envi("bands", "unsupported", 2_000_000_000, 60, 60)
    envi("area", "unsupported", 3, 1_000_000, 1_000_000)
    envi("side", "unsupported", 1, 1, 2_000_000_000)
    envi("absent", "truncated", 2_000_000, 2_000_000, 2_000_000)
    for version in (2, 3):
        path = Path(write_zarr(folder / f"shape{version}.zarr", cube(), version))
        file = path / "reflectance" / ("zarr.json" if version == 3 else ".zarray")
        document = json.loads(file.read_text())
        document["shape"] = [1000, 10**6, 10**7]
        file.write_text(json.dumps(document))
        made[str(path)] = "unsupported"
    path = Path(write_zarr(folder / "chunk.zarr", cube()))
    document = json.loads((path / "reflectance" / "zarr.json").read_text())
    document["shape"] = [1000, 100_000, 100_000]
    document["chunk_grid"]["configuration"]["chunk_shape"] = [1000, 100_000, 100_000]
    (path / "reflectance" / "zarr.json").write_text(json.dumps(document))
    made[str(path)] = "unsupported"
    with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        header = str({"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6, 10)})
        data = b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode()
        archive.writestr("cube.npy", data + bytes(10**6))
    made[str(folder / "a.npz")] = "truncated"
    import rasterio
    from rasterio.windows import Window

    options = {"tiled": True, "blockxsize": 32768, "blockysize": 32768, "SPARSE_OK": True}
    size = 32768 * 4
    name = folder / "block.tif"
    with rasterio.open(
        name,
        "w",
        "GTiff",
        size,
        size,
        1,
        dtype="float64",
        compress="deflate",
        bigtiff=True,
        **options,
    ) as file:
        assert Window(0, 0, 1, 1).width == 1
        file.update_tags(x="y")
    made[str(name)] = "unsupported"
    return made


def test_claims_of_terabytes_allocate_nothing(tmp_path: Path) -> None:
    """In a process of its own whose memory grows by less than 200 MB, within seconds each."""
    warm = write_geotiff(tmp_path / "warm.tif", cube())
    claims = _claims(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_CLAIMS), warm, *claims],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = {
        name: rest.split()
        for name, _, rest in (line.partition(" ") for line in done.stdout.splitlines())
    }
    assert {Path(uri).name: code for uri, code in claims.items()} == {
        name: found[0] for name, found in said.items()
    }
    assert all(int(grown) < 200 and float(seconds) < 10 for _, grown, seconds in said.values()), (
        said
    )


# --- checkpoints ----------------------------------------------------------------------------------


def refused(path: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    one_line(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
def test_no_pickle_is_executed(tmp_path: Path, form: str) -> None:
    path, proof = tmp_path / "net.pth", tmp_path / "executed"
    if form == "pickle":
        path.write_bytes(pickle.dumps(_Bomb(proof)))
    else:
        content = {"final.weight": torch.zeros(1), "x": _Bomb(proof)}
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    refused(path, "refused")
    assert not proof.exists()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        buffer = io.BytesIO()
        np.save(buffer, np.array([[[_Bomb(proof)]]]), allow_pickle=True)
        archive.writestr("cube.npy", buffer.getvalue())
    with pytest.raises(SceneError):
        open_scene(str(tmp_path / "a.npz")).load()
    assert not proof.exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"features": 10**9},
        {"blocks": 10**9},
        {"bands": 10**12},
        {"bands": 10**12, "shared_branch": False},
        {"group_size": 2**62, "bands": 2**62},
        {"residual_scale": 1e308, "features": 2**31},
    ],
    ids=str,
)
def test_an_architecture_that_asks_for_terabytes(
    checkpoint: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    data = checkpoint.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    card = json.loads(header["__metadata__"]["card"])
    card["architecture"] |= changes
    card["wavelengths"] = None
    path = tmp_path / "net.safetensors"
    path.write_bytes(save_tensors(load_tensors(data), metadata={"card": json.dumps(card)}))
    refused(path)


def test_tensors_that_claim_more_than_the_file_holds(tmp_path: Path) -> None:
    wide = torch.zeros(1).expand(10**6, 10**6)
    torch.save({"branch.head.weight": wide, "final.weight": wide}, tmp_path / "view.pth")
    refused(tmp_path / "view.pth", "claims larger tensors")
    torch.save({"final.weight": torch.zeros(10**6)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    refused(tmp_path / "small.pth", "compressed")


@pytest.mark.parametrize("form", ["safetensors", "pth"])
def test_no_checkpoint_ends_in_anything_but_a_reason(
    checkpoint: Path, tmp_path: Path, form: str
) -> None:
    path = tmp_path / f"net.{form}"
    if form == "pth":
        torch.save(load_checkpoint(checkpoint)[0].state_dict(), path)
    else:
        path.write_bytes(checkpoint.read_bytes())
    valid = path.read_bytes()

    @st.composite
    def tampering(draw: st.DrawFn) -> bytes:
        if form == "safetensors" and draw(st.booleans()):
            size = int.from_bytes(valid[:8], "little")
            header = tamper_json(draw, valid[8 : 8 + size])
            return Content(len(header).to_bytes(8, "little") + header + valid[8 + size :])
        return tamper_bytes(draw, valid)

    @FUZZ
    @given(data=tampering())
    def check(data: bytes) -> None:
        path.write_bytes(data)
        with WATCH.watching():
            try:
                load_checkpoint(path)
            except CheckpointError as error:
                one_line(error)
        assert WATCH.outside(tmp_path) == []

    check()


# --- names and links ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *WORDS,
        "..",
        "../..",
        "/",
        "a/../../b",
        "stac",
        "_sr-archive",
        "CON",
        "nul.x",
        "a" * 300,
        "\ud800",
    ],
    ids=ascii,
)
def test_a_scene_id_is_one_harmless_name(name: str, tmp_path: Path) -> None:
    identity = scene_id(name)
    assert identity not in (".", "..", "_sr-archive", "CON", "nul.x") and len(identity) <= 130
    assert set(identity) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    store = SceneStore(str(tmp_path), identity)
    assert Path(store.path).parent == tmp_path and store.path.endswith(".zarr")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", ".x", "a\n", "\u202ex"], ids=ascii)
def test_no_store_is_made_of_another_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(SceneError):
        SceneStore(str(tmp_path), name)


def test_links_that_lead_out_of_the_source_are_not_followed(tmp_path: Path) -> None:
    """An ENVI header describes any bytes: its data may not be another's file."""
    source, other = tmp_path / "source", tmp_path / "other"
    source.mkdir()
    other.mkdir()
    (other / "secret").write_bytes(bytes(range(256)) * 64)
    write_envi(source, cube(4, 16, 16, "u1"), name="spy")
    (source / "spy.img").unlink()
    (source / "spy.img").symlink_to(other / "secret")
    write_geotiff(other / "far.tif", cube())
    (source / "far.tif").symlink_to(other / "far.tif")
    write_geotiff(source / "own.tif", cube())
    (source / "near.tif").symlink_to(source / "own.tif")
    os.mkfifo(source / "pipe.tif")
    (source / "zero.tif").symlink_to("/dev/zero")
    (source / "broken.tif").symlink_to(other / "absent")
    found = list_scenes(str(source))
    assert [scene.scene_id for scene in found.scenes] == ["near", "own"]
    assert {name: error.code for name, _, error in found.rejected} == {
        "far": "unsupported",
        "spy": "unsupported",
    }
    assert all("leads out of the source" in error.message for _, _, error in found.rejected)
    assert list_scenes(str(source / "own.tif")).scenes
    assert list_scenes(str(source / "far.tif")).scenes  # named by itself: the operator's word


def test_ids_that_differ_in_case_only(tmp_path: Path, model: Model) -> None:
    """Two scenes where the output tells them apart, one where it does not."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("A.tif", "a.tif"):
        write_geotiff(source / name, cube(12, 20, 20))
    if len(list(source.iterdir())) < 2:
        pytest.skip("this file system takes both names for one")
    (tmp_path / "folding").mkdir()
    (tmp_path / "FOLDING").symlink_to(tmp_path / "folding")  # as such a file system answers
    found = {}
    for output in ("apart", "folding"):
        run = RunSettings(source=str(source), output=str(tmp_path / output), tile=16)
        found[output] = [scene.status for scene in make_plan(run, model).scenes]
    assert found == {"apart": ["new", "new"], "folding": ["new", "quarantined"]}


def test_a_linked_scene_is_new_when_its_target_changes(tmp_path: Path) -> None:
    write_geotiff(tmp_path / "own.tif", cube())
    (tmp_path / "near.tif").symlink_to(tmp_path / "own.tif")
    before = list_scenes(str(tmp_path)).scenes[0]
    os.utime(tmp_path / "own.tif", (1e9, 1e9))
    after = list_scenes(str(tmp_path)).scenes[0]
    assert before.scene_id == after.scene_id == "near" and before.version != after.version


# --- an output that was tampered with -------------------------------------------------------------


def _state(folder: Path, model: Model) -> tuple[RunSettings, SceneStore]:
    """A scene that a run began: state, constants' place and a ledger with one tile."""
    write_geotiff(folder / "a.tif", cube(12, 40, 40))
    run = RunSettings(source=str(folder / "a.tif"), output=str(folder / "out"), tile=16)
    (plan,) = make_plan(run, model).scenes
    assert plan.job is not None
    store = plan.job.store()
    groups = {"zarr.json": json.dumps({"attributes": {}}).encode()}
    store.prepare(groups, b"", {"fingerprint": plan.fingerprint, "tiles": 9})
    store.record(TileRecord("0.0", ()))
    return run, store


_FILES = ("scene.json", "groups.json", "calibration.safetensors", "tiles/0.0.json", "ledger.json")


@pytest.mark.parametrize("name", _FILES)
def test_no_state_crashes_a_run(name: str, tmp_path: Path, model: Model) -> None:
    run, _ = _state(tmp_path, model)
    path = tmp_path / "out" / "_sr-archive" / "scenes" / "a" / name
    record = json.dumps(
        [{"tile": "0.0", "objects": [{"key": "../../x", "bytes": 1, "crc32c": ""}]}]
    )
    valid = path.read_bytes() if path.exists() and path.stat().st_size else record.encode()

    @st.composite
    def tampering(draw: st.DrawFn) -> bytes:
        text = name.endswith(".json") and draw(st.booleans())
        return tamper_json(draw, valid) if text else tamper_bytes(draw, valid)

    @FUZZ
    @given(data=tampering())
    def check(data: bytes) -> None:
        shutil.rmtree(run.output)
        _, store = _state(tmp_path, model)
        path.write_bytes(data)
        with WATCH.watching():
            (plan,) = make_plan(run, model).scenes
            assert plan.status == "new"  # there are no constants that could be read
            assert len(scenes_of(run.output)) == 1
            store.ledger()
            try:
                store.publish({"x": 1}, {str(number): TileRecord("0.0", ()) for number in range(9)})
            except (SceneError, RuntimeError) as error:
                one_line(error)
        assert WATCH.outside(tmp_path) == []

    check()


def test_state_never_writes_beside_the_scene(
    tmp_path: Path, model: Model, checkpoint: Path
) -> None:
    _, store = _state(tmp_path, model)
    folder = tmp_path / "out" / "_sr-archive" / "scenes" / "a"
    (folder / "groups.json").write_text(
        json.dumps({"../../planted/zarr.json": {}, "zarr.json": {}})
    )
    with pytest.raises(SceneError, match="damaged"):
        store.publish({}, {str(number): TileRecord("0.0", ()) for number in range(9)})
    assert not (tmp_path / "planted").exists() and store.published() is None
    outside = [{"key": "reflectance/../../../x", "bytes": 1, "crc32c": "0"}]
    (folder / "ledger.json").write_text(json.dumps([{"tile": "0.0", "objects": outside}]))
    assert store.ledger() == {}


def test_a_tampered_root_is_not_believed(tmp_path: Path, model: Model) -> None:
    run, store = _state(tmp_path, model)
    root = Path(store.path) / "zarr.json"
    root.parent.mkdir(parents=True, exist_ok=True)
    for text in ("", "[]", "{", "null", '{"attributes": 7}', '{"attributes": {"sr_archive": []}}'):
        root.write_text(text)
        (plan,) = make_plan(run, model).scenes
        assert plan.status in ("stale", "new") and plan.job is not None  # made anew either way
        assert scenes_of(run.output)[0].fingerprint == ""


def test_a_tampered_table_removes_nothing_outside(tmp_path: Path) -> None:
    from pipeline.stac.catalogue import catalogued, rebuild_catalogue
    from pipeline.stac.publication import bring_up_to_date
    from pipeline.stac.table import table_of, to_bytes

    victim = tmp_path / "victim.json"
    victim.write_text("{}")
    output = tmp_path / "out"
    (output / "stac").mkdir(parents=True)
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": "../../../victim",
        "collection": "c",
        "geometry": {"type": "Point", "coordinates": [13.0, 52.4]},
        "bbox": [13.0, 52.4, 13.0, 52.4],
        "properties": {"datetime": "2022-07-15T10:00:00Z", "sr:fingerprint": "f"},
        "links": [],
        "assets": {"data": {"href": "./x.zarr"}},
    }
    (output / "stac" / "items.parquet").write_bytes(
        to_bytes(table_of([item]), {"id": "c", "links": []})
    )
    assert set(catalogued(str(output))) == {"../../../victim"}
    bring_up_to_date(str(output), {}, ["../../../victim"])
    assert victim.exists() and catalogued(str(output)) == {}
    rebuild_catalogue(str(output))
