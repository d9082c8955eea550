"""A place below an output in which a calibration may write, and which is removed again.

    <output>/_sr-archive/estimates/<time>-<token>/

It is on the output's own store, whose speed counts, and below the folder that no listing of
scenes looks into. What a killed calibration left is removed by the next one, an hour later.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError
from pipeline.storage import describe, is_local, join, open_filesystem, redact, write_atomic
from pipeline.store import STATE

_FOLDER = "estimates"
_TIME = "%Y%m%dT%H%M%SZ"
_FORGOTTEN = timedelta(hours=1)


@contextmanager
def scratch(output: str) -> Iterator[str]:
    """The address of a new place, which is gone at the end, with folders that it needed.

    Raises:
        UsageError: nothing can be written there, or it cannot be removed.
    """
    began = datetime.now(UTC)
    url = join(output, STATE, _FOLDER, f"{began:{_TIME}}-{secrets.token_hex(4)}")
    filesystem, path = open_filesystem(url)
    absent = _absent_above(path) if is_local(filesystem) else []
    try:
        try:
            facts = json.dumps({"began": began.isoformat()}).encode()
            write_atomic(filesystem, join(path, "estimate.json"), facts, durable=False)
        except Exception as error:  # whatever a store raises, it is of no use
            place = redact(output)
            raise UsageError(f"cannot write to output {place}: {describe(error)}") from error
        yield url
    finally:
        _remove(filesystem, path)
        _remove_forgotten(filesystem, path.rpartition("/")[0], began)
        for folder in absent:
            with suppress(OSError):  # no longer empty: others write there
                folder.rmdir()


def bytes_below(url: str) -> int:
    """Of all objects there."""
    filesystem, path = open_filesystem(url)
    filesystem.invalidate_cache()
    return sum(int(info["size"]) for info in filesystem.find(path, detail=True).values())


def _absent_above(path: str) -> list[Path]:
    """Folders that do not exist yet, innermost first."""
    return [folder for folder in Path(path).parents if not folder.exists()]


def _remove(filesystem: Any, path: str) -> None:
    filesystem.invalidate_cache()
    try:
        if filesystem.exists(path):
            filesystem.rm(path, recursive=True)
    except FileNotFoundError:
        return
    except Exception as error:
        raise UsageError(f"cannot remove {redact(path)}, do so: {describe(error)}") from error


def _remove_forgotten(filesystem: Any, folder: str, now: datetime) -> None:
    with suppress(Exception):  # another's: it is no fault of this one
        for path in filesystem.ls(folder, detail=False):
            name = path.rstrip("/").rpartition("/")[2]
            began = datetime.strptime(name.partition("-")[0], _TIME).replace(tzinfo=UTC)
            if now - began > _FORGOTTEN:
                _remove(filesystem, path)
