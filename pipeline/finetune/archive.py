"""The scenes that take part in a fine-tuning, and the one sensor that made them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import xarray as xr

from pipeline.catalog import SceneRef, list_scenes
from pipeline.errors import SceneError, UsageError
from pipeline.finetune.settings import FinetuneSettings
from pipeline.masks import mask_pixels
from pipeline.readers import open_scene

_AT_ONCE = 8  # scenes whose metadata are read at once
_MOST_NAMED = 3


@dataclass(frozen=True)
class Sensor:
    """What all scenes of an archive share.

    Attributes:
        bands: how many.
        wavelengths: nm; None where the scenes state none.
        fwhm: nm; None where the scenes state none.
        name: as the scenes state it; empty where they do not.
    """

    bands: int
    wavelengths: tuple[float, ...] | None
    fwhm: tuple[float, ...] | None
    name: str = ""

    @classmethod
    def of(cls, scene: xr.Dataset) -> Sensor:
        wavelengths, fwhm = (
            tuple(float(value) for value in scene[name].values) if name in scene.coords else None
            for name in ("wavelength", "fwhm")
        )
        name = str(scene.attrs.get("sensor", ""))
        return cls(scene.sizes["band"], _finite(wavelengths), _finite(fwhm), name)

    def agrees(self, other: Sensor) -> bool:
        """Equally many bands, none further from its like than half the smallest step."""
        if self.bands != other.bands:
            return False
        if self.wavelengths is None or other.wavelengths is None:
            return True
        ours, theirs = np.array(self.wavelengths), np.array(other.wavelengths)
        steps = np.abs(np.diff(np.sort(ours)))
        step = float(np.median(steps)) if len(steps) else 1.0
        return bool(np.abs(ours - theirs).max() <= step / 2)

    def __str__(self) -> str:
        if self.wavelengths is None:
            return f"{self.bands} bands without wavelengths"
        return f"{self.bands} bands, {min(self.wavelengths):.0f}-{max(self.wavelengths):.0f} nm"


@dataclass(frozen=True)
class Member:
    """A scene that takes part, and its HR pixels."""

    ref: SceneRef
    height: int
    width: int
    sensor: Sensor


@dataclass(frozen=True)
class Archive:
    """What a source offers for training. `rejected` are (scene_id, reason)."""

    members: tuple[Member, ...]
    sensor: Sensor
    rejected: tuple[tuple[str, str], ...]


def survey(settings: FinetuneSettings) -> Archive:
    """List the source and read the metadata of its scenes.

    A scene that cannot be opened is set aside; the others take part.

    Raises:
        UsageError: no scene is left, or the scenes are of several sensors.
    """
    listed = list_scenes(settings.source, settings.include, settings.exclude, asset=settings.asset)
    rejected = [(scene_id, str(error)) for scene_id, _, error in listed.rejected]
    members = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for ref, found in zip(listed.scenes, pool.map(_member, listed.scenes), strict=True):
            if isinstance(found, Member):
                members.append(found)
            else:
                rejected.append((ref.scene_id, str(found)))
    if not members:
        reason = f": {rejected[0][0]}: {rejected[0][1]}" if rejected else ""
        raise UsageError(f"no scene of the source can be trained on{reason}")
    return Archive(tuple(members), _common_sensor(members), tuple(rejected))


def open_masked(uri: str, mask: Sequence[str]) -> xr.Dataset:
    """A scene as a run would read it, pixels masked.

    Raises:
        SceneError: it cannot be read.
    """
    return mask_pixels(open_scene(uri), mask)


def _member(ref: SceneRef) -> Member | SceneError:
    try:
        scene = open_scene(ref.uri)
    except SceneError as error:
        return error
    return Member(ref, scene.sizes["y"], scene.sizes["x"], Sensor.of(scene))


def _common_sensor(members: Sequence[Member]) -> Sensor:
    first = members[0]
    others = [each for each in members if not first.sensor.agrees(each.sensor)]
    if others:
        alike = [m.ref.scene_id for m in members if first.sensor.agrees(m.sensor)]
        raise UsageError(
            f"the archive holds scenes of several sensors: {_some(alike)} ({first.sensor}), "
            f"{_some([m.ref.scene_id for m in others])} ({others[0].sensor}): one model takes one, "
            "choose with --include or --exclude"
        )
    stating = [m.sensor for m in members if m.sensor.wavelengths is not None]
    return stating[0] if stating else first.sensor


def _some(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more


def _finite(values: tuple[float, ...] | None) -> tuple[float, ...] | None:
    return values if values is not None and bool(np.isfinite(values).all()) else None
