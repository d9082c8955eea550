"""Evaluation: the same figures as `model.metrics`, the same pixels as a run, honest intervals."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image
from scipy.stats import bootstrap

import pipeline.evaluation.regions as regions
from model import SSPSR, Card, inference, load_checkpoint
from model.checkpoint import weights_digest
from model.degradation import downsample, gaussian, upsample
from model.metrics import assess
from pipeline import UsageError, cli, open_scene
from pipeline.errors import SceneError
from pipeline.evaluation import Evaluation, EvaluationError, Region, evaluate_regions
from pipeline.evaluation.cave import open_cave
from pipeline.evaluation.chart import lines_of
from pipeline.evaluation.degraded import crop, degradation_of, degraded
from pipeline.evaluation.evaluate import default_options
from pipeline.evaluation.interval import difference, interval
from pipeline.evaluation.page import page
from pipeline.evaluation.protocols import chikusei_crops, pavia_crops, prepare, published
from pipeline.evaluation.result import BICUBIC, METRICS
from pipeline.evaluation.trial import Contender, Trial
from pipeline.grid import Window
from pipeline.ray_session import ray_session
from pipeline.values import read_window
from tests.archives import BANDS, NODATA, SCALE_FACTOR, counts, run_job, sr_archive, write_model
from tests.evaluations import by_hand
from tests.scenes import write_geotiff, write_zarr
from tests.test_model import make_card, make_net
from tests.test_tile import make_scene

SCALE = 4


def small() -> tuple[SSPSR, Card]:
    net = make_net()
    return net, make_card(net)


def write_scene(
    folder: Path, name: str = "one", rows: int = 40, columns: int = 36, **kw: Any
) -> Region:
    path = write_zarr(
        folder / f"{name}.zarr", counts(rows, columns, **kw), scale_factor=SCALE_FACTOR
    )
    return Region(path, name)


def test_figures_are_those_of_the_metrics(tmp_path: Path) -> None:
    region = write_scene(tmp_path, rows=42, columns=37)
    found = evaluate_regions({"net": small()}, [region])
    [scene] = found.scenes
    truth = open_scene(region.uri)["reflectance"].values[:, :40, :36]
    peak = float(np.percentile(truth, 99.9))
    assert scene.peak == pytest.approx(peak, rel=1e-6) and scene.valid == 1 and not scene.sample
    enlarged = upsample(downsample(torch.from_numpy(truth), SCALE), SCALE).numpy()
    expected = assess(truth / peak, enlarged / peak, SCALE)
    assert scene.figures[BICUBIC] == pytest.approx(expected, rel=1e-4)
    for method in found.names:
        curve = scene.curves[method]
        assert np.mean(curve.psnr) == pytest.approx(scene.figures[method]["psnr"], abs=1e-4)
        total = np.sqrt(np.mean(np.square(curve.rmse)))
        assert total == pytest.approx(scene.figures[method]["rmse"], rel=1e-4)
    assert (scene.rows, scene.columns, len(scene.bands)) == (40, 36, BANDS)
    assert "windows" in scene.notes["net"]


def test_a_mask_leaves_out_pixels_and_the_windows_that_see_them() -> None:
    random = np.random.default_rng(0)
    truth, estimate = random.random((2, 5, 24, 20))
    everything = assess(truth, estimate, SCALE)
    assert assess(truth, estimate, SCALE, np.ones((24, 20), bool)) == pytest.approx(everything)
    valid = np.ones((24, 20), bool)
    valid[:, 10:] = False
    spoilt = np.where(valid, estimate, 1e6)
    assert assess(truth, spoilt, SCALE, valid) == pytest.approx(
        assess(truth[:, :, :10], estimate[:, :, :10], SCALE)
    )
    assert np.isnan(assess(truth, estimate, SCALE, random.random((24, 20)) < 0.3)["ssim"])
    assert np.isnan(assess(truth[:, :6], estimate[:, :6], SCALE)["ssim"])


@pytest.mark.parametrize(("kind", "mtf"), [("bicubic", None), ("mtf", 0.25)])
def test_windows_of_the_degraded_scene_are_those_of_the_whole(kind: Any, mtf: float | None) -> None:
    random = np.random.default_rng(1)
    values = random.random((2, 48, 60)).astype(np.float32)
    if kind == "bicubic":
        whole = downsample(torch.from_numpy(values), SCALE).numpy()
    else:
        down, right = (gaussian(SCALE, 0.25).matrix(size)[0] for size in (12, 15))
        whole = down @ values @ right.T
    low = degraded(make_scene(values), degradation_of(kind, SCALE, mtf))
    assert low["reflectance"].shape == (2, 12, 15)
    for window in (Window(0, 12, 0, 15), Window(3, 5, 7, 12), Window(11, 12, 14, 15)):
        assert np.allclose(read_window(low, window), whole[:, *window.slices], rtol=0, atol=1e-5)


def test_gaps_of_the_degraded_scene_do_not_depend_on_the_window() -> None:
    random = np.random.default_rng(2)
    values = random.random((2, 64, 64)).astype(np.float32)
    values[0][random.random((64, 64)) < 0.03] = np.nan
    values[:, 20:41, 9:33] = np.nan
    low = degraded(make_scene(values), degradation_of("mtf", SCALE, 0.2))
    whole = read_window(low, Window(0, 16, 0, 16))
    holes = np.isnan(values).reshape(2, 16, SCALE, 16, SCALE).any(axis=(2, 4))
    assert np.array_equal(np.isnan(whole), holes)
    for window in (Window(0, 5, 0, 3), Window(4, 12, 6, 9), Window(10, 16, 1, 16)):
        part = whole[:, *window.slices]
        assert np.array_equal(read_window(low, window), part, equal_nan=True)


def test_nothing_is_scored_where_the_truth_has_a_gap(tmp_path: Path) -> None:
    holed = counts(40, 40)
    holed[:, :9, :14] = NODATA
    path = write_geotiff(tmp_path / "tiff.tif", holed, scale=SCALE_FACTOR, nodata=NODATA)
    [scene] = evaluate_regions({"net": small()}, [Region(path, "holed")]).scenes
    assert scene.valid == pytest.approx(1 - 12 * 16 / 1600)  # in whole LR pixels
    assert all(value is not None for value in scene.figures["net"].values())


def test_a_large_scene_is_sampled_and_read_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regions, "MOST_VALUES", 40_000)
    seen: list[int] = []
    values = counts(256, 256, bands=9).astype(np.float32) * np.float32(SCALE_FACTOR)

    def read(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        seen.append(block.size)
        return block

    lazy = da.from_array(values, chunks=(9, 32, 32)).map_blocks(read, meta=values[:0, :0, :0])
    scene = xr.Dataset(
        {"reflectance": (("band", "y", "x"), lazy)},
        {
            "good_band": ("band", np.ones(9, bool)),
            "wavelength": ("band", 500.0 + 10 * np.arange(9)),
        },
    )
    monkeypatch.setattr(regions, "SAMPLE_SIDE", 2)
    options = {"options": small_tiles()}
    both = [
        evaluate_regions(
            {"net": small()}, [Region("mem", "big")], opened=lambda _: scene, **options
        )
        for _ in range(2)
    ]
    [result] = both[0].scenes
    assert result == both[1].scenes[0]
    assert result.sample == "4 blocks of 64 x 64 pixels spread evenly, 25.0% of it"
    blocks = [block["psnr"] for block in result.parts["net"]]
    assert len(blocks) == 4 and np.mean(blocks) == pytest.approx(result.figures["net"]["psnr"])
    assert max(seen) == 9 * 32 * 32


def small_tiles() -> Any:
    from dataclasses import replace

    return replace(default_options(), tile=16)


def test_the_published_scene_is_what_is_scored(tmp_path: Path) -> None:
    """The same degraded scene through `pipeline.job.run`: gaps, windows of bands, several tiles."""
    holed = counts(120, 104) * np.float32(SCALE_FACTOR)
    holed[:, :9, :14] = np.nan
    holed[3, 60:80, 40:44] = np.nan
    path = write_zarr(tmp_path / "high.zarr", holed)
    model = write_model(tmp_path)
    net, card = load_checkpoint(model)
    options = small_tiles()
    contender = Contender(
        "net", inference.compile(net, precision=options.precision), card, weights_digest(net)
    )
    trial = Trial(
        Region(path, "one"), [contender], degradation_of("bicubic", SCALE), options, open_scene
    )
    [block] = trial.blocks.windows
    mine = trial.estimate("net", block)
    (tmp_path / "low").mkdir()
    low = read_window(trial.low, Window(0, 30, 0, 26))
    write_zarr(tmp_path / "low" / "one.zarr", low)
    with ray_session(None):
        report = run_job(tmp_path / "low", tmp_path / "out", model, dtype="float32")
    assert report.exit_status == 0, report.rows
    theirs = xr.open_zarr(tmp_path / "out" / "one.zarr")["reflectance"].values
    assert np.array_equal(
        xr.open_zarr(tmp_path / "out" / "one.zarr")["wavelength"], trial.high["wavelength"]
    )
    assert np.isnan(mine).any() and np.array_equal(np.isnan(mine), np.isnan(theirs))
    assert np.nanmax(np.abs(mine - theirs)) < 1e-6


def test_pairs_are_of_the_same_scenes(tmp_path: Path) -> None:
    scenes = [write_scene(tmp_path, f"s{seed}", seed=seed) for seed in range(3)]
    net, card = small()
    with torch.no_grad():
        (other := make_net()).final.bias.add_(0.01)
    net.train()
    found = evaluate_regions({"a": (net, card), "same": (net, card), "b": (other, card)}, scenes)
    assert net.training  # as whoever trains it left it
    one, two = found.differences("a", "b"), found.differences("b", "a")
    for metric in METRICS:
        assert one[metric].unit == "scene" and one[metric].pairs == 3
        assert one[metric].mean == pytest.approx(-(two[metric].mean or 0))
        low, high = one[metric].low, one[metric].high
        assert low is not None and high is not None and low <= (one[metric].mean or 0) <= high
    none = found.differences("a", "same")["psnr"]
    assert (none.mean, none.low, none.high, none.verdict) == (0, 0, 0, "undecided")
    ours = [scene.figures["a"]["psnr"] or 0 for scene in found.scenes]
    theirs = [scene.figures["b"]["psnr"] or 0 for scene in found.scenes]
    assert one["psnr"].mean == pytest.approx(np.mean(np.subtract(ours, theirs)))


def test_intervals() -> None:
    values = np.random.default_rng(5).gamma(2.0, 1.0, 25)
    expected = bootstrap((values,), np.mean, method="BCa", rng=np.random.default_rng(1))
    assert interval(values) == pytest.approx(tuple(expected.confidence_interval), abs=0.03)
    assert interval(values) == interval(values)
    pairs = [(float(value), 0.0) for value in values]
    assert difference(pairs, [], True).verdict == "better"
    assert difference(pairs, [], False).verdict == "worse"
    few = difference(pairs[:2], [], True)
    assert (few.unit, few.low, few.verdict) == ("none", None, "undecided") and few.mean is not None
    assert difference(pairs[:2], pairs, True).unit == "part"
    assert difference(pairs[:2], pairs[:2], True).unit == "none"
    assert difference([*pairs, (None, 1.0)], [], True).mean is None


def test_one_small_scene_has_no_interval_and_a_larger_one_that_of_its_parts(tmp_path: Path) -> None:
    tiny = evaluate_regions({"net": small()}, [write_scene(tmp_path, "tiny", 24, 24)])
    assert tiny.differences("net", BICUBIC)["psnr"].unit == "none"
    assert "no interval" in page(tiny)
    larger = evaluate_regions({"net": small()}, [write_scene(tmp_path, "larger", 72, 72)])
    found = larger.differences("net", BICUBIC)["psnr"]
    assert (found.unit, found.pairs) == ("part", 4) and found.low is not None
    assert "tells nothing of other scenes" in page(larger)


def test_json_comes_back_as_it_was() -> None:
    made = by_hand({"net": ("a" * 64, None, 3.0)})
    assert Evaluation.from_json(made.to_json()) == made
    assert "NaN" not in made.to_json()


def hostile() -> list[str]:
    text = by_hand({"net": ("a" * 64, 31.0, 3.0)}).to_json()

    def with_(change: Any) -> str:
        document = json.loads(text)
        change(document)
        return json.dumps(document)

    return [
        "", "[]", "{}", "[" * 100_000, text[:-20], text.replace("31.0", "NaN"),
        text.replace("31.0", "1e999"), text.replace('"a' + "a" * 63, '"../' + "a" * 63),
        with_(lambda d: d.update(scenes=[])),
        with_(lambda d: d.update(extra=1)),
        with_(lambda d: d.update(scale=-1)),
        with_(lambda d: d["methods"].pop(0)),
        with_(lambda d: d["methods"].append(d["methods"][1])),
        with_(lambda d: d["scenes"].append(d["scenes"][0])),
        with_(lambda d: d["scenes"][0]["figures"].pop("net")),
        with_(lambda d: d["scenes"][0]["figures"]["net"].pop("sam")),
        with_(lambda d: d["scenes"][0]["figures"].update(ghost={})),
        with_(lambda d: d["scenes"][0]["curves"]["net"]["psnr"].pop()),
        with_(lambda d: d["scenes"][0]["wavelengths"].append(1.0)),
        with_(lambda d: d["scenes"][0].update(name="x" * 100_000)),
        with_(lambda d: d["scenes"][0].update(bands={"a": "\x1b[2J"})),
    ]  # fmt: skip


@pytest.mark.parametrize("text", hostile())
def test_a_hostile_evaluation_is_one_line(text: str) -> None:
    with pytest.raises(EvaluationError) as found:
        Evaluation.from_json(text)
    message = str(found.value)
    assert "\n" not in message and message.isprintable() and len(message) < 500


def test_the_page_needs_nothing_and_obeys_nothing(tmp_path: Path) -> None:
    evil = by_hand({"<script>alert(1)</script>": ("", 31.0, 3.0)}, name='"><img src=x onerror=y>')
    evil.to_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text and "<img" not in text
    assert not re.search(r"(?i)https?:|@import|url\(|<link|src=[^x]", text)
    assert text.count("<caption>") == text.count("<table>") >= 4
    assert 'scope="col"' in text and 'scope="row"' in text and "<svg" in text


def test_a_curve_breaks_at_gaps_of_the_spectrum() -> None:
    [scene, *_] = by_hand({"net": ("", 31.0, 3.0)}).scenes
    from dataclasses import replace

    waves = (400.0, 410.0, 420.0, 900.0, 910.0, 905.0, 915.0)
    scene = replace(scene, bands=tuple(range(7)), wavelengths=waves)
    pieces = lines_of(scene, (1.0, None, 2.0, 3.0, 4.0, 5.0, 6.0))
    assert [[x for x, _ in piece] for piece in pieces] == [
        [400.0], [420.0], [900.0, 910.0], [905.0, 915.0],
    ]  # fmt: skip


def test_a_picture_or_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = by_hand({"a $x$ net": ("", 31.0, 3.0)})
    made.to_png(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size[0] == 1200
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"install sr-archive\[demo\]"):
        made.to_png(tmp_path / "b.png")


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    region, net = write_scene(tmp_path), small()
    half = make_net(scale=2)
    for checkpoints, regions_, options, message in (
        ({"a": net, "b": (half, make_card(half))}, [region], {}, "different scales"),
        ({"bicubic": net}, [region], {}, "bicubic"),
        ({"a": net}, [region, region], {}, "two regions are called one"),
        ({"a": net}, [region], {"degradation": "mtf"}, "--mtf 0.3"),
        ({"a": net}, [region], {"degradation": "mtf", "mtf": 1.5}, "between 0 and 1"),
        ({"a": net}, [region], {"mtf": 0.3}, "--degradation mtf"),
        ({"a": net}, [], {}, "no region"),
        ({"a": net}, [Region(region.uri, "x", Window(0, 3, 0, 3))], {}, "no LR pixel"),
        ({"a": net}, [Region(region.uri, "x", Window(0, 99, 0, 9))], {}, "do not lie"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate_regions(checkpoints, regions_, **options)  # type: ignore[arg-type]


def test_a_region_that_fails_is_named_and_the_others_count(tmp_path: Path) -> None:
    good = write_scene(tmp_path)
    found = evaluate_regions({"net": small()}, [good, Region(str(tmp_path / "none.zarr"), "gone")])
    assert [scene.name for scene in found.scenes] == ["one"]
    assert list(found.failed) == ["gone"] and "\n" not in found.failed["gone"]


def test_a_window_is_cut_to_whole_lr_pixels() -> None:
    scene = make_scene(np.arange(400, dtype=np.float32).reshape(1, 20, 20))
    part = crop(scene, Window(3, 14, 5, 19), SCALE)["reflectance"].values
    assert np.array_equal(part, scene["reflectance"].values[:, 3:11, 5:17])
    with pytest.raises(SceneError, match="no LR pixel"):
        crop(scene, Window(0, 3, 0, 20), SCALE)


def test_the_published_crops() -> None:
    windows, whole = chikusei_crops(2517, 2335)
    assert whole.shape == (2304, 2048) and [w.shape for w in windows] == [(512, 512)] * 4
    assert {(w.top, w.bottom) for w in windows} == {(106, 618)}
    assert [w.left for w in windows] == [143, 655, 1167, 1679] and windows[-1].right == whole.right
    windows, whole = pavia_crops(1096, 715)
    assert [w.shape for w in windows] == [(224, 224)] * 4 and windows[-1].bottom <= 1096
    for call, message in (
        (lambda: chikusei_crops(100, 100), "2517 x 2335"),
        (lambda: pavia_crops(100, 100), "1096 x 715"),
        (lambda: pavia_crops(1096, 1096), "stripe"),
    ):
        with pytest.raises(UsageError, match=message):
            call()


@pytest.mark.parametrize(
    ("protocol", "shape", "side"),
    [("pavia", (1096, 715), 224), ("chikusei", (2517, 2335), 512)],
)
def test_a_cube_of_the_published_shape(
    tmp_path: Path, protocol: Any, shape: tuple[int, int], side: int
) -> None:
    """Few bands, but all pixels: the peak is the crop's largest value, not that of the rim."""
    import zarr

    array = zarr.create_array(
        str(tmp_path / "image.zarr" / "reflectance"), shape=(1, *shape), chunks=(1, 256, 256),
        dtype="uint16", fill_value=40, dimension_names=("band", "y", "x"),
    )  # fmt: skip
    zarr.open_group(str(tmp_path / "image.zarr"), mode="a")
    array[0, 300, 300], array[0, -1, -1] = 5000, 5000 if protocol == "pavia" else 60000
    task = prepare(protocol, str(tmp_path / "image.zarr"))
    assert task.peak == 5000
    assert [region.window.shape for region in task.regions if region.window] == [(side, side)] * 4
    assert published(protocol, 4) and published(protocol, 8) and published(protocol, 2) is None


def write_cave(folder: Path) -> np.ndarray:
    """One scene twice: as a cube and as distributed."""
    cube = np.random.default_rng(0).integers(0, 65535, (16, 16, 31)).astype(np.uint16)
    (folder / "cubes").mkdir()
    np.savez(folder / "cubes" / "toy.npz", cube=cube)
    inner = folder / "png" / "toy_ms" / "toy_ms"
    inner.mkdir(parents=True)
    for band in range(31):
        Image.fromarray(cube[..., band]).save(inner / f"toy_ms_{band + 1:02d}.png")
    return cube


def test_cave_as_cubes_and_as_distributed(tmp_path: Path) -> None:
    cube = write_cave(tmp_path)
    for folder in ("cubes", "png"):
        task = prepare("cave", str(tmp_path / folder))
        [region] = task.regions
        scene = task.opened(region.uri)
        assert region.name == "toy" and task.peak == 1
        assert np.allclose(scene["reflectance"].values.transpose(1, 2, 0), cube / 65535, atol=1e-7)
        assert scene["wavelength"].values[[0, -1]].tolist() == [400, 700]
    (tmp_path / "png" / "toy_ms" / "toy_ms" / "toy_ms_07.png").unlink()
    with pytest.raises(SceneError, match="30 of 31"):
        open_cave(str(tmp_path / "png" / "toy_ms" / "toy_ms"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "nothing", "{source}"], "no checkpoint at nothing"),
        (["evaluate", "{model}", "{source}/none"], "none"),
        (["evaluate", "{model}", "{source}", "--mtf", "0.3"], "--degradation mtf"),
        (["evaluate", "{model}", "{source}", "--against", "{model}"], "with itself"),
        (["evaluate", "{model}", "{source}", "--protocol", "chikusei"], "2517 x 2335"),
        (["evaluate", "{model}", "{source}", "--protocol", "cave"], "31"),
        (
            ["evaluate", "{model}", "{source}", "--protocol", "cave", "--degradation", "mtf"],
            "leave",
        ),
        (["promote", "{source}/r", "{model}", "{source}/none.json"], "none.json"),
        (["promote", "{source}/r", "{model}", "{model}"], "no evaluation"),
    ],
)
def test_errors_of_the_commands_are_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    model = write_model(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    write_scene(source)
    filled = [each.format(model=model, source=source) for each in arguments]
    with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sr-archive", *filled])
        cli.main()
    error = capfd.readouterr().err
    assert ended.value.code == 2 and message in error and "Traceback" not in error
    assert len(re.findall("^sr-archive: ", error, re.MULTILINE)) == 1


def test_a_source_of_unreadable_scenes_says_why(tmp_path: Path) -> None:
    np.savez(tmp_path / "cube.npz", cube=np.zeros((8, 8, 3), np.uint16))
    (tmp_path / "links").mkdir()
    for name in ("a", "b"):
        (tmp_path / "links" / f"{name}.npz").symlink_to(tmp_path / "cube.npz")
    with pytest.raises(UsageError, match=r"none of 2 scenes can be read; a: .*link"):
        prepare("wald", str(tmp_path / "links"))


def test_evaluate_and_promote(tmp_path: Path) -> None:
    """The commands in processes of their own, one after the other."""
    model = write_model(tmp_path)
    (tmp_path / "source").mkdir()
    write_scene(tmp_path / "source")
    report = tmp_path / "report"
    done = sr_archive("evaluate", model, tmp_path / "source", "--out", report, "--json")
    assert done.returncode == 0, done.stderr
    found = Evaluation.from_json(done.stdout)
    assert found == Evaluation.from_json((report / "evaluation.json").read_bytes())
    assert {path.name for path in report.iterdir()} == {
        "evaluation.json", "evaluation.html", "evaluation.png",
    }  # fmt: skip
    made = sr_archive("promote", tmp_path / "r", model, report / "evaluation.json", "--json")
    # An untrained network is worse than bicubic.
    assert made.returncode == 3, made.stderr
    assert "not better than bicubic" in json.loads(made.stdout)["reason"]
