"""What `sr-archive plan --estimate` foretells, beside what the run then takes.

    python -m benchmarks.estimate [--seconds 60] [--only disk] [--data FOLDER [--exclude GLOB]]

Archives of different kinds: Zarr scenes of several sizes on the disk; many small GeoTIFF and ENVI
scenes on the disk; Zarr and GeoTIFF scenes on a SeaweedFS of its own, result too; and, with --data,
a folder of real scenes with the shipped checkpoint. Requests of the run are counted in its workers,
which are those of the estimate, and in the driver, which is this process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import fsspec

from benchmarks.common import make_net, print_table, timed, write_checkpoint
from benchmarks.counted import counted_runs
from benchmarks.scenes import write_scene
from benchmarks.soak import write_archive
from infra.local_s3 import LocalS3
from pipeline import RunSettings
from pipeline.estimate.estimator import plan_and_estimate
from pipeline.estimate.scratch import bytes_below
from pipeline.job import load_model, run
from pipeline.traffic import KINDS, Traffic, so_far


@dataclass
class Reality:
    """What a run took."""

    seconds: float
    tiles: int
    stored: int
    traffic: Traffic = field(default_factory=Traffic)
    worker_peak: int = 0


def reality(settings: RunSettings) -> Reality:
    """Run the job."""
    reports, before = [], so_far()
    with counted_runs() as meters:
        seconds = timed(lambda: reports.append(run(settings)))
    traffic, [meter] = so_far() - before, meters
    tiles = sum(row.tiles - row.tiles_kept for row in reports[0].rows if row.status == "published")
    stored = bytes_below(settings.output)
    return Reality(seconds, tiles, stored, traffic + meter.traffic, meter.peak)


def compare(name: str, settings: RunSettings, seconds: float) -> list[Sequence[object]]:
    """Rows: what, estimate, from, to, reality, estimate / reality."""
    model = load_model(settings)
    _, estimate = plan_and_estimate(settings, model, seconds)
    assert estimate is not None
    facts, real = estimate.to_dict(), reality(settings)
    rests = facts["rests_on"]
    measured = sum(group["tiles_measured"] for group in rests["groups"])
    print(f"\n{name}: {measured} tiles measured in {rests['seconds_measured']} s; {rests['notes']}")
    giga = {
        "stored GB": ("stored_gigabytes", real.stored / 1e9),
        "S3 received GB": ("s3_received_gigabytes", real.traffic.received / 1e9),
        "S3 sent GB": ("s3_sent_gigabytes", real.traffic.sent / 1e9),
        "worker's memory GB": ("worker_memory_gigabytes_measured", real.worker_peak / 1e9),
    }
    lines = {"wall s": ("wall_seconds", real.seconds), "tiles": ("tiles", real.tiles), **giga}
    rows = [
        _row(name, what, facts[key], facts.get(f"{key}_from"), facts.get(f"{key}_to"), found)
        for what, (key, found) in lines.items()
    ]
    return rows + [
        _row(name, kind, facts["s3_requests"][kind], None, None, real.traffic.of(kind))
        for kind in KINDS
        if real.traffic.of(kind)
    ]


def _row(
    name: str, what: str, foretold: float, low: float | None, high: float | None, found: float
) -> Sequence[object]:
    ends = ("" if end is None else float(end) for end in (low, high))
    ratio = round(foretold / found, 2) if found else ""
    return [name, what, float(foretold), *ends, float(found), ratio]


def _disk(folder: Path) -> dict[str, object]:
    for index, side in enumerate((640, 448, 320, 200, 100)):
        write_scene(folder / "scenes" / f"s{index}.zarr", 48, side, side + 40)
    write_checkpoint(make_net(48, features=128), folder / "net.safetensors")
    return {"tile": 64}


def _small(folder: Path) -> dict[str, object]:
    write_archive(folder / "scenes", 120, 64, 24)
    shutil.rmtree(folder / "first")
    for store in (folder / "scenes").glob("*.zarr"):
        shutil.rmtree(store)
    write_checkpoint(make_net(24, features=64), folder / "net.safetensors")
    return {"tile": 32}


def _bucket(folder: Path) -> dict[str, object]:
    for index, side in enumerate((384, 256, 128)):
        write_scene(folder / "scenes" / f"s{index}.zarr", 32, side, side + 20)
    write_archive(folder / "more", 9, 96, 32)
    for path in (folder / "more").glob("*.tif"):
        path.rename(folder / "scenes" / path.name)
    write_checkpoint(make_net(32, features=64), folder / "net.safetensors")
    return {"tile": 32}


def _on_disk(name: str, make: Callable[[Path], dict[str, object]], seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as place:
        folder = Path(place)
        options = make(folder)
        _report(name, str(folder / "scenes"), str(folder / "out"), folder, options, seconds)


def _on_s3(seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as place, LocalS3() as server:
        os.environ.update(server.merged_environment())
        options = _bucket(Path(place))
        filesystem = fsspec.filesystem("s3")
        filesystem.put(f"{place}/scenes/", server.url("scenes"), recursive=True)
        urls = server.url("scenes"), server.url("out")
        _report("s3", *urls, Path(place), options, seconds)


def _on_real(data: str, exclude: list[str], seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as place:
        _report("real", data, f"{place}/out", None, {"tile": 32, "exclude": exclude}, seconds)


def _report(
    name: str,
    source: str,
    output: str,
    folder: Path | None,
    options: dict[str, object],
    seconds: float,
) -> None:
    model = {} if folder is None else {"model": str(folder / "net.safetensors")}
    settings = RunSettings.from_options({"source": source, "output": output, **model, **options})
    rows = compare(name, settings, seconds)
    header = ("archive", "what", "estimate", "from", "to", "run", "estimate / run")
    print_table("Estimate and reality", header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--only", choices=("disk", "small", "s3", "real"))
    parser.add_argument("--data", help="a folder of real scenes")
    parser.add_argument("--exclude", nargs="+", default=[], help="globs of scene ids of --data")
    asked = parser.parse_args()
    archives: dict[str, Callable[[float], None]] = {
        "disk": partial(_on_disk, "disk", _disk),
        "small": partial(_on_disk, "small", _small),
        "s3": _on_s3,
    }
    if asked.data:
        archives["real"] = partial(_on_real, asked.data, asked.exclude)
    for name, archive in archives.items():
        if asked.only in (None, name):
            archive(asked.seconds)


if __name__ == "__main__":
    main()
