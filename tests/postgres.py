"""A Postgres of this machine's packages, for one test."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_ROOT = 0
_ACCOUNTS = ("postgres", "nobody")  # Postgres refuses to run as root


def programs() -> Path | None:
    """The folder of `initdb` and the others, which Debian keeps out of the path."""
    found = shutil.which("initdb")
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    candidates = [*([Path(found).resolve().parent] if found else []), *reversed(folders)]
    return next((folder for folder in candidates if (folder / "pg_ctl").exists()), None)


@dataclass(frozen=True)
class Postgres:
    """A running server that listens on a socket in its folder and nowhere else."""

    folder: Path
    bin: Path
    account: str

    @property
    def url(self) -> str:
        """Of the database that is there at first, for SQLAlchemy with asyncpg."""
        return f"postgresql+asyncpg://{self.account}@/postgres?host={self.folder}"

    def query(self, sql: str) -> str:
        return self._run("psql", "-h", str(self.folder), "-Atc", sql, "postgres")

    def start(self) -> None:
        self._run("initdb", "-D", str(self.folder / "data"), "-A", "trust")
        options = f"-c listen_addresses='' -k {self.folder}"
        log = str(self.folder / "log")
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", log, "-o", options, "start"
        )

    def stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop")

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self.bin / program), *arguments],
            user=self.account if os.getuid() == _ROOT else None,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            check=True,
        )
        return done.stdout


@contextmanager
def running(bin: Path) -> Iterator[Postgres]:
    """A new server in a temporary folder of its own."""
    known = {entry.pw_name for entry in pwd.getpwall()}
    account = next(name for name in _ACCOUNTS if name in known)
    account = account if os.getuid() == _ROOT else pwd.getpwuid(os.getuid()).pw_name
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if os.getuid() == _ROOT:
        shutil.chown(folder, account)
    server = Postgres(folder, bin, account)
    try:
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)
