"""Faults put into a published scene: found, mended by the printed command, the bytes as before."""

from __future__ import annotations

import io
import json
import shlex
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import google_crc32c
import numpy as np
import pytest
import xarray as xr
import zarr
from typer.testing import CliRunner, Result

from infra.local_s3 import LocalS3
from pipeline import cli
from pipeline.arrays import WrittenObject
from pipeline.copies import Copies
from pipeline.errors import SceneError
from pipeline.integrity import Fault, scenes_to_verify, verify_scene
from pipeline.ledger import ledger_bytes
from pipeline.recompute import recorded_options
from pipeline.stac.check import verify_catalogue
from pipeline.storage import join
from pipeline.store import SceneStore
from tests.archives import NODATA, SCALE_FACTOR, counts, publish
from tests.scenes import write_geotiff

SCENE = "one"

# As the worker of `publish` has: another order of sums shows in the spread's last bit.
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A scene of 3 x 5 tiles with overviews and a nodata corner."""
    holed = counts(44, 72)
    holed[:, :9, :14] = NODATA
    folder = tmp_path_factory.mktemp("source")
    return Path(write_geotiff(folder / f"{SCENE}.tif", holed, scale=SCALE_FACTOR, nodata=NODATA))


@pytest.fixture(scope="module", params=["sharded", "plain"])
def pristine(
    request: pytest.FixtureRequest,
    source: Path,
    model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / "out"
    # With an array more in one of the layouts.
    spread = request.param == "plain"
    publish(str(source), str(folder), model, layout=request.param, uncertainty=spread)
    return folder


@pytest.fixture
def output(pristine: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to be damaged; commands find the model as an operator's environment tells it."""
    monkeypatch.setenv("SR_ARCHIVE_MODEL", str(model))
    return Path(shutil.copytree(pristine, tmp_path / "out"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def follow(command: str) -> Result:
    """Run a printed command as a shell would split it."""
    name, *arguments = shlex.split(command)
    assert name == "sr-archive"
    return run(*arguments)


def content(folder: Path) -> dict[str, bytes]:
    """All bytes of an output but the journal of repairs."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "repairs.json"
    }


def found(output: Path, *, deep: bool) -> list[Fault]:
    there = scenes_to_verify(str(output))
    faults = [f for name in there for f in verify_scene(SceneStore(str(output), name), deep=deep)]
    return faults + verify_catalogue(str(output), there, deep=deep)


def mend(output: Path, faults: list[Fault]) -> None:
    for command in dict.fromkeys(fault.command for fault in faults):
        result = follow(command)
        assert result.exit_code == 0, (command, result.output)


def is_sharded(output: Path) -> bool:
    return (output / f"{SCENE}.zarr" / "zarr.json").exists()


def shard(output: Path, array: str = "reflectance") -> Path:
    """An object of tile 1.2."""
    sharded = {"reflectance": "c/0/1/2", "quality": "c/1/2", "overviews/2/reflectance": "c/0/1/2"}
    plain = {"reflectance": "0.1.2", "quality": "1.2", "overviews/2/reflectance": "0.1.2"}
    key = (sharded if is_sharded(output) else plain)[array]
    return output / f"{SCENE}.zarr" / array / key


def flip(path: Path, place: int = -7) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))


def coordinate(output: Path) -> Path:
    return output / f"{SCENE}.zarr" / "wavelength" / ("c/0" if is_sharded(output) else "0")


def document(output: Path) -> Path:
    name = "zarr.json" if is_sharded(output) else ".zarray"
    return output / f"{SCENE}.zarr" / "reflectance" / name


def root(output: Path) -> Path:
    return output / f"{SCENE}.zarr" / ("zarr.json" if is_sharded(output) else ".zattrs")


def state(output: Path, name: str) -> Path:
    return output / "_sr-archive" / "scenes" / SCENE / name


def add(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"foreign")


def write_entry(output: Path, key: str, value: str) -> None:
    """Change one field of the item, so that it is another scene's."""
    path = output / "stac" / "items" / f"{SCENE}.json"
    item = json.loads(path.read_text())
    item["properties"][key] = value
    path.write_text(json.dumps(item))


# name: the damage, what the fast check says of it (None: nothing), what the deep one says
FAULTS: dict[str, tuple[Callable[[Path], object], str | None, str]] = {
    "missing shard": (lambda o: shard(o).unlink(), "missing", "missing"),
    "missing shard of quality": (lambda o: shard(o, "quality").unlink(), "missing", "missing"),
    "truncated shard": (
        lambda o: shard(o).write_bytes(shard(o).read_bytes()[:-9]),
        "size",
        "size",
    ),
    "flipped byte": (lambda o: flip(shard(o)), None, "checksum"),
    "flipped byte in an overview": (
        lambda o: flip(shard(o, "overviews/2/reflectance")),
        None,
        "checksum",
    ),
    "foreign shard": (lambda o: add(shard(o).parent / "77"), "foreign", "foreign"),
    "foreign file": (lambda o: add(o / f"{SCENE}.zarr" / "x" / "notes.txt"), "foreign", "foreign"),
    "missing coordinate": (lambda o: coordinate(o).unlink(), "missing", "missing"),
    "altered coordinate": (lambda o: flip(coordinate(o), 3), None, "altered"),
    "missing metadata": (lambda o: document(o).unlink(), "missing", "missing"),
    "altered metadata": (lambda o: flip(document(o), 40), None, "altered"),
    "altered root": (lambda o: flip(root(o), 2), "altered", "altered"),
    "missing root": (lambda o: root(o).unlink(), "missing", "missing"),
    "unreadable ledger": (
        lambda o: state(o, "ledger.json").write_bytes(b"[{"),
        "ledger",
        "ledger",
    ),
    "missing ledger": (lambda o: state(o, "ledger.json").unlink(), "ledger", "ledger"),
    "missing constants": (
        lambda o: state(o, "calibration.safetensors").unlink(),
        "altered",
        "altered",
    ),
    "missing item": (lambda o: (o / "stac/items/one.json").unlink(), "catalogue", "catalogue"),
    "foreign item": (lambda o: add(o / "stac/items/two.json"), "catalogue", "catalogue"),
    "item of another version": (
        lambda o: write_entry(o, "sr:fingerprint", "0" * 64),
        None,
        "catalogue",
    ),
    "missing table": (lambda o: (o / "stac/items.parquet").unlink(), "catalogue", "catalogue"),
    "torn table": (
        lambda o: (o / "stac/items.parquet").write_bytes(b"PAR1"),
        "catalogue",
        "catalogue",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found_and_mended_by_its_command(output: Path, name: str) -> None:
    before = content(output)
    damage, fast, deep = FAULTS[name]
    damage(output)
    assert content(output) != before
    assert {fault.kind for fault in found(output, deep=False)} == ({fast} if fast else set())
    faults = found(output, deep=True)
    assert {fault.kind for fault in faults} == {deep}
    mend(output, faults)
    assert found(output, deep=True) == []
    after = content(output)
    if deep == "catalogue":  # a table is compressed anew, and tells no time
        before, after = ({k: d for k, d in c.items() if "stac/" not in k} for c in (before, after))
    assert after == before


def test_a_sound_output_has_no_fault_and_is_left_alone(output: Path) -> None:
    before = content(output)
    assert found(output, deep=True) == []
    assert run("verify", output, "--deep").exit_code == 0
    result = run("repair", output, "--deep")
    assert result.exit_code == 0 and "one: scene: sound" in result.output
    again = run("repair", output, "--scene", SCENE, "--tile", "1.2", "--tile", "0.0", "--json")
    assert [entry["status"] for entry in json.loads(again.stdout)] == ["sound", "sound"]
    assert content(output) == before


def test_one_command_mends_many_faults(output: Path) -> None:
    before = content(output)
    for name in ("missing shard", "foreign shard", "missing coordinate", "unreadable ledger"):
        FAULTS[name][0](output)
    flip(shard(output, "quality"))
    shown = run("verify", output)
    assert shown.exit_code == 3
    assert f"sr-archive repair {output} --scene one --tile 1.2" in shown.output
    assert run("repair", output, "--deep").exit_code == 0
    assert found(output, deep=True) == []
    assert content(output) == before
    [entry] = json.loads(state(output, "repairs.json").read_text())
    assert {"tile 1.2", "state: ledger.json"} <= {change["what"] for change in entry["changes"]}


def test_a_tile_that_the_ledger_lacks_is_computed_again(output: Path) -> None:
    """Its objects are ours all the same, never foreign."""
    before = content(output)
    store = SceneStore(str(output), SCENE)
    records = {key: record for key, record in store.ledger().items() if key != "1.2"}
    copies = store.copies()
    assert copies is not None
    store.keep(Copies(copies.scene, {**copies.state, "ledger.json": ledger_bytes(records)}))
    store.put_state("ledger.json", ledger_bytes(records))
    faults = found(output, deep=True)
    assert [(fault.kind, fault.tile) for fault in faults] == [("ledger", "1.2")]
    mend(output, faults)
    assert found(output, deep=True) == []
    assert {k: d for k, d in content(output).items() if "zarr/" in k} == {
        k: d for k, d in before.items() if "zarr/" in k
    }


def test_without_copies_what_lies_there_is_recorded_if_accepted(output: Path) -> None:
    """As with scenes of an earlier version."""
    before = content(output)
    state(output, "copies.zip").unlink()
    [fault] = found(output, deep=True)
    assert fault.kind == "copies"
    refused = run("repair", output)
    assert refused.exit_code == 3 and "--accept" in refused.output
    mend(output, [fault])
    assert found(output, deep=True) == []
    assert content(output) == before


def test_damaged_copies_are_a_fault(output: Path) -> None:
    flip(state(output, "copies.zip"), 60)
    assert [fault.kind for fault in found(output, deep=False)] == ["copies"]


@pytest.mark.parametrize("name", ["scene/../../x", "scene//x", "other/x", "scene/a\\..\\x"])
def test_copies_that_would_be_written_elsewhere_are_refused(name: str) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(SceneError, match="foreign member"):
        Copies.from_bytes(file.getvalue())


def test_neither_ledger_nor_copies_every_tile_is_computed_again(output: Path) -> None:
    before = content(output)
    state(output, "copies.zip").unlink()
    state(output, "ledger.json").unlink()
    shard(output).unlink()
    result = run("repair", output, "--scene", SCENE, "--accept")
    assert result.exit_code == 0, result.output
    assert found(output, deep=True) == []
    ours = {k: d for k, d in content(output).items() if "zarr/" in k}
    assert ours == {k: d for k, d in before.items() if "zarr/" in k}


def test_a_root_is_not_restored_while_tiles_are_missing(output: Path) -> None:
    shard(output).unlink()
    root(output).unlink()
    result = run("repair", output, "--metadata")
    assert result.exit_code == 3 and "missing" in result.output
    assert SceneStore(str(output), SCENE).published() is None
    assert run("repair", output).exit_code == 0
    assert found(output, deep=True) == []


def change(output: Path, off: int) -> None:
    """Change stored values of tile 1.2, ledger and all, as a foreign computation would."""
    store = SceneStore(str(output), SCENE)
    array = zarr.open_array(output / f"{SCENE}.zarr" / "reflectance", mode="r+")
    array[3, 70:80, 130:140] += off
    record_again(store)


def record_again(store: SceneStore) -> None:
    """Make the ledger and its copy say that what lies there is tile 1.2."""
    records = store.ledger()
    objects = tuple(
        WrittenObject.of(item.key, store.read(item.key)) for item in records["1.2"].objects
    )
    records["1.2"] = replace(records["1.2"], objects=objects)
    copies = store.copies()
    assert copies is not None
    store.keep(Copies(copies.scene, {**copies.state, "ledger.json": ledger_bytes(records)}))
    store.put_state("ledger.json", ledger_bytes(records))


def test_what_was_recorded_and_cannot_be_decoded_is_a_fault(output: Path) -> None:
    shard(output).write_bytes(shard(output).read_bytes()[:-100])
    record_again(SceneStore(str(output), SCENE))
    assert found(output, deep=False) == []
    [fault] = found(output, deep=True)
    assert (fault.kind, fault.tile) == ("undecodable", "1.2")
    refused = run("repair", output, "--scene", SCENE, "--tile", "1.2")
    assert refused.exit_code == 3 and "nothing that can be read" not in refused.output
    assert run("repair", output, "--scene", SCENE, "--tile", "1.2", "--accept").exit_code == 0
    assert found(output, deep=True) == []


@pytest.mark.parametrize(("off", "status"), [(0, 0), (1, 0), (7, 3)])
def test_replay_says_by_how_much_a_tile_differs(output: Path, off: int, status: int) -> None:
    if off:
        change(output, off)
    before = content(output)
    result = run("replay", output, "--scene", SCENE, "--tile", "1.2", "--json")
    assert result.exit_code == status, result.output
    facts = json.loads(result.stdout)
    arrays = {entry["array"]: entry for entry in facts["arrays"]}
    assert ("reflectance_spread" in arrays) != is_sharded(output)
    assert all(entry["equal"] == entry["values"] for n, entry in arrays.items() if "spread" in n)
    values = arrays["reflectance"]
    assert facts["identical"] == (off == 0)
    assert np.isclose(values["maximum"], off * SCALE_FACTOR)
    assert values["values"] - values["equal"] == (100 if off else 0)
    assert np.flatnonzero(values["per_band"]).tolist() == ([3] if off else [])
    assert content(output) == before
    assert run("replay", output, "--scene", SCENE, "--tile", "1.2").exit_code == status


def test_the_ledger_tells_two_sound_shards_apart(tmp_path: Path) -> None:
    """Both end in the CRC-32C of what they hold, so CRC-32C over all of either is the same."""
    one, two = (
        data + google_crc32c.value(data).to_bytes(4, "little")
        for data in (b"one chunk", b"a chunky.")
    )
    first, second = WrittenObject.of("key", one), WrittenObject.of("key", two)
    assert first.crc32c == second.crc32c and not first.is_of(two)
    assert replace(first, sha256="").is_of(one)  # of an earlier version


def test_what_differs_is_written_only_if_accepted(output: Path) -> None:
    original = content(output)
    change(output, 7)
    changed = content(output)
    result = run("repair", output, "--scene", SCENE, "--tile", "1.2")
    assert result.exit_code == 3, result.output
    assert "7 counts" in result.output and "differs" in result.output
    assert content(output) == changed
    accepted = run("repair", output, "--scene", SCENE, "--tile", "1.2", "--accept")
    assert accepted.exit_code == 0 and "accepted" in accepted.output
    assert found(output, deep=True) == []
    ours = {k: d for k, d in content(output).items() if "zarr/" in k}
    assert ours == {k: d for k, d in original.items() if "zarr/" in k}


def test_other_weights_source_or_version_are_refused(
    output: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard(output).unlink()
    before = content(output)
    arguments = ("repair", output, "--scene", SCENE, "--tile", "1.2")
    other = run(*arguments, "--model", "starter")
    assert other.exit_code == 3 and "not-repeatable" in other.output and "--model" in other.output
    replayed = run("replay", output, "--scene", SCENE, "--tile", "0.0", "--model", "starter")
    assert replayed.exit_code == 3
    moved = Path(shutil.copy(source, tmp_path / f"{SCENE}.tif"))
    changed = run(*arguments, "--source", moved)
    assert changed.exit_code == 3 and "source-changed" in changed.output
    absent = run(*arguments, "--source", tmp_path / "nothing.tif")
    assert absent.exit_code == 3 and "does not exist" in absent.output
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.recompute.code_version", lambda: "99.0")
        newer = run(*arguments)
    assert newer.exit_code == 3 and "99.0" in newer.output
    assert content(output) == before
    assert run(*arguments, "--source", source.parent).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("repair", "--tile", "0.0"), "exactly one --scene"),
        (("repair", "--scene", "nobody"), "not published"),
        (("repair", "--scene", SCENE, "--tile", "9.9"), "0.0 to 2.4"),
        (("repair", "--scene", SCENE, "--tile", "../x"), "--tile"),
        (("replay", "--scene", SCENE, "--tile", "0.5"), "0.0 to 2.4"),
        (("replay", "--scene", SCENE, "--tile", "0.0", "--model", "/none.safetensors"), "--model"),
    ],
)
def test_bad_options_are_one_line(
    output: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    command, *rest = arguments
    monkeypatch.setattr("sys.argv", ["sr-archive", command, str(output), *rest])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capfd.readouterr().err
    assert ended.value.code == 2 and message in error and "Traceback" not in error


def test_options_of_an_older_record() -> None:
    old = {
        "tile": 64, "attention": "scene", "bands": "auto", "normalise": "auto",
        "dtype": "source", "layout": "sharded",
    }  # fmt: skip
    options = recorded_options({"options": old})
    assert options.precision == "fp32" and options.mask == () and not options.conserve
    assert recorded_options({"options": {**old, "mask": ["cloud"]}}).mask == ("cloud",)
    with pytest.raises(SceneError, match="lacks: hue"):
        recorded_options({"options": {**old, "hue": 1}})
    with pytest.raises(SceneError, match="lacks the options layout, tile"):
        recorded_options({"options": {k: old[k] for k in old if k not in ("tile", "layout")}})
    with pytest.raises(SceneError, match="recorded option layout"):
        recorded_options({"options": {**old, "layout": "round"}})


def test_on_s3(s3: LocalS3, source: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SR_ARCHIVE_MODEL", str(model))
    base = f"s3://{s3.bucket}/repair"
    files = fsspec.filesystem("s3")
    files.put(str(source), f"{base}/source/{SCENE}.tif")
    output = f"{base}/out"
    publish(f"{base}/source", output, model)
    store = SceneStore(output, SCENE)

    def bytes_there() -> dict[str, bytes]:
        files.invalidate_cache()
        return {path: files.cat_file(path) for path in files.find(store.url)}

    before = bytes_there()
    store.put("reflectance/c/0/1/2", b"cut")
    flipped = bytearray(store.read("quality/c/0/0"))
    flipped[3] ^= 4
    store.put("quality/c/0/0", bytes(flipped))
    store.remove("wavelength/c/0")
    store.put("reflectance/c/0/9/9", b"foreign")
    assert run("verify", output).exit_code == 3
    shown = json.loads(run("verify", output, "--deep", "--json").stdout)
    kinds = {fault["kind"] for fault in shown["scenes"][SCENE]}
    assert kinds == {"size", "checksum", "missing", "foreign"}
    for command in dict.fromkeys(fault["command"] for fault in shown["scenes"][SCENE]):
        assert follow(command).exit_code == 0
    assert run("verify", output, "--deep").exit_code == 0
    assert bytes_there() == before
    with xr.open_zarr(store.url) as opened:
        assert opened["wavelength"].size == 12
    files.rm(join(base, "out"), recursive=True)
