"""`plan --estimate`: its figures against a run, its errors, and that it leaves nothing behind."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from infra.local_s3 import LocalS3
from pipeline import UsageError, cli
from pipeline.estimate.estimator import plan_and_estimate
from pipeline.estimate.extrapolation import Estimate
from pipeline.estimate.prices import PriceSheet, cost, load_prices
from pipeline.estimate.sample import groups_of, load_of, open_load, sampled_tiles
from pipeline.estimate.scratch import bytes_below, scratch
from pipeline.footprint import IN_FLIGHT
from pipeline.grid import Tile, TileGrid
from pipeline.job import load_model
from pipeline.plan import ScenePlan, make_plan
from pipeline.ray_session import ray_session
from pipeline.resolving import margin_around
from pipeline.settings import RunSettings
from pipeline.storage import open_filesystem
from pipeline.store import STATE
from pipeline.traffic import KINDS, Traffic, kind_of
from tests.archives import counts, forget_connections, run_job
from tests.fault_proxy import FaultProxy
from tests.scenes import write_geotiff, write_zarr

SHEET = {
    "currency": "EUR",
    "date": "2026-11-01",
    "source": "made up for a test",
    "per_worker_hour": 0.1,
    "per_1000_put_list": 0.005,
    "per_1000_get_head": 0.0004,
    "per_gigabyte_month": 0.02,
    "per_gigabyte_egress": 0.09,
}


@pytest.fixture(scope="module")
def proxy(s3: LocalS3) -> Iterator[FaultProxy]:
    """What lies between this process with its Ray and S3; it sees every request."""
    with FaultProxy(s3.endpoint) as between, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        forget_connections()
        with ray_session(None):
            yield between
    forget_connections()


def _settings(source: Path | str, output: Path | str, model: Path) -> RunSettings:
    return RunSettings(source=str(source), output=str(output), model=str(model), tile=16)


def _estimate(settings: RunSettings, seconds: float = 10) -> Estimate:
    _, estimate = plan_and_estimate(settings, load_model(settings), seconds)
    assert estimate is not None
    return estimate


def _numbers(facts: Any) -> Iterator[float]:
    if isinstance(facts, dict):
        facts = list(facts.values())
    if isinstance(facts, list):
        for each in facts:
            yield from _numbers(each)
    elif isinstance(facts, int | float):
        yield facts


def test_figures_agree_with_a_run(
    proxy: FaultProxy, archive: Path, model: Path, tmp_path: Path
) -> None:
    output = tmp_path / "deep" / "out"
    facts = _estimate(_settings(archive, output, model)).to_dict()
    assert list(tmp_path.iterdir()) == []
    report = run_job(archive, output, model)
    assert facts["scenes"] == report.count("published") == 3
    assert facts["tiles"] == sum(row.tiles for row in report.rows) == 22
    assert facts["stored_gigabytes"] == pytest.approx(bytes_below(str(output)) / 1e9, rel=0.15)
    for name in ("wall_seconds", "stored_gigabytes"):
        assert 0 < facts[f"{name}_from"] <= facts[name] <= facts[f"{name}_to"]
    assert facts["worker_hours"] == pytest.approx(
        facts["wall_seconds"] * facts["workers"] / 3600, rel=0.05
    )
    assert 0.1 < facts["worker_memory_gigabytes_measured"] < 8
    groups = facts["rests_on"]["groups"]
    assert {group["format"] for group in groups} == {".tif", ".hdr", ".zarr"}
    assert sum(group["tiles"] for group in groups) == 22
    assert all(group["tiles_measured"] for group in groups) and not facts["rests_on"]["notes"]
    assert all(number >= 0 for number in _numbers(facts))
    assert not any(facts["s3_requests"].values())


@pytest.mark.slow
@pytest.mark.long
def test_requests_agree_with_a_run(proxy: FaultProxy, model: Path, tmp_path: Path) -> None:
    for seed, side in enumerate((64, 48)):
        values = counts(side, side, seed=seed)
        write_zarr(tmp_path / f"s{seed}.zarr", values, scale_factor=1e-4)
    source, output = "s3://archive/estimate/in", "s3://archive/estimate/out"
    filesystem, inner = open_filesystem(output)
    filesystem.put(f"{tmp_path}/", source, recursive=True)
    facts = _estimate(_settings(source, output, model), seconds=0).to_dict()
    [group] = facts["rests_on"]["groups"]
    assert group["tiles_measured"] == 2 + IN_FLIGHT and group["tiles"] == 25
    assert set(filesystem.find(inner)) <= {inner}  # SeaweedFS still shows the folder
    filesystem.invalidate_cache()
    proxy.disturb()
    run_job(source, output, model)
    seen = Counter(kind_of(method, f"http://store{path}") for method, path, _ in list(proxy.log))
    for kind in ("GET", "HEAD", "LIST", "PUT"):
        assert facts["s3_requests"][kind] == pytest.approx(seen[kind], rel=0.2), kind
    assert facts["s3_requests"].keys() == set(KINDS)
    assert facts["s3_sent_gigabytes"] * 1e9 > bytes_below(output) / 2
    assert facts["s3_received_gigabytes"] > 0


@pytest.mark.slow
@pytest.mark.long
def test_an_output_in_use_stays_as_it_was(
    proxy: FaultProxy, archive: Path, model: Path, tmp_path: Path
) -> None:
    run_job(archive, tmp_path, model, include=["store"])
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    estimate = _estimate(_settings(archive, tmp_path, model), seconds=1)
    assert estimate.scenes == 2 and estimate.tiles == 12 + 6
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    run_job(archive, tmp_path, model)
    settings = _settings(archive, tmp_path, model)
    assert plan_and_estimate(settings, load_model(settings), 1)[1] is None


def test_a_scene_that_cannot_be_measured_is_a_note(
    proxy: FaultProxy, archive: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    write_geotiff(tmp_path / "in" / "good.tif", counts(20, 20), scale=1e-4)
    write_geotiff(tmp_path / "in" / "bad.tif", counts(20, 20) * 0 - 1, scale=1e-4, nodata=-1)
    facts = _estimate(_settings(tmp_path / "in", tmp_path / "out", model)).to_dict()
    assert facts["scenes"] == 2
    [note] = facts["rests_on"]["notes"]
    assert note.startswith("bad, preparation: no-valid-pixels")
    (tmp_path / "in" / "good.tif").unlink()
    with pytest.raises(UsageError, match="cannot estimate: bad, preparation: no-valid-pixels"):
        _estimate(_settings(tmp_path / "in", tmp_path / "out", model))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_command_prints_table_and_json(
    proxy: FaultProxy,
    archive: Path,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sheet = tmp_path / "prices.json"
    sheet.write_text(json.dumps(SHEET))
    arguments = [str(archive), str(tmp_path / "out"), "--model", str(model), "--tile", "16"]
    arguments += ["--estimate", "--estimate-seconds", "1", "--prices", str(sheet)]
    cli.app(["plan", *arguments, "--json"], standalone_mode=False)
    facts = json.loads(capsys.readouterr().out)
    bill = facts["estimate"]["cost"]
    assert bill["once"] == pytest.approx(facts["estimate"]["worker_hours"] * 0.1, abs=1e-4)
    assert bill["prices_from"] == SHEET["source"] and bill["currency"] == "EUR"
    cli.app(["plan", *arguments], standalone_mode=False)
    shown = capsys.readouterr().out
    assert "wall seconds" in shown and "stored_per_month" in shown and "22 tiles to do" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"per_worker_hour": -1}, "per_worker_hour: Input should be greater than or equal to 0"),
        ({"per_worker_hour": "nan"}, "per_worker_hour: Input should be a finite number"),
        ({"per_worker_hour": None}, "per_worker_hour is missing"),
        ({"per_kilowatt": 1}, "per_kilowatt is no price"),
        ({"date": "soon"}, "date: Input should be a valid date"),
        ({"source": ""}, "source: String should have at least 1 character"),
    ],
)
def test_a_bad_price_is_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    facts = {name: value for name, value in {**SHEET, **change}.items() if value is not None}
    sheet = tmp_path / "prices.json"
    sheet.write_text(json.dumps(facts))
    with pytest.raises(UsageError, match=message) as caught:
        load_prices(str(sheet))
    assert str(caught.value).startswith("--prices ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["= 1", "[1, 2]", "\x00"])
def test_what_is_no_sheet_is_one_line(tmp_path: Path, content: str) -> None:
    for name in ("prices.toml", "prices.json"):
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match=f"--prices .*{name}"):
            load_prices(str(tmp_path / name))
    with pytest.raises(UsageError, match="cannot be read: FileNotFoundError"):
        load_prices(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prices", "x.toml"], "prices: Value error, needs --estimate"),
        (["--estimate", "--estimate-seconds", "0"], "estimate-seconds: "),
        (["--estimate", "--prices", "{out}/none.toml"], "--prices "),
    ],
)
def test_usage_errors_are_one_line(
    archive: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    filled = [argument.format(out=tmp_path) for argument in arguments]
    monkeypatch.setattr(
        "sys.argv", ["sr-archive", "plan", str(archive), str(tmp_path / "out"), *filled]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    error = capfd.readouterr().err.strip()
    assert ended.value.code == 2 and message in error and "\n" not in error


def test_the_bill_is_the_sum_of_its_parts() -> None:
    sheet = PriceSheet.model_validate(SHEET)
    requests = {"PUT": 2000, "LIST": 1000, "GET": 5000, "HEAD": 5000, "DELETE": 10**9}
    amounts = {"worker_hours": 10.0, "received_gigabytes": 4.0, "stored_gigabytes": 100.0}
    bill = cost(sheet, requests=requests, **amounts)
    assert bill["workers"] == 1.0 and bill["egress"] == 0.36 and bill["stored_per_month"] == 2.0
    assert bill["requests_put_list"] == 0.015 and bill["requests_get_head"] == 0.004
    assert bill["once"] == pytest.approx(1.379)
    uncounted = cost(sheet, requests=None, **{**amounts, "received_gigabytes": None})  # type: ignore[arg-type]
    assert uncounted["requests_get_head"] is None and uncounted["once"] == 1.0


def test_the_shipped_example_of_a_sheet_is_valid(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "scale.md").read_text()
    [_, rest] = text.split("```toml\n", 1)
    (tmp_path / "prices.toml").write_text(rest.split("```", 1)[0])
    assert load_prices(str(tmp_path / "prices.toml")).source


def test_open_work_is_counted_without_looking_at_each_tile(archive: Path, model: Path) -> None:
    settings = _settings(archive, archive.parent / "none", model)
    loaded = load_model(settings)
    margin = margin_around(loaded.halo, loaded.card.architecture.scale)
    for scene in make_plan(settings, loaded).work:
        job = scene.job
        assert job is not None
        done = frozenset({"0.0", "1.0"})
        left = [tile for tile in job.grid if tile.key not in done]
        resumed = replace(scene, done=done)
        assert open_load(scene, margin) == load_of(job, job.grid, margin)
        assert open_load(resumed, margin) == load_of(job, left, margin)
        assert sorted(sampled_tiles(resumed)) == left


def test_the_sample_covers_the_sizes(archive: Path, model: Path) -> None:
    settings = _settings(archive, archive.parent / "none", model)
    [job] = [s.job for s in make_plan(settings, load_model(settings)).work if s.scene_id == "tiff"]
    assert job is not None
    sides = [100, 110, 1000, 1100, 5000, 5100]
    scenes = [
        ScenePlan(str(side), "x.tif", "new", replace(job, grid=TileGrid(side, side, 16, 4)))
        for side in sides
    ]
    [group] = groups_of(scenes, 8)
    assert [scene.scene_id for scene in group.sampled] == ["5000", "5100"]
    small = [
        ScenePlan(str(n), "x.tif", "new", replace(job, grid=TileGrid(16, 16, 16, 4)))
        for n in range(9)
    ]
    [group] = groups_of(small, 8)
    assert len(group.sampled) == 4
    other = replace(job, source_bands=99)
    both = groups_of([*scenes, ScenePlan("o", "y.hdr", "new", other)], 8)
    assert [each.format for each in both] == [".tif", ".hdr"]
    large = scenes[-1]
    assert all(isinstance(tile, Tile) for tile in sampled_tiles(large))
    assert len(set(sampled_tiles(large))) == 512


def test_scratch_removes_itself_and_what_was_forgotten(tmp_path: Path) -> None:
    estimates = tmp_path / "out" / STATE / "estimates"
    old, young = (
        estimates / f"{datetime.now(UTC) - age:%Y%m%dT%H%M%SZ}-0123abcd"
        for age in (timedelta(hours=2), timedelta(minutes=2))
    )
    for folder in (old, young):
        folder.mkdir(parents=True)
        (folder / "estimate.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt), scratch(str(tmp_path / "out")) as place:
        assert Path(place, "estimate.json").is_file()
        raise KeyboardInterrupt
    assert list(estimates.iterdir()) == [young]


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UsageError, match="cannot write to output"),
        scratch(str(tmp_path / "file" / "out")),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_kinds_of_requests() -> None:
    assert kind_of("GET", "http://s/b?list-type=2&prefix=x") == "LIST"
    assert kind_of("POST", "http://s/b?delete") == kind_of("POST", "http://s/b?delete=") == "DELETE"
    assert kind_of("POST", "http://s/b/k?uploads") == "POST"
    assert kind_of("GET", "http://s/b/list-type=2") == "GET"
    traffic = Traffic({"GET": 2}, 10, 4) + Traffic({"PUT": 1}, 0, 6) * 2
    assert (traffic.of("GET"), traffic.of("PUT"), traffic.received, traffic.sent) == (2, 2, 10, 16)
