"""The small pictures of a scene: its quicklook, and a thumbnail for the overview."""

from __future__ import annotations

from io import BytesIO

from PIL import Image

from pipeline.quicklook import draw_quicklook
from pipeline.stac.publication import stored_quicklook
from pipeline.store import SceneStore

_THUMBNAIL = 96  # pixels along its longer side


def quicklook_of(store: SceneStore) -> bytes:
    """The PNG beside the catalogue, or a new one where there is none.

    Raises:
        ValueError: the scene has no good band.
    """
    return stored_quicklook(store.output, store.scene_id) or draw_quicklook(store.url)


def thumbnail(quicklook: bytes) -> bytes:
    """WebP of a quicklook."""
    memory = BytesIO()
    with Image.open(BytesIO(quicklook), formats=["PNG"]) as picture:
        picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
        picture.save(memory, "WEBP", quality=80, method=4)
    return memory.getvalue()
