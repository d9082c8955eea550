"""Where a report is written: a folder or a bucket, one whole object at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from pipeline.errors import UsageError
from pipeline.report.facts import plain
from pipeline.storage import describe, join, open_filesystem, read_if_present, redact, write_atomic
from pipeline.store import is_safe_id

_TYPES = {  # what a bucket tells browsers; without it they would offer pages as downloads
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".png": "image/png",
    ".webp": "image/webp",
    ".json": "application/json",
    ".txt": "text/plain; charset=utf-8",
}
_MARKER = "row.json"  # written last of a scene: what it says is all there
_OWN = "sr-archive-report.json"  # written first of all: only below it anything is ever removed


class ReportFolder:
    """One report."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = open_filesystem(url)
        self._s3 = "s3" in self._protocols()
        self.written = 0

    def claim(self) -> None:
        """Make sure that nothing but a report is here.

        Raises:
            UsageError: something else is, which a report must not write into.
        """
        if read_if_present(self._fs, join(self._root, _OWN)) is not None:
            return
        try:
            foreign = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            foreign = []
        if foreign:
            raise UsageError(f"{redact(self.url)} holds other things: give --to an empty place")
        self.put(_OWN, b"{}")

    @property
    def index(self) -> str:
        """The address of the first page, without credentials."""
        return redact(join(self.url, "index.html"))

    def put(self, key: str, data: bytes) -> None:
        """Write one object.

        Raises:
            UsageError: the place cannot be written.
        """
        path = join(self._root, key)
        try:
            if self._s3:
                kind = _TYPES.get(f".{key.rpartition('.')[2]}", "application/octet-stream")
                self._fs.pipe_file(path, data, ContentType=kind)
            else:
                write_atomic(self._fs, path, data, durable=False)
        except OSError as error:
            raise UsageError(f"cannot write {redact(self.url)}: {describe(error)}") from error
        self.written += len(data)

    def put_page(self, name: str, key: str) -> None:
        """Write a file of the built site."""
        self.put(key, site_file(name))

    def rows(self) -> dict[str, dict[str, Any]]:
        """What is known of the scenes that have a whole page, by id."""
        self._fs.invalidate_cache()
        ids = self._scenes()
        paths = {join(self._root, "scenes", each, _MARKER): each for each in ids}
        found = self._fs.cat(list(paths), on_error="omit") if paths else {}
        by_path = {path.lstrip("/"): each for path, each in paths.items()}
        rows = {by_path[path.lstrip("/")]: _parsed(data) for path, data in found.items()}
        return {each: row for each, row in rows.items() if row is not None}

    def begin_scene(self, scene_id: str) -> None:
        """Take away what an earlier report said of the scene."""
        path = join(self._root, "scenes", scene_id)
        if read_if_present(self._fs, join(path, _MARKER)) is not None:
            self._fs.rm_file(join(path, _MARKER))
        if self._fs.exists(path):
            self._fs.rm(path, recursive=True)

    def end_scene(self, scene_id: str, row: dict[str, Any]) -> None:
        """Record that the scene's page is whole."""
        text = json.dumps(row, sort_keys=True, allow_nan=False)
        self.put(f"scenes/{scene_id}/{_MARKER}", text.encode())

    def drop_others(self, scene_ids: Iterable[str]) -> list[str]:
        """Remove the pages of scenes that are not named; returns whose."""
        self._fs.invalidate_cache()
        gone = sorted(set(self._scenes()) - set(scene_ids))
        for scene_id in gone:
            self.begin_scene(scene_id)
        return gone

    def _scenes(self) -> list[str]:
        try:
            paths = self._fs.ls(join(self._root, "scenes"), detail=False)
        except FileNotFoundError:
            return []
        return sorted(filter(is_safe_id, (path.rstrip("/").rsplit("/", 1)[-1] for path in paths)))

    def _protocols(self) -> tuple[str, ...]:
        protocol = self._fs.protocol
        return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def site_file(name: str) -> bytes:
    """A file of the built site."""
    return files("pipeline.report").joinpath("site", name).read_bytes()


def _parsed(data: bytes) -> Any:
    try:
        row = json.loads(data)
    except (ValueError, RecursionError):
        return None
    known = isinstance(row, dict) and isinstance(row.get("key"), str)
    return plain(row) if known else None
