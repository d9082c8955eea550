"""The command: exit statuses, one-line errors, JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline import cli
from tests.archives import counts, sr_archive, write_archive, write_model
from tests.scenes import write_geotiff, write_zarr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    write_archive(folder / "source")
    write_geotiff(folder / "source" / "rgb.tif", counts(20, 20, bands=3), tags=False)
    write_model(folder)
    return folder


def test_plan_and_list_do_nothing(place: Path) -> None:
    model = place / "small.safetensors"
    made = sr_archive(
        "plan", place / "source", place / "none", "--model", model, "--tile", 16, "--json"
    )
    assert made.returncode == 0, made.stderr
    facts = json.loads(made.stdout)
    assert {scene["scene_id"]: scene["status"] for scene in facts["scenes"]} == {
        "tiff": "new", "envi": "new", "store": "new", "rgb": "quarantined",
    }  # fmt: skip
    assert facts["tiles"] == 12 + 6 + 4
    assert not (place / "none").exists()
    listed = json.loads(sr_archive("list", place / "source", "--json").stdout)
    assert sorted(scene["scene_id"] for scene in listed["scenes"]) == [
        "envi",
        "rgb",
        "store",
        "tiff",
    ]


def test_run_status_verify(place: Path) -> None:
    model, target = place / "small.safetensors", place / "out"
    done = sr_archive("run", place / "source", target, "--model", model, "--tile", 16)
    assert done.returncode == 3, done.stderr
    assert "too-few-bands" in done.stdout and "xarray.open_zarr" in done.stdout
    status = {
        row["scene_id"]: row["status"]
        for row in json.loads(sr_archive("status", target, "--json").stdout)
    }
    assert status == {
        "tiff": "published", "envi": "published", "store": "published", "rgb": "quarantined",
    }  # fmt: skip
    assert sr_archive("verify", target, "--deep").returncode == 0
    (target / "tiff.zarr" / "reflectance" / "c" / "0" / "0" / "0").unlink()
    faulty = sr_archive("verify", target, "--json")
    assert faulty.returncode == 3
    [fault] = json.loads(faulty.stdout)["scenes"]["tiff"]
    assert (fault["message"], fault["tile"]) == ("missing reflectance/c/0/0/0", "0.0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "{source}", "{out}", "--tile", "3"], "tile"),
        (["run", "{source}", "{out}", "--devices", "abacus"], "devices"),
        (["run", "{source}", "{out}", "--model", "{source}"], "--model"),
        (["run", "{out}/nothing", "{out}"], "nothing"),
        (["run", "nosuchprotocol://x/y", "{out}"], "nosuchprotocol"),
        (["plan", "{source}", ""], "output"),
        (["status", "{source}"], "no output of sr-archive"),
        (["run"], "Missing argument"),
    ],
)
def test_usage_errors_are_status_2(
    place: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    filled = [a.format(source=place / "source", out=place / "unused") for a in arguments]
    with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["sr-archive", *filled])
        cli.main()
    assert ended.value.code == 2
    error = capfd.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (place / "unused").exists()


def test_options_come_from_the_environment(
    place: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SR_ARCHIVE_MODEL", str(place / "small.safetensors"))
    monkeypatch.setenv("SR_ARCHIVE_TILE", "40")
    result = CliRunner().invoke(cli.app, ["plan", str(place / "source"), str(tmp_path), "--json"])
    assert json.loads(result.stdout)["tiles"] == 2 + 1 + 1


def test_credentials_in_a_url_are_not_shown(tmp_path: Path) -> None:
    write_zarr(tmp_path / "one.zarr", counts(24, 24))
    result = sr_archive("list", "https://user:hunter2@127.0.0.1:9/x?sig=hunter3")
    assert result.returncode == 2
    assert "hunter" not in result.stdout + result.stderr
