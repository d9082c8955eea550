"""The tutorial's own commands, in its order, in one shell and an empty folder.

Blocks marked `bash` and `python` are run, what is marked `text` must stand in the output of the
block before it; `sh` marks the preparation, which the tests have behind them.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "tutorial.md"
MARK = "@@ block "
BLOCK = re.compile(r"^```(bash|python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks() -> list[tuple[str, str, str]]:
    """Language, code and the output that the page shows, if any."""
    found: list[tuple[str, str, str]] = []
    for language, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "text":
            found[-1] = (*found[-1][:2], text)
        else:
            found.append((language, text, ""))
    return found


def script() -> str:
    parts = ["set -euo pipefail"]
    for number, (language, code, _) in enumerate(blocks()):
        here = code if language == "bash" else f"python - <<'END_OF_BLOCK'\n{code}END_OF_BLOCK"
        parts.append(f"echo '{MARK}{number}'\n{here}")
    return "\n".join(parts) + "\n"


def run(folder: Path) -> tuple[int, str]:
    """Exit status and all output; what the script leaves running is ended."""
    scripts = Path(sys.executable).parent
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("AWS_")},
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MPLBACKEND": "Agg",
        "NO_PROXY": "127.0.0.1",
    }
    process = subprocess.Popen(
        ["bash", "-c", script()], cwd=folder, env=environment, text=True, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=280)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, output


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("tutorial")
    status, output = run(folder)
    assert status == 0, output
    assert (folder / "map.png").stat().st_size > 10_000
    assert (folder / "report" / "index.html").exists()
    yield re.split(rf"{MARK}\d+\n", output)[1:]


def missing(shown: str, output: str) -> list[str]:
    """Lines that the page shows and that the output lacks, in this order; `...` is anything."""
    lines = [_plain(line) for line in output.splitlines()]
    lacking = []
    for line in filter(None, map(_plain, shown.splitlines())):
        pattern = re.compile(".*".join(map(re.escape, line.split("..."))))
        place = next((n for n, found in enumerate(lines) if pattern.fullmatch(found)), None)
        if place is None:
            lacking.append(line)
        else:
            lines = lines[place + 1 :]
    return lacking


def _plain(line: str) -> str:
    """Without what a table's width changes."""
    return re.sub(r"\s+", " ", re.sub(r"\s*│\s*", "│", line)).strip()


@pytest.mark.slow
def test_the_tutorial_runs_and_shows_what_it_says(outputs: list[str]) -> None:
    assert len(outputs) == len(blocks()) > 10
    for (_, code, shown), output in zip(blocks(), outputs, strict=True):
        assert not missing(shown, output), f"{code}\ngave\n{output}"


@pytest.mark.slow
def test_the_simulated_scene_gains(outputs: list[str]) -> None:
    [figures] = [each for each in outputs if "super-resolved: " in each]
    values = re.findall(r"([\d.]+) dB, ([\d.]+) degrees", figures)
    (bicubic, angle), (fine, fine_angle) = [tuple(map(float, pair)) for pair in values]
    assert fine > bicubic + 1 and fine_angle < angle


def test_lines_are_compared_in_order() -> None:
    output = "a  run 17, 3.2 s\n│ x   │ 1 │\nend\n"
    assert missing("a run ..., ... s\n│ x │ 1 │\n", output) == []
    assert missing("end\na run 17, 3.2 s\n", output) == ["a run 17, 3.2 s"]
    assert missing("run\n", output) == ["run"]
