"""The local S3 server: reachable through the environment alone, private, gone afterwards."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from infra import local_s3
from infra.local_s3 import LocalS3
from infra.processes import StartError, port_is_free

ROOT = Path(__file__).resolve().parent.parent
READ = "import fsspec, sys; sys.stdout.write(fsspec.open(sys.argv[1]).open().read().decode())"


def test_s3fs_needs_only_the_environment(s3: LocalS3) -> None:
    with fsspec.open(s3.url("notes/hello.txt"), "wb") as file:
        file.write(b"hello")
    with fsspec.open(s3.url("notes/hello.txt"), "rb") as file:
        assert file.read() == b"hello"
    assert fsspec.filesystem("s3").find("archive/notes") == ["archive/notes/hello.txt"]


def test_child_processes_reach_it(s3: LocalS3) -> None:
    fsspec.filesystem("s3").pipe_file("archive/notes/child.txt", b"from the parent")
    command = [sys.executable, "-c", READ, s3.url("notes/child.txt")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout == "from the parent"


def test_ranges_and_missing_objects(s3: LocalS3) -> None:
    filesystem = fsspec.filesystem("s3")
    filesystem.pipe_file("archive/notes/range.bin", bytes(range(100)))
    assert filesystem.cat_file("archive/notes/range.bin", start=10, end=13) == bytes([10, 11, 12])
    with pytest.raises(FileNotFoundError):
        filesystem.cat_file("archive/notes/absent.bin")


def test_a_wrong_key_is_refused(s3: LocalS3) -> None:
    stranger = fsspec.filesystem("s3", key="nobody", secret="wrong", skip_instance_cache=True)
    with pytest.raises(PermissionError):
        stranger.pipe_file("archive/notes/intruder.txt", b"no")


def test_credentials_appear_neither_in_its_log_nor_in_its_arguments(s3: LocalS3) -> None:
    folder = s3._temporary
    assert folder is not None
    secrets = {s3.environment()[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    arguments = Path(f"/proc/{s3.pid}/cmdline")
    text = arguments.read_text() if arguments.exists() else ""
    for place in (text, (folder / "weed.log").read_text(errors="replace"), repr(s3)):
        assert not any(secret in place for secret in secrets)
    assert stat.S_IMODE((folder / "s3.json").stat().st_mode) == 0o600


def test_other_aws_settings_do_not_get_in_the_way(s3: LocalS3) -> None:
    merged = s3.merged_environment({"AWS_PROFILE": "work", "AWS_SESSION_TOKEN": "t", "HOME": "/h"})
    assert "AWS_PROFILE" not in merged
    assert "AWS_SESSION_TOKEN" not in merged
    assert merged["HOME"] == "/h"
    assert merged["AWS_ENDPOINT_URL"] == s3.endpoint


def test_nothing_is_left_after_the_end() -> None:
    with LocalS3(bucket="short") as server:
        folder, port = server._temporary, int(server.endpoint.rpartition(":")[2])
        assert folder is not None
        assert server.alive
    assert not server.alive
    assert not folder.exists()
    assert port_is_free(port)


def test_a_server_that_ends_at_once_says_where_its_log_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "weed"
    program.write_text("#!/bin/sh\necho broken; exit 7\n")
    program.chmod(0o755)
    monkeypatch.setattr(local_s3, "_find_program", lambda: program)
    with pytest.raises(StartError, match=r"ended with status 7; its log is .*weed\.log"):
        LocalS3(directory=tmp_path / "data").start()
    assert (tmp_path / "data" / "weed.log").read_text() == "broken\n"


def test_a_missing_program_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(local_s3.shutil, "which", lambda name: None)
    with pytest.raises(StartError, match="not installed"):
        LocalS3().start()


def test_in_a_terminal(tmp_path: Path) -> None:
    """Objects survive a restart; SIGTERM ends it cleanly; credentials lie in a private file."""
    _foreground(tmp_path, lambda fs: fs.pipe_file("archive/kept.txt", b"kept"))
    _foreground(tmp_path, lambda fs: _assert_equal(fs.cat_file("archive/kept.txt"), b"kept"))


def _assert_equal(left: bytes, right: bytes) -> None:
    assert left == right


def _foreground(folder: Path, use: object) -> None:
    command = [sys.executable, "-m", "infra.local_s3", "--directory", str(folder)]
    variables = folder / "s3.env"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not variables.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.2)
        assert stat.S_IMODE(variables.stat().st_mode) == 0o600
        pairs = [line[7:].split("=", 1) for line in variables.read_text().splitlines()]
        values = {name: value.strip("'") for name, value in pairs}
        use(  # type: ignore[operator]
            fsspec.filesystem(
                "s3",
                key=values["AWS_ACCESS_KEY_ID"],
                secret=values["AWS_SECRET_ACCESS_KEY"],
                endpoint_url=values["AWS_ENDPOINT_URL"],
                skip_instance_cache=True,
            )
        )
        os.kill(process.pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert values["AWS_ENDPOINT_URL"] in output
    assert values["AWS_SECRET_ACCESS_KEY"] not in output
    assert not variables.exists()
