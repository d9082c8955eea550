"""Start servers as child processes and be sure that they end with their parent."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType


class StartError(Exception):
    """A server did not start; one line that says what to do."""


def interrupt_on_terminate() -> None:
    """Make SIGTERM end the program as Ctrl-C does, so that `with` blocks stop their servers.

    SIGINT is set too: a program that a script starts in the background ignores it otherwise.
    A second signal does not disturb the stopping.
    """

    def interrupt(signum: int, frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: connections of an earlier server that linger do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    command: Sequence[str], log: Path | None, environment: Mapping[str, str], directory: Path
) -> subprocess.Popen[bytes]:
    """Start a server in a process group of its own; it writes to `log`, or to this terminal."""
    output = None if log is None else log.open("ab")
    try:
        return subprocess.Popen(
            command,
            env=environment,
            cwd=directory,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
        )
    finally:
        if output is not None:
            output.close()


def stop(process: subprocess.Popen[bytes], patience: float = 15.0) -> None:
    """End a process started by `start` and all of its group, by force after `patience` seconds."""
    _signal_group(process.pid, signal.SIGTERM)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process started by `start` and all of its group at once, without a word."""
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def wait_until(
    ready: Callable[[], bool],
    process: subprocess.Popen[bytes],
    timeout: float,
    name: str,
    log: Path | None,
) -> None:
    """Wait for a server.

    Raises:
        StartError: it ended, or was not ready in time; the line names its log file.
    """
    hint = f"; its log is {log}" if log else ""
    deadline = time.monotonic() + timeout
    while not ready():
        if process.poll() is not None:
            raise StartError(f"{name} ended with status {process.returncode}{hint}")
        if time.monotonic() > deadline:
            raise StartError(f"{name} was not ready after {timeout:.0f} s{hint}")
        time.sleep(0.1)
