"""The demo: an archive on a local S3 server, super-resolved by the command that operators use.

make demo                   three simulated scenes
make demo SOURCE=folder     your own scenes
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import fsspec
import xarray as xr
from rich.console import Console
from rich.table import Table

from infra.figures import Comparison, compare, draw, figures
from infra.local_s3 import LocalS3
from infra.processes import StartError, interrupt_on_terminate
from infra.simulate import simulate_archive
from pipeline.catalog import SceneRef, list_scenes
from pipeline.errors import SceneError, UsageError
from pipeline.report.site import make_report

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "demo"
SOME_QUARANTINED = 3
MOST_DRAWN = 3


@dataclass(frozen=True)
class Archive:
    """Where the scenes lie on this machine, and the HR truth of the simulated ones."""

    path: Path
    truth: Path | None = None

    def truth_of(self, scene_id: str) -> Path | None:
        file = None if self.truth is None else self.truth / f"{scene_id}.npy"
        return file if file is not None and file.exists() else None


class Progress:
    """Lines with the time of day and the seconds since the start."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, text: str) -> None:
        passed = time.monotonic() - self._start
        print(f"[{time.strftime('%H:%M:%S')} +{passed:5.1f} s] {text}", flush=True)


def run_demo(source: Path | None, say: Progress) -> int:
    """The whole demo; the returned status is the program's.

    Raises:
        UsageError: the source holds no scene.
        StartError: the S3 server did not start.
    """
    with tempfile.TemporaryDirectory(prefix="sr-archive-demo-") as scratch:
        archive = _prepare(source, Path(scratch), say)
        say("starting a local S3 server (SeaweedFS)")
        with LocalS3(bucket="archive") as server:
            environment = server.merged_environment()
            os.environ.clear()
            os.environ.update(environment)
            filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
            say(f"S3 server at {server.endpoint}; uploading the archive to {server.url('scenes')}")
            _upload(filesystem, archive.path, f"{server.bucket}/scenes")
            status = _run_job(server.url("scenes"), server.url("superres"), say)
            if status not in (0, SOME_QUARANTINED):
                say(f"the job failed with exit status {status}; its message is above")
                return 1
            return _report(filesystem, server, archive, status, say)


def _prepare(source: Path | None, scratch: Path, say: Progress) -> Archive:
    for stale in ("output", "scenes"):
        shutil.rmtree(FOLDER / stale, ignore_errors=True)
    (FOLDER / "before_after.png").unlink(missing_ok=True)
    FOLDER.mkdir(exist_ok=True)
    if source is not None:
        found = list_scenes(str(source))
        count = len(found.scenes) + len(found.rejected)
        say(f"{count} scene{'s' * (count != 1)} in {source}")
        return Archive(source)
    say("making three simulated scenes (invented landscapes, no measurements)")
    simulate_archive(FOLDER / "scenes", scratch / "truth")
    return Archive(FOLDER / "scenes", scratch / "truth")


def _upload(filesystem: Any, path: Path, prefix: str) -> None:
    """Every file as it is; for a single scene also the files beside it that share its name."""
    if path.is_file():
        base, files = path.parent, [p for p in path.parent.iterdir() if p.stem == path.stem]
    else:
        base = path.parent if path.suffix == ".zarr" else path
        files = list(path.rglob("*"))
    for file in sorted(p for p in files if p.is_file()):
        filesystem.put_file(str(file), f"{prefix}/{file.relative_to(base).as_posix()}")


def _run_job(source: str, output: str, say: Progress) -> int:
    command = ["-m", "pipeline", "run", source, output]
    say(f"running: python {' '.join(command)}")
    job = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    try:
        return job.wait()
    finally:
        if job.poll() is None:  # the demo was interrupted
            job.terminate()
            try:
                job.wait(10)
            except subprocess.TimeoutExpired:
                job.kill()


def _report(filesystem: Any, server: LocalS3, archive: Archive, status: int, say: Progress) -> int:
    catalogue = list_scenes(server.url("scenes"))
    published = [scene for scene in catalogue.scenes if _is_published(filesystem, server, scene)]
    total = len(catalogue.scenes) + len(catalogue.rejected)
    say(f"{len(published)} of {total} scenes published, exit status of the job {status}")
    if not published:
        return 1
    say("reading the results from S3 with xarray.open_zarr")
    picture = FOLDER / "before_after.png"
    _compare_all(server, archive, published, picture)
    copies = _keep(filesystem, server, published)
    page = _make_pages(say)
    say(f"picture: {picture.relative_to(ROOT)}")
    say("the published stores, copied from S3; open one with:")
    print("    import xarray")
    for copy in copies:
        print(f'    xarray.open_zarr("{copy.relative_to(ROOT)}")')
    say(f"the report; open it in a browser: {page}")
    return 0


def _compare_all(
    server: LocalS3, archive: Archive, published: list[SceneRef], picture: Path
) -> None:
    """Print the figures of every scene, one in memory at a time; draw the first three."""
    table = Table("scene", "figure", "super-resolved", "bicubic", "better")
    drawn: list[Comparison] = []
    for scene in published:
        truth = archive.truth_of(scene.scene_id)
        comparison = compare(scene.scene_id, scene.uri, _address(server, scene), truth)
        _add_rows(table, comparison)
        if len(drawn) < MOST_DRAWN:
            drawn.append(comparison)
    draw(drawn, picture)
    console = Console()
    # Without a terminal there is no width to keep to.
    (console if console.is_terminal else Console(width=120)).print(table)
    if archive.truth is not None:
        print("PSNR and SAM: against the simulated HR truth.")
    print("Consistency RMSE: the result degraded to LR again, against the source.")


def _add_rows(table: Table, scene: Comparison) -> None:
    name = scene.scene_id + (" (middle)" if scene.part else "")
    for number, figure in enumerate(figures(scene)):
        digits = 3 if figure.high > 1 else 5
        table.add_row(
            "" if number else name,
            figure.name,
            f"{figure.high:.{digits}f}",
            f"{figure.bicubic:.{digits}f}",
            figure.better,
        )


def _address(server: LocalS3, scene: SceneRef) -> str:
    return server.url(f"superres/{scene.scene_id}.zarr")


def _is_published(filesystem: Any, server: LocalS3, scene: SceneRef) -> bool:
    return bool(filesystem.isfile(f"{_address(server, scene)}/zarr.json"))


def _keep(filesystem: Any, server: LocalS3, published: list[SceneRef]) -> list[Path]:
    """Copy the output out of the S3 server, which ends with the demo; returns the stores."""
    output = FOLDER / "output"
    filesystem.get(f"{server.url('superres')}/", str(output), recursive=True)
    copies = [output / f"{scene.scene_id}.zarr" for scene in published]
    for copy in copies:
        xr.open_zarr(copy).close()
    return copies


def _make_pages(say: Progress) -> Path:
    """The report of the copied output; the server must still have the sources."""
    report = make_report(str(FOLDER / "output"))
    for note in report.notes:
        say(f"note: {note}")
    return Path(report.index)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.split("\n")[0])
    parser.add_argument("--source", help="folder or file with scenes; default: simulated ones")
    return parser.parse_args()


def _source(text: str | None) -> Path | None:
    if not text:
        return None
    if "://" in text:
        raise UsageError(
            "SOURCE must be a folder or file on this machine; for a bucket use: "
            "sr-archive run URL OUTPUT"
        )
    path = Path(text).expanduser()
    if not path.exists():
        raise UsageError(f"SOURCE {path} does not exist")
    return path.resolve()


def main() -> int:
    interrupt_on_terminate()
    say = Progress()
    try:
        status = run_demo(_source(_arguments().source), say)
    except (UsageError, SceneError, StartError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        return 130
    say("done" if status == 0 else "the demo failed")
    return status


if __name__ == "__main__":
    sys.exit(main())
