"""The report of an output: what is written, how much of it, and when again."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import xarray as xr

from infra.local_s3 import LocalS3
from model.degradation import downsample, upsample
from pipeline.errors import UsageError
from pipeline.readers import open_scene
from pipeline.report.aside import retry_command
from pipeline.report.extent import Limits, choose_extent
from pipeline.report.facts import plain
from pipeline.report.packing import NODATA, Quantiser
from pipeline.report.site import Report, make_report
from tests.archives import sr_archive

WEB = Path(__file__).parents[1] / "pipeline" / "report" / "web"
SECRET = "hunter2Xq"
SCENES = ["envi", "store", "tiff"]


@pytest.fixture(scope="module")
def made(archive_output: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    target = tmp_path_factory.mktemp("report")
    return target, make_report(str(archive_output / "output"), str(target))


@pytest.fixture
def copied(archive_output: Path, tmp_path: Path) -> Path:
    """An output that a test may change; its scenes record the sources of the original."""
    return Path(shutil.copytree(archive_output / "output", tmp_path / "output"))


def payload(path: Path) -> Any:
    """What a page receives from a data script."""
    text = path.read_text("ascii")
    assert text.startswith("srReceive(") and text.endswith(");\n")
    return json.loads(f"[{text[len('srReceive(') : -3]}]")[1]


def overview(folder: Path) -> dict[str, Any]:
    packed = base64.b64decode(payload(folder / "overview-data.js"))
    found: dict[str, Any] = json.loads(zlib.decompress(packed))
    return found


def unpacked(text: str, *shape: int) -> np.ndarray:
    high, low = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(2, *shape)
    return np.cumsum(high.astype(np.uint16) << 8 | low, axis=-1, dtype=np.uint16)


def decoded(text: str, shape: tuple[int, ...], offset: float, step: float) -> np.ndarray:
    codes = unpacked(text, *shape)
    return np.where(codes == NODATA, np.nan, offset + step * codes)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def change_attributes(output: Path, scene_id: str, **changes: Any) -> None:
    """Change the root attribute `sr_archive` of a published scene."""
    root = output / f"{scene_id}.zarr" / "zarr.json"
    document = json.loads(root.read_text())
    document["attributes"]["sr_archive"] |= changes
    root.write_text(json.dumps(document))


def test_every_scene_has_a_page_and_the_overview_all(made: tuple[Path, Report]) -> None:
    folder, report = made
    assert sorted(report.written) == SCENES and not report.notes
    for scene_id in SCENES:
        names = set(contents(folder / "scenes" / scene_id))
        assert {"index.html", "scene.js", "quicklook.png", "thumbnail.webp"} <= names
        assert {"bands/0.js", "spectra/0.0.js"} <= names
    facts = overview(folder)
    assert [row["id"] for row in facts["scenes"]] == SCENES
    [aside] = facts["aside"]
    assert (aside["id"], aside["status"], aside["code"]) == (
        "deep__rgb", "quarantined", "too-few-bands",
    )  # fmt: skip
    [run] = facts["runs"]
    assert run["counts"] == {"published": 3, "skipped": 0, "quarantined": 1}
    west, south = np.min(facts["scenes"][2]["outline"]["coordinates"][0][0], axis=0)
    assert 12 < west < 14 and 52 < south < 53  # UTM 33 north, as tests.scenes places it


def test_values_are_those_of_the_store_and_of_the_source(
    made: tuple[Path, Report], archive_output: Path
) -> None:
    scene = made[0] / "scenes" / "tiff"
    facts = payload(scene / "scene.js")
    pixels, scale = facts["pixels"], facts["pixels"]["scale"]
    result = xr.open_zarr(archive_output / "output" / "tiff.zarr")["reflectance"].values
    source = open_scene(str(archive_output / "source" / "tiff.tif"))["reflectance"].values
    assert pixels["exact"] and pixels["window"] == [0, 40, 0, 52]
    band = pixels["bands"][4]
    offset, step, reach = pixels["offset"][band], pixels["step"][band], pixels["reach"]
    shown = payload(scene / "bands" / f"{band}.js")
    high = decoded(shown["high"], (40 * scale, 52 * scale), offset, step)
    np.testing.assert_allclose(high, result[band], rtol=0, atol=1e-7)
    low = decoded(shown["low"], (40 + 2 * reach, 52 + 2 * reach), offset, step)
    low = low[reach:-reach, reach:-reach]
    low[unpacked(shown["gaps"], 40, 52) != 0] = np.nan
    np.testing.assert_allclose(low, source[band], rtol=0, atol=1e-7)
    block = payload(scene / "spectra" / "0.0.js")
    side = min(pixels["block"], 40), min(pixels["block"], 52)
    codes = unpacked(block["high"], len(facts["good"]), side[0] * scale, side[1] * scale)
    step, offset = (np.reshape(pixels[name], (-1, 1, 1)) for name in ("step", "offset"))
    spectra = np.where(codes == NODATA, np.nan, offset + step * codes)
    expected = result[:, : side[0] * scale, : side[1] * scale]
    np.testing.assert_allclose(spectra, expected, rtol=0, atol=1e-7)


def test_the_spread_comes_with_the_spectra(uncertain: Path) -> None:
    """In the part whose spectra are shown, which is not all of the scene here."""
    folder = uncertain / "report"
    make_report(str(uncertain / "out"), str(folder), limits=Limits(spectra_megabytes=0.09))
    scene = folder / "scenes" / "tiff"
    pixels, expected = (
        payload(scene / "scene.js")["pixels"],
        xr.open_zarr(uncertain / "out/tiff.zarr"),
    )
    top, bottom, left, right = pixels["spectra"]
    assert 0 < top < bottom < 40 and 0 < left < right < 52
    spread = expected["reflectance_spread"].values[:, 4 * top : 4 * bottom, 4 * left : 4 * right]
    side = 4 * min(pixels["block"], bottom - top), 4 * min(pixels["block"], right - left)
    text = payload(scene / "spectra" / "0.0.js")["spread"]
    ours = decoded(text, (12, *side), 0.0, pixels["spread_step"])
    theirs = spread[:, : side[0], : side[1]]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=pixels["spread_step"])
    assert np.nanmax(theirs) > 100 * pixels["spread_step"]


def test_the_error_map_is_the_degraded_result_minus_the_scene(
    made: tuple[Path, Report], archive_output: Path
) -> None:
    import torch

    scene = made[0] / "scenes" / "envi"
    pixels = payload(scene / "scene.js")["pixels"]
    band, scale = pixels["bands"][2], pixels["scale"]
    source = open_scene(str(archive_output / "source" / "envi.hdr"))["reflectance"][band].values
    result = xr.open_zarr(archive_output / "output" / "envi.zarr")["reflectance"][band].values
    error = payload(scene / "bands" / f"{band}.js")["error"]
    low = torch.from_numpy(source).double()
    both = {"high": torch.from_numpy(result).double(), "bicubic": upsample(low, scale)}
    for name, fine in both.items():
        expected = (downsample(fine, scale) - low).numpy()
        found = decoded(error[name], source.shape, error["offset"], error["step"])
        np.testing.assert_allclose(found, expected, rtol=0, atol=2 * error["step"] + 1e-7)


def test_the_same_output_gives_the_same_bytes_and_nothing_is_done_twice(
    made: tuple[Path, Report], archive_output: Path, tmp_path: Path
) -> None:
    folder, _ = made
    output = str(archive_output / "output")
    before = contents(folder)
    again = make_report(output, str(folder))
    assert (again.written, sorted(again.unchanged)) == ([], SCENES)
    one = make_report(output, str(tmp_path), ["envi"])
    assert one.written == ["envi"]
    assert [row.get("bands") for row in overview(tmp_path)["scenes"]] == [12, None, None]
    make_report(output, str(tmp_path))
    assert contents(tmp_path) == before == contents(folder)


def test_changed_scenes_are_done_again_and_gone_ones_removed(copied: Path) -> None:
    output = str(copied)
    make_report(output)
    change_attributes(copied, "envi", fingerprint="another")
    (copied / "store.zarr" / "zarr.json").unlink()
    again = make_report(output)
    assert (again.written, again.unchanged, again.removed) == (["envi"], ["tiff"], ["store"])
    assert not (copied / "report" / "scenes" / "store").exists()
    ids = {row["id"]: row["status"] for row in overview(copied / "report")["aside"]}
    assert ids["store"] == "unfinished"
    smaller = make_report(output, limits=Limits(max_side=16))
    assert sorted(smaller.written) == ["envi", "tiff"]


def test_without_its_source_a_scene_is_shown_alone_until_the_source_is_back(
    copied: Path, archive_output: Path
) -> None:
    source = archive_output / "source" / "tiff.tif"
    change_attributes(copied, "tiff", source=f"{source}.gone")
    report = make_report(str(copied), scenes=["tiff"])
    assert "tiff without its source" in report.notes[0]
    scene = copied / "report" / "scenes" / "tiff"
    facts = payload(scene / "scene.js")
    assert not facts["pixels"]["has_low"] and "unreadable" in facts["origin"]
    assert set(payload(scene / "bands" / "0.js")) == set(payload(scene / "spectra" / "0.0.js"))
    assert set(payload(scene / "bands" / "0.js")) == {"high"}
    assert make_report(str(copied), scenes=["tiff"]).unchanged == ["tiff"]
    change_attributes(copied, "tiff", source=str(source))
    assert make_report(str(copied), scenes=["tiff"]).written == ["tiff"]
    assert payload(scene / "scene.js")["pixels"]["has_low"]


def test_another_version_of_the_source_is_not_taken_for_it(copied: Path) -> None:
    change_attributes(copied, "envi", source_version="etag:other")
    report = make_report(str(copied), scenes=["envi"])
    assert "source-changed" in report.notes[0]


def test_hostile_text_is_data_and_credentials_are_nowhere(copied: Path) -> None:
    evil = f"</script><img src=x onerror=alert(1)>\u2028 https://user:{SECRET}@host/?sig={SECRET}"
    change_attributes(copied, "envi", source=evil, bands_note=evil, model=evil, card={evil: [evil]})
    aside = copied / "_sr-archive" / "quarantine" / "deep__rgb.json"
    aside.write_text(json.dumps({"code": evil, "message": evil, "source": evil, "time": 3}))
    (copied / "_sr-archive" / "runs" / "20990101-x.json").write_text('{"rows": [{}]}')
    make_report(str(copied))
    for name, data in contents(copied / "report").items():
        assert SECRET.encode() not in data, name
        if name.endswith(".js") and not name.startswith("assets/"):
            assert b"<" not in data and data.isascii() and data.count(b"\n") == 1, name
    told = json.dumps(overview(copied / "report"))
    assert "onerror" in told and SECRET not in told
    assert SECRET not in json.dumps(plain({f"password={SECRET}": [f"token={SECRET}"]}))


@pytest.mark.parametrize("scale", [None, True, 0, 10**9, "4"])
def test_a_scene_that_cannot_be_shown_is_a_note(copied: Path, scale: Any) -> None:
    change_attributes(copied, "envi", scale=scale)
    report = make_report(str(copied), scenes=["envi"])
    assert report.notes[0].startswith("no page of envi: bad-header")
    rows = {row["id"]: row for row in overview(copied / "report")["scenes"]}
    assert rows["envi"] == {"id": "envi"}


@pytest.mark.parametrize(
    ("bands", "rows", "columns"), [(224, 4000, 4800), (31, 512, 512), (10_000, 8192, 64), (1, 8, 8)]
)
def test_a_page_is_bounded_whatever_the_scene(bands: int, rows: int, columns: int) -> None:
    limits = Limits()
    good = np.ones(bands, dtype=bool)
    extent = choose_extent((bands, rows, columns), 4, good, None, limits)
    window, spectra = extent.images.scaled(4), extent.spectra.scaled(4)
    assert max(window.shape) <= limits.max_side
    assert len(extent.bands) <= limits.max_bands
    assert set(extent.composite) <= set(extent.bands)
    assert spectra.pixels * bands * 2 <= limits.spectra_megabytes * 1e6
    assert window.top <= spectra.top and spectra.bottom <= window.bottom <= rows
    assert (4 * extent.block) ** 2 * bands * 2 <= max(1 << 18, 16 * bands * 2)


def test_values_of_floats_are_kept_to_a_65000th_of_their_range() -> None:
    values = np.random.default_rng(0).normal(0, 1e-3, (20, 30))
    values[3, 4] = np.nan
    quantiser = Quantiser.of(values)
    codes = quantiser.codes(values)
    assert not quantiser.exact and codes[3, 4] == NODATA
    back = quantiser.offset + quantiser.step * codes
    known = np.isfinite(values)
    assert np.abs(back - values)[known].max() <= np.ptp(values[known]) / 65000
    assert Quantiser.of(np.full((2, 2), np.nan)).codes(values)[3, 4] == NODATA


@pytest.mark.parametrize("scale", [1e-4, 1.0, -1e-4])
def test_counts_are_kept_as_they_are(scale: float) -> None:
    counts = np.array([[-32767, -5, 0, 7, 20000]])
    quantiser = Quantiser.of(counts * scale + 0.1, lattice=(scale, 0.1))
    back = quantiser.offset + quantiser.step * quantiser.codes(counts * scale + 0.1)
    assert quantiser.exact
    np.testing.assert_array_equal(np.rint((back - 0.1) / scale), counts)


@pytest.mark.parametrize(
    ("scene_id", "source", "expected"),
    [
        ("a", "/data/a.tif", "/data"),
        ("x__a", "s3://bucket/deep/x/a.tif", "s3://bucket/deep"),
        ("a_b", "/my data/a b.hdr", "'/my data'"),
        ("other", "/data/a.tif", "/data/a.tif"),
        ("a", "", "SOURCE"),
    ],
)
def test_the_retry_command_names_the_folder_that_gives_the_id(
    scene_id: str, source: str, expected: str
) -> None:
    command = retry_command(scene_id, source, "s3://b/o ut")
    assert command == f"sr-archive run {expected} 's3://b/o ut' --include {scene_id}"


def test_the_retry_command_finds_the_scene(made: tuple[Path, Report]) -> None:
    [aside] = overview(made[0])["aside"]
    _, _, source, _, _, included = aside["command"].split()
    listed = json.loads(sr_archive("list", source, "--include", included, "--json").stdout)
    assert [scene["scene_id"] for scene in listed["scenes"]] == ["deep__rgb"]


def test_nothing_is_written_where_other_things_lie(archive_output: Path, tmp_path: Path) -> None:
    (tmp_path / "scenes" / "envi").mkdir(parents=True)
    (tmp_path / "scenes" / "envi" / "mine.tif").write_bytes(b"x")
    with pytest.raises(UsageError, match="holds other things"):
        make_report(str(archive_output / "output"), str(tmp_path))
    assert list(contents(tmp_path)) == ["scenes/envi/mine.tif"]


def test_a_report_in_a_bucket(archive_output: Path, s3: LocalS3, made: tuple[Path, Report]) -> None:
    report = make_report(str(archive_output / "output"), s3.url("report"))
    assert report.index == s3.url("report/index.html")
    filesystem = fsspec.filesystem("s3")
    names = {path.partition("/report/")[2] for path in filesystem.find(s3.url("report"))}
    assert names == set(contents(made[0]))
    types = {
        name: filesystem.info(s3.url(f"report/{name}"), refresh=True)["ContentType"]
        for name in ("index.html", "scenes/envi/index.html", "assets/scene.js", "assets/style.css")
    }
    assert {kind.partition(";")[0] for kind in types.values()} == {
        "text/html", "text/javascript", "text/css",
    }  # fmt: skip
    assert sorted(make_report(str(archive_output / "output"), s3.url("report")).unchanged) == SCENES


def test_the_command(archive_output: Path, copied: Path, tmp_path: Path) -> None:
    done = sr_archive("report", copied, "--to", tmp_path / "r", "--scene", "envi", "--all-bands")
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "r" / "index.html") in done.stdout
    assert len(list((tmp_path / "r" / "scenes" / "envi" / "bands").iterdir())) == 12
    for arguments, told in (
        ([archive_output / "source"], "no output of sr-archive"),
        ([copied, "--scene", "nosuch"], "nosuch"),
    ):
        failed = sr_archive("report", *arguments)
        assert failed.returncode == 2 and told in failed.stderr
        assert "Traceback" not in failed.stderr


def test_the_built_site_is_that_of_its_sources() -> None:
    names = [
        "build.mjs",
        "package-lock.json",
        *(f"src/{path.name}" for path in (WEB / "src").iterdir()),
    ]
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode() + b"\0" + (WEB / name).read_bytes() + b"\0")
    stated = (WEB.parent / "site" / "SOURCES.sha256").read_text().strip()
    assert stated == digest.hexdigest(), "build it again: see docs/report.md"


@pytest.mark.slow
def test_building_again_gives_the_same_site(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("no npm: the site cannot be built here")
    web = shutil.copytree(WEB, tmp_path / "web", ignore=shutil.ignore_patterns("node_modules"))
    (tmp_path / "site").mkdir()
    for command in (["npm", "ci", "--ignore-scripts", "--no-audit"], ["npm", "run", "build"]):
        subprocess.run(command, cwd=web, check=True, timeout=240)
    assert contents(tmp_path / "site") == contents(WEB.parent / "site")
