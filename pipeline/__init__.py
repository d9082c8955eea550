"""The archive job: scenes, tiles, stores and the actors that work on them."""

from pipeline.errors import SceneError, UsageError
from pipeline.readers import open_scene
from pipeline.settings import RunSettings

__all__ = ["RunSettings", "SceneError", "UsageError", "open_scene"]
