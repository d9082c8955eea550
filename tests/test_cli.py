"""The command: exit statuses, one-line errors, JSON."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
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
        (["run"], "source is needed: on the command line, as SR_ARCHIVE_SOURCE"),
        (["run", "{source}", "{out}", "--precision", "fp23"], "perhaps fp32 is meant"),
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


@pytest.fixture
def config(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[int, str]]:
    """Plans the place's source, with this text as the operator's file; status and all output."""
    monkeypatch.chdir(tmp_path)

    def plan(text: str) -> tuple[int, str]:
        (tmp_path / "sr-archive.toml").write_text(text.format(place=place))
        result = CliRunner().invoke(cli.app, ["plan", str(place / "source"), "out", "--json"])
        return result.exit_code, result.output + (str(result.exception) if result.exception else "")

    return plan


def test_options_come_from_a_file(
    config: Callable[[str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`plan` takes those of `run`, and its own; the environment counts more."""
    text = '[run]\nmodel = "{place}/small.safetensors"\ntile = 40\n'
    plan = "[plan]\ntile = 16\n"
    assert planned_tiles(config(text)) == 2 + 1 + 1
    assert "sr-archive.toml: model, tile" in config(text)[1]
    assert planned_tiles(config(text + plan)) == 12 + 6 + 4
    monkeypatch.setenv("SR_ARCHIVE_TILE", "40")
    assert planned_tiles(config(text + plan)) == 2 + 1 + 1


def planned_tiles(result: tuple[int, str]) -> int:
    status, output = result
    assert status == 0, output
    return int(json.loads(output[output.index("{") :])["tiles"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[run]\nmodle = 'x'\n", "[run] has no option modle; perhaps model is meant"),
        ("[ruin]\ntile = 40\n", "no command takes [ruin]; perhaps run is meant"),
        ("tile = 40\n", "no command takes [tile]"),
        ("run = 40\n", "write [run] above"),
        ("[run\n", "not TOML"),
        ("[run]\ntile = 'wide'\n", "tile: "),
        ("[run]\nbudget = '2h'\n", "no option budget"),
    ],
)
def test_a_file_that_is_wrong_is_one_line(
    config: Callable[[str], tuple[int, str]], text: str, message: str
) -> None:
    status, output = config(text)
    assert status != 0 and message in output, output


def test_a_file_that_is_named_must_be_there(
    config: Callable[[str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SR_ARCHIVE_CONFIG", "elsewhere.toml")
    assert "elsewhere.toml: cannot be read" in config("")[1]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("sr-archive re", {"repair", "replay", "report"}),
        ("sr-archive run --precision ", {"auto", "fp32", "bf16"}),
        ("sr-archive run --mask cl", {"cloud", "cloud_shadow"}),
        ("sr-archive run --max-", {"--max-inconsistency", "--max-attempts"}),
    ],
)
def test_a_shell_completes(words: str, offered: set[str]) -> None:
    asked = {
        "_SR_ARCHIVE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    result = CliRunner().invoke(cli.app, prog_name="sr-archive", env=asked)
    assert set(result.output.split()) == offered


def test_no_colour_where_none_is_wanted(place: Path) -> None:
    """On a terminal, which alone gets colours."""
    seen = {}
    for name in ("", "1"):
        master, slave = pty.openpty()
        environment = {**os.environ, "NO_COLOR": name, "TERM": "xterm-256color", "COLUMNS": "200"}
        subprocess.run(
            [sys.executable, "-m", "pipeline", "list", str(place / "source")],
            stdout=slave, stderr=slave, env=environment, check=True,
        )  # fmt: skip
        os.close(slave)
        seen[name] = os.read(master, 1 << 16)
        os.close(master)
    coloured = re.compile(rb"\x1b\[[0-9;]*(3[0-7]|9[0-7]|38;|48;)[0-9;]*m")
    assert not coloured.search(seen["1"])
    assert b"scene" in seen["1"]


def test_credentials_in_a_url_are_not_shown(tmp_path: Path) -> None:
    write_zarr(tmp_path / "one.zarr", counts(24, 24))
    result = sr_archive("list", "https://user:hunter2@127.0.0.1:9/x?sig=hunter3")
    assert result.returncode == 2
    assert "hunter" not in result.stdout + result.stderr
