"""After publishing: a scene's quicklook, and an output's catalogue made to agree with its scenes.

Both are made from the published stores alone, so whatever a killed run left undone, the next run or
`sr-archive catalogue` makes good.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import xarray as xr

from pipeline.errors import SceneError
from pipeline.outline import bounding_box, footprint
from pipeline.quicklook import draw_quicklook
from pipeline.stac.catalogue import FOLDER, CatalogueReport, catalogued, update_catalogue
from pipeline.stac.facts import facts_of_published
from pipeline.stac.item import Item, scene_item
from pipeline.storage import describe, join, open_filesystem, read_if_present, write_atomic
from pipeline.store import SceneStore, is_safe_id


def save_quicklook(output: str, scene_id: str) -> None:
    """Draw a published scene into `stac/quicklooks`."""
    picture = draw_quicklook(SceneStore(output, scene_id).url)
    write_atomic(*_quicklook(output, scene_id), picture)


def stored_quicklook(output: str, scene_id: str) -> bytes | None:
    """The PNG that `save_quicklook` drew, or None where there is none."""
    return read_if_present(*_quicklook(output, scene_id))


def bring_up_to_date(
    output: str, published: Mapping[str, str], perhaps_gone: Iterable[str] = ()
) -> CatalogueReport:
    """Make the catalogue agree with what is published.

    Items of scenes that it lacks, or has with another fingerprint, are made. Scenes that are not
    named here keep theirs.

    Args:
        output: of the archive job.
        published: fingerprints of published scenes by id.
        perhaps_gone: ids whose item is taken out if they are not published any more.

    Returns:
        What was done; a scene that could not be described is a note, and is tried again next time.
    """
    known = catalogued(output)
    changed = [name for name, fingerprint in published.items() if known.get(name) != fingerprint]
    notes: list[str] = []
    gone = [
        name
        for name in sorted(known.keys() & set(perhaps_gone))
        if not is_safe_id(name) or SceneStore(output, name).published() is None
    ]
    report = update_catalogue(output, _items(output, sorted(changed), notes), gone)
    report.notes += notes
    return report


def _items(output: str, scene_ids: Iterable[str], notes: list[str]) -> Iterator[Item]:
    for scene_id in scene_ids:
        try:
            yield _item(output, scene_id, notes)
        except SceneError as error:
            notes.append(f"{scene_id} is not in the catalogue: {error.message}")
        except Exception as error:  # a foreign store may hold anything
            notes.append(f"{scene_id} is not in the catalogue: {describe(error)}")


def _item(output: str, scene_id: str, notes: list[str]) -> Item:
    store = SceneStore(output, scene_id)
    with xr.open_zarr(store.url) as scene:
        geometry = footprint(scene)
    filesystem, path = _quicklook(output, scene_id)
    if not filesystem.exists(path):
        try:
            save_quicklook(output, scene_id)
        except Exception as error:  # a picture is no reason to lose the item
            notes.append(f"no quicklook of {scene_id}: {describe(error)}")
    return scene_item(
        facts_of_published(
            store,
            geometry=geometry,
            bbox=None if geometry is None else bounding_box(geometry),
            quicklook=filesystem.exists(path),
        )
    )


def _quicklook(output: str, scene_id: str) -> tuple[Any, str]:
    return open_filesystem(join(output, FOLDER, "quicklooks", f"{scene_id}.png"))
