"""A process that has everything imported and forks Ray's, so that each starts at once.

Ray starts each worker and each agent of a node as a fresh Python, which takes seconds of processor
time to import its libraries; they would make most of the cost of the trials. Here its command is
`launch.py`, which hands its arguments over to this process. What runs then is Ray's own script.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

FOLDER = "SR_ARCHIVE_TEST_NURSERY"
LAUNCH = Path(__file__).with_name("launch.py")
_PRELOADED = {
    # Ray reads the id of the job from the environment when it is imported, so that is done later.
    "workers": ("pipeline.worker",),
    "agents": ("ray.dashboard.agent", "ray._private.runtime_env.agent.runtime_env_agent"),
}
_STREAMS = (0, 1, 2)
# As a raylet sets it for its agents, who are told of its death by their input; read when imported.
_ENVIRONMENT = {"RAY_enable_pipe_based_agent_to_parent_health_check": "1"}
_LONGEST_MESSAGE = 1 << 18
_PATIENCE = 120.0


class Nursery:
    """Such a process for workers and one for agents; `FOLDER` tells raylets where they are."""

    def __init__(self, folder: Path) -> None:
        self._processes = []
        for name in _PRELOADED:
            command = [sys.executable, "-m", __name__, name, str(folder / name)]
            self._processes.append(subprocess.Popen(command, env=os.environ | _ENVIRONMENT))
        deadline = time.monotonic() + _PATIENCE
        while not all((folder / name).exists() for name in _PRELOADED):
            if time.monotonic() > deadline:
                self.close()
                raise RuntimeError("the nursery of Ray's processes did not start")
            time.sleep(0.05)

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def serve(name: str, address: str) -> None:
    for module in _PRELOADED[name]:
        importlib.import_module(module)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        while True:
            connection, _ = listener.accept()
            with connection:
                message, streams, *_ = socket.recv_fds(connection, _LONGEST_MESSAGE, len(_STREAMS))
                if message and not os.fork():
                    listener.close()
                    _become(*json.loads(message), streams, connection)
            for descriptor in streams:
                os.close(descriptor)


def _become(
    arguments: list[str],
    environment: dict[str, str],
    streams: list[int],
    launcher: socket.socket,
) -> None:
    """Run a script of Ray's as if it had been started where the message came from."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for descriptor, number in zip(streams, _STREAMS, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(environment)
    threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()
    flags = ("-s", "-S", "-u")
    # These two are for the script that would have started the worker's.
    own = ("--serialized-runtime-env-context=", "--language=")
    sys.argv = [each for each in arguments if each not in flags and not each.startswith(own)]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    finally:
        os._exit(0)


def _end_with(launcher: socket.socket) -> None:
    launcher.recv(1)
    os._exit(1)


if __name__ == "__main__":
    serve(*sys.argv[1:])
