"""A run over an archive of which nearly everything is published already, on a real S3 server.

    python -m benchmarks.incremental [--scenes 10000] [--new 3]

The published scenes are markers with the right fingerprints and items in the catalogue: what a plan
looks at, without the hours that making them would take. The new scenes are real and are processed.
The script fails if an object changes that belongs to neither them nor the catalogue.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.io import MemoryFile

from benchmarks.common import make_net, print_table, timed, write_checkpoint
from benchmarks.memory import peak_resident
from infra.local_s3 import LocalS3
from pipeline.catalog import SceneRef, list_scenes
from pipeline.job import load_model, run
from pipeline.scene_job import OutputOptions, fingerprint_of
from pipeline.settings import RunSettings
from pipeline.stac.catalogue import update_catalogue
from pipeline.stac.facts import PublishedScene
from pipeline.stac.item import Item, scene_item
from pipeline.storage import open_filesystem, version_of

_BANDS, _SIDE = 12, 16
_BATCH = 500


def scene_bytes() -> bytes:
    values = np.random.default_rng(0).integers(1000, 4000, (_BANDS, _SIDE, _SIDE)).astype("int16")
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            count=_BANDS,
            height=_SIDE,
            width=_SIDE,
            dtype="int16",
            crs="EPSG:32633",
            transform=rasterio.Affine(30, 0, 364095, 0, -30, 5809965),
        ) as file:
            file.write(values)
        return bytes(memory.read())


def put(url: str, objects: dict[str, bytes]) -> None:
    filesystem, root = open_filesystem(url)
    names = list(objects)
    for start in range(0, len(names), _BATCH):
        batch = names[start : start + _BATCH]
        filesystem.pipe({f"{root}/{name}": objects[name] for name in batch})


def mark_published(settings: RunSettings, refs: Sequence[SceneRef]) -> None:
    """Markers and items as a run would have left them."""
    model, options = load_model(settings), OutputOptions.of(settings)
    made = {ref.scene_id: fingerprint_of(ref, model, options) for ref in refs}
    markers = {}
    for name, fingerprint in made.items():
        document = {"zarr_format": 3, "node_type": "group"}
        attributes = {"attributes": {"sr_archive": {"fingerprint": fingerprint}}}
        markers[f"{name}.zarr/zarr.json"] = json.dumps(document | attributes).encode()
    put(settings.output, markers)

    def items() -> Iterator[Item]:
        for name, fingerprint in made.items():
            record = {"fingerprint": fingerprint, "published": "2026-01-01T00:00:00Z", "scale": 4}
            shape = (_BANDS, 4 * _SIDE, 4 * _SIDE)
            yield scene_item(PublishedScene(name, {"sr_archive": record}, shape, "int16"))

    update_catalogue(settings.output, items())


def versions(url: str) -> dict[str, str]:
    filesystem, root = open_filesystem(url)
    filesystem.invalidate_cache()
    found: dict[str, Any] = filesystem.find(root, detail=True)
    return {
        path[len(root) + 1 :]: f"{version_of(info)} {info.get('LastModified')}"
        for path, info in found.items()
    }


def touched(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def check(changed: set[str], new: Sequence[str]) -> None:
    """Only the new scenes, the run's record and the catalogue's two common objects."""
    common = ("_sr-archive/runs/", "stac/collection.json", "stac/items.parquet")
    foreign = [
        key
        for key in changed
        if not key.startswith(common) and not any(name in key for name in new)
    ]
    if foreign:
        raise SystemExit(f"objects of other scenes changed: {sorted(foreign)[:5]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=10_000)
    parser.add_argument("--new", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, LocalS3() as server:
        os.environ.update(server.environment())
        source, output = f"s3://{server.bucket}/scenes", f"s3://{server.bucket}/out"
        model = Path(folder) / "net.safetensors"
        write_checkpoint(make_net(9, features=16, blocks=1), model)
        data = scene_bytes()
        put(source, {f"scene{number:06d}.tif": data for number in range(given.scenes)})
        paths = {"source": source, "output": output, "model": str(model)}
        settings = RunSettings.from_options({**paths, "tile": 16})
        rows: list[list[object]] = []

        def measure(what: str, work: Any) -> None:
            spent = timed(work)
            rows.append([what, spent, peak_resident() / 1e6])

        catalogue: list[SceneRef] = []
        measure("listing", lambda: catalogue.extend(list_scenes(source).scenes))
        mark_published(settings, catalogue)
        rows.append(["(what the preparation took of memory)", 0.0, peak_resident() / 1e6])
        measure("run, nothing new", lambda: run(settings))
        names = [f"scene{given.scenes + number:06d}" for number in range(given.new)]
        put(source, {f"{name}.tif": data for name in names})
        before = versions(output)
        reports: list[Any] = []
        measure(f"run, {given.new} new", lambda: reports.append(run(settings)))
        changed = touched(before, versions(output))
        check(changed, names)
        assert reports[0].count("published") == given.new
        assert reports[0].count("skipped") == given.scenes
    print_table(
        f"{given.scenes} scenes on S3, {len(changed)} objects changed in the last run",
        ["", "s", "peak MB of the driver so far"],
        rows,
    )


if __name__ == "__main__":
    main()
