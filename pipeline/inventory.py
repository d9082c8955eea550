"""What an output holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.documents import fingerprint_in
from pipeline.errors import UsageError, one_line
from pipeline.storage import check_reachable, join, open_filesystem, redact
from pipeline.store import STATE, SceneStore, is_safe_id


@dataclass(frozen=True)
class Entry:
    """One scene of an output."""

    scene_id: str
    status: Literal["published", "unfinished", "quarantined"]
    tiles: int
    tiles_done: int
    note: str = ""
    fingerprint: str = ""


def scenes_of(output: str) -> list[Entry]:
    """Every scene that the output knows of, by id.

    Raises:
        UsageError: the output holds no state of this product.
    """
    check_reachable(output, "the output")
    filesystem, root = open_filesystem(output)
    filesystem.invalidate_cache()

    def names(*parts: str) -> list[str]:
        try:
            return [
                path.rsplit("/", 1)[-1] for path in filesystem.ls(join(root, *parts), detail=False)
            ]
        except FileNotFoundError:
            return []

    if not names(STATE):
        raise UsageError(f"{redact(output)} is no output of sr-archive: it has no {STATE} folder")
    quarantined = {name.removesuffix(".json") for name in names(STATE, "quarantine")}
    known = set(names(STATE, "scenes")) | quarantined
    return [_entry(SceneStore(output, scene_id)) for scene_id in sorted(filter(is_safe_id, known))]


def _entry(store: SceneStore) -> Entry:
    state = store.state() or {}
    tiles = state.get("tiles")
    tiles = tiles if isinstance(tiles, int) else 0
    problem = store.quarantined()
    note = "" if problem is None else one_line(f"{problem.get('code')}: {problem.get('message')}")
    published = store.published()
    if published is not None:
        fingerprint = fingerprint_in(published)
        return Entry(store.scene_id, "published", tiles, tiles, note, fingerprint)
    done = len(store.ledger())
    return Entry(store.scene_id, "quarantined" if problem else "unfinished", tiles, done, note)
