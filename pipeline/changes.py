"""Sources that change under a run: the version of a scene's objects, asked for again.

The version of a listing is known before the first tile is read. It is asked for once more when the
scene is prepared, and once more before it is published; both must agree, so that no output is made
of two versions of its source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.catalog import combined_version
from pipeline.errors import SceneError
from pipeline.readers.boundary import boundary
from pipeline.scene_job import SceneJob
from pipeline.storage import describe, join, open_filesystem, redact
from pipeline.storage_batch import infos

SOURCE_SEEN = "source_seen"  # in a scene's state: the version when it was prepared
_MARKERS = ("zarr.json", ".zmetadata", ".zgroup", ".zattrs", ".zarray")


def version_now(uri: str, parts: Sequence[str] = ()) -> str:
    """The version that a listing would give the scene now.

    Args:
        uri: of the scene.
        parts: addresses of its objects; none for a Zarr store, of which all below it are asked.

    Raises:
        SceneError: `unreadable`, it is not there or cannot be asked.
    """
    if parts:
        return combined_version(_present(uri, parts), store=False)
    return combined_version(_below(uri), store=True)


def check_as_planned(job: SceneJob) -> str:
    """The version now, which must be the planned one where that came from a listing.

    Raises:
        SceneError: `source-changed`, or `unreadable`.
    """
    seen = version_now(job.uri, job.parts)
    if job.listed and seen != job.version:
        raise _changed(job, "since it was listed")
    return seen


def check_unchanged(job: SceneJob, state: Mapping[str, Any]) -> None:
    """Raise if the source is not the one that the scene was prepared from.

    Args:
        job: the scene.
        state: what was recorded when it was prepared.

    Raises:
        SceneError: `source-changed`, or `unreadable`.
    """
    before = state.get(SOURCE_SEEN) or (job.version if job.listed else None)
    if before is not None and version_now(job.uri, job.parts) != before:
        raise _changed(job, "while it was read")


def _changed(job: SceneJob, when: str) -> SceneError:
    return SceneError(
        "source-changed",
        f"{redact(job.uri)} changed {when}; nothing of it is published: run again when it is "
        "complete",
    )


def _present(uri: str, parts: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Name and info of the objects that are there; of a catalogue's scene some may never be."""
    found = []
    for url, info in zip(parts, infos(parts), strict=True):
        if isinstance(info, dict):
            found.append((url.rpartition("/")[2], info))
        elif url == uri or not isinstance(info, FileNotFoundError | NotADirectoryError):
            raise _out_of_reach(url, info)
    return found


def _below(uri: str) -> list[tuple[str, dict[str, Any]]]:
    filesystem, root = open_filesystem(uri)
    listing: dict[str, dict[str, Any]] = {}
    with boundary(uri, "cannot be listed"):
        filesystem.invalidate_cache()
        if not root.startswith(("http://", "https://")):  # a web server lists nothing
            listing = filesystem.find(root, detail=True)
    if listing:
        return [(path[len(root) :], info) for path, info in listing.items()]
    markers = [join(uri, name) for name in _MARKERS]
    answers = infos(markers)
    there = [
        (url.rpartition("/")[2], info)
        for url, info in zip(markers, answers, strict=True)
        if isinstance(info, dict)
    ]
    if not there:
        raise _out_of_reach(uri, next(each for each in answers if isinstance(each, Exception)))
    return there


def _out_of_reach(url: str, error: Exception) -> SceneError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return SceneError("unreadable", f"{redact(url)} is not there any more: restore it")
    return SceneError("unreadable", f"{redact(url)} cannot be reached ({describe(error)})")
