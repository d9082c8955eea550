"""The archive job: scenes, tiles, stores and the actors that work on them."""

from typing import TYPE_CHECKING, Any

from pipeline.accessor import SceneAccessor
from pipeline.errors import SceneError, UsageError
from pipeline.readers import open_scene
from pipeline.settings import RunSettings

if TYPE_CHECKING:
    from pipeline.in_memory import super_resolve

__all__ = [
    "RunSettings",
    "SceneAccessor",
    "SceneError",
    "UsageError",
    "open_scene",
    "super_resolve",
]


def __getattr__(name: str) -> Any:
    """`super_resolve` loads torch, which commands that only look do without."""
    if name == "super_resolve":
        from pipeline.in_memory import super_resolve

        return super_resolve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
