"""What an output holds beside published scenes: scenes set aside, unfinished ones, and its runs."""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Iterable
from typing import Any

from pipeline.catalog import scene_id as make_id
from pipeline.inventory import Entry
from pipeline.readers import scene_stem
from pipeline.report.facts import number, plain
from pipeline.storage import join, open_filesystem, redact, unstrip
from pipeline.store import STATE, SceneStore

_MOST_RUNS = 20
_RUN = re.compile(r"[A-Za-z0-9-]{1,80}\.json")
_STATUSES = ("published", "skipped", "quarantined")


def set_aside(output: str, address: str, entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """Every scene that is not published: its reason, and the command that tries it again.

    Args:
        output: of the archive job.
        address: of the output as commands name it.
        entries: of the inventory.
    """
    return [_row(output, address, entry) for entry in entries if entry.status != "published"]


def _row(output: str, address: str, entry: Entry) -> dict[str, Any]:
    facts = SceneStore(output, entry.scene_id).quarantined() or {}
    texts = {
        name: plain(facts[name]) if isinstance(facts.get(name), str) else ""
        for name in ("code", "message", "source", "time", "run_id")
    }
    return {
        "id": entry.scene_id,
        "status": entry.status,
        "tiles": entry.tiles,
        "tiles_done": entry.tiles_done,
        **texts,
        "command": retry_command(entry.scene_id, texts["source"], address),
    }


def retry_command(scene_id: str, source: str, address: str) -> str:
    """The command that tries one scene again, from the address of its file.

    An id is made of the path below SOURCE (`catalog.scene_id`), so SOURCE is the folder below which
    the file has that id.
    """
    place = shlex.quote(_source_of(scene_id, source)) if source else "SOURCE"
    return f"sr-archive run {place} {shlex.quote(address)} --include {shlex.quote(scene_id)}"


def _source_of(scene_id: str, source: str) -> str:
    folder, name = posixpath.split(source.rstrip("/"))
    below = scene_stem(name)
    while folder and not folder.endswith("/"):
        if make_id(below) == scene_id:
            return folder
        folder, name = posixpath.split(folder)
        below = f"{name}/{below}"
    return source


def last_runs(output: str) -> list[dict[str, Any]]:
    """The newest runs first: when they started, how long they took, how scenes ended, notes."""
    filesystem, folder = open_filesystem(join(output, STATE, "runs"))
    try:
        names = [path.rsplit("/", 1)[-1] for path in filesystem.ls(folder, detail=False)]
    except FileNotFoundError:
        return []
    newest = sorted(filter(_RUN.fullmatch, names), reverse=True)[:_MOST_RUNS]
    runs = [_run(filesystem.cat_file(join(folder, name))) for name in newest]
    return [run for run in runs if run is not None]


def _run(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
        statuses = [row["status"] for row in found["rows"]]
        return {
            "run_id": plain(str(found["run_id"])),
            "started": plain(str(found["started"])),
            "seconds": number(found["seconds"]),
            "counts": {status: statuses.count(status) for status in _STATUSES},
            "notes": plain([str(note) for note in found["notes"]]),
        }
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def address_of(output: str) -> str:
    """An output as commands name it: without credentials."""
    return redact(unstrip(*open_filesystem(output)))
