"""A published scene's tiles, computed again exactly as they were, beside the scene.

What made them is read back from the root attribute `sr_archive` (`pipeline.provenance`), and must
be what is here now: source version, weights, code version. The tile is computed into a temporary
store by the same worker that a run uses, so its objects are byte for byte what a run would write.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from types import TracebackType
from typing import Any

import pydantic
import torch

from pipeline.calibration import Calibration
from pipeline.catalog import SceneRef, list_scenes
from pipeline.errors import SceneError, UsageError
from pipeline.grid import Tile
from pipeline.integrity import Recorded, scenes_to_verify
from pipeline.ledger import TileRecord
from pipeline.objects import DOCUMENTS
from pipeline.plan import open_job
from pipeline.registry import usable_model
from pipeline.scene_job import Model, OutputOptions, SceneJob, code_version
from pipeline.settings import Precision
from pipeline.storage import redact
from pipeline.store import CALIBRATION, SceneStore
from pipeline.worker import Worker

# What runs did before an option existed.
_BEFORE: dict[str, Any] = {
    "precision": "fp32",
    "mask": (),
    "conserve": False,
    "outside": "fill",
    "tolerance": None,
    "ensemble": False,
    "uncertainty": False,
}
_TILE = re.compile(r"\d{1,9}\.\d{1,9}")
_STATED = ("multihash:", "updated:")  # versions that a STAC item states, not a store


@dataclass(frozen=True)
class Source:
    """What the operator says of how scenes were made.

    Attributes:
        model: checkpoint, as `sr-archive run --model` takes it.
        source: SOURCE of the run; None takes the recorded address of each scene.
    """

    model: str
    source: str | None = None

    def load_model(self) -> Model:
        """The checkpoint.

        Raises:
            UsageError: it cannot be used.
        """
        return usable_model(self.model)


def recorded_options(made: Mapping[str, Any]) -> OutputOptions:
    """The options of the run that made a scene.

    Options that did not exist then are set to what runs did before.

    Raises:
        SceneError: the record lacks an option, has one that this version does not know, or a value
            that is none.
    """
    stated = made.get("options")
    stated = stated if isinstance(stated, dict) else {}
    names = {each.name for each in fields(OutputOptions)}
    if unknown := sorted(stated.keys() - names):
        raise _not_repeatable(f"made with options that this version lacks: {', '.join(unknown)}")
    if absent := sorted(names - stated.keys() - _BEFORE.keys()):
        raise _not_repeatable(f"the record lacks the options {', '.join(absent)}")
    try:
        return pydantic.TypeAdapter(OutputOptions).validate_python({**_BEFORE, **stated})
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise _not_repeatable(f"the recorded option {name} is no option: {first['msg']}") from None


def recorded_job(
    store: SceneStore, made: Mapping[str, Any], model: Model, source: Source
) -> SceneJob:
    """The job that made a published scene.

    Args:
        store: the scene.
        made: its root attribute `sr_archive`.
        model: the checkpoint to use.
        source: where to look for its source.

    Raises:
        SceneError: `not-repeatable` or `source-changed`, or the source cannot be opened.
    """
    if not made:
        raise _not_repeatable("its attributes have no record of how it was made")
    options = recorded_options(made)
    if made.get("code_version") != code_version():
        raise _not_repeatable(
            f"made by version {made.get('code_version')}, this is {code_version()}: install that "
            "one, or make the scene anew with `sr-archive run`"
        )
    if made.get("weights_sha256") != model.digest:
        raise _not_repeatable(
            f"made with the weights {str(made.get('weights_sha256'))[:12]} of {made.get('model')}, "
            f"--model has {model.digest[:12]}: give the checkpoint of the run"
        )
    ref = recorded_source(store.scene_id, made, source.source)
    job, _ = open_job(ref, store.output, model, options, str(made.get("fingerprint", "")))
    return job


def recorded_source(scene_id: str, made: Mapping[str, Any], source: str | None) -> SceneRef:
    """The source of a published scene, still in the version that was read.

    Args:
        scene_id: of the published scene.
        made: its root attribute `sr_archive`.
        source: SOURCE of the run; None takes the recorded address.

    Raises:
        SceneError: `unreadable` or `source-changed`.
    """
    uri, version = str(made.get("source", "")), str(made.get("source_version", ""))
    if source is None and version.startswith(_STATED):
        raise SceneError(
            "source-changed", "a STAC item stated its version: give the run's SOURCE as --source"
        )
    try:
        listed = list_scenes(source, [scene_id]) if source else list_scenes(uri)
    except UsageError as error:
        raise SceneError("unreadable", f"its source: {error}") from error
    found = listed.scenes
    if len(found) != 1:
        raise SceneError("unreadable", f"{redact(uri)}: no single scene is there now")
    if found[0].version != version:
        raise SceneError(
            "source-changed",
            f"{redact(uri)} is {found[0].version} now, the scene was made of {version}: restore "
            "the source, or make the scene anew with `sr-archive run`",
        )
    return found[0]


def _not_repeatable(message: str) -> SceneError:
    return SceneError("not-repeatable", message)


def chosen_scenes(output: str, scenes: Sequence[str]) -> list[str]:
    """The named scenes, or all that are published, in order of ids.

    Raises:
        UsageError: one is not published.
    """
    there = scenes_to_verify(output)
    if unknown := sorted(set(scenes) - there.keys()):
        raise UsageError(f"--scene: not published in {redact(output)}: {', '.join(unknown)}")
    return [scene_id for scene_id in there if not scenes or scene_id in scenes]


def check_tiles(tiles: Iterable[str], recorded: Recorded) -> None:
    """Fail if a tile is none of the scene's.

    Raises:
        UsageError: it is not.
    """
    for tile in tiles:
        if not _TILE.fullmatch(tile) or tile not in recorded.tiles:
            last = recorded.tiles[-1] if recorded.tiles else "none"
            raise UsageError(f"--tile {tile}: the scene has tiles ROW.COLUMN from 0.0 to {last}")


def stored_objects(store: SceneStore, keys: Iterable[str]) -> dict[str, bytes]:
    """Those of the objects that are there."""
    found = {key: store.read_if_present(key) for key in keys}
    return {key: data for key, data in found.items() if data is not None}


class Recomputer:
    """Computes tiles of one scene into a temporary store; a context manager."""

    def __init__(self, store: SceneStore, recorded: Recorded, job: SceneJob, model: Model) -> None:
        """Make the temporary store.

        Raises:
            SceneError: the constants of the scene are lost, or not those of its attributes.
        """
        copies = recorded.copies
        constants = store.calibration() if copies is None else copies.state.get(CALIBRATION)
        if constants is None:
            raise SceneError("output-failed", "its constants are lost: publish it anew with a run")
        _check_constants(constants, recorded.made)
        self._model, self._recorded = model, recorded
        self._workers: dict[tuple[str, str], Worker] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="sr-archive-")
        self._job = replace(job, output=self._folder.name)
        self._store = self._job.store()
        documents = {
            key: data
            for key, data in recorded.documents.items()
            if "/" in key and key.rpartition("/")[2] in DOCUMENTS
        }
        state = {"fingerprint": self._job.fingerprint, "tiles": len(job.grid)}
        self._store.prepare(documents, constants, state)

    def __enter__(self) -> Recomputer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def tile(self, key: str) -> tuple[TileRecord, dict[str, bytes]]:
        """Compute one tile in its recorded precision, on its recorded device if that is here.

        Returns:
            Its record, and the objects that a run would write, by key below the scene.

        Raises:
            SceneError: the source cannot be read there.
        """
        row, column = (int(part) for part in key.split("."))
        record = self._worker(key).process(self._job, Tile(row, column))
        objects = {item.key: self._store.read(item.key) for item in record.objects}
        for name in objects:
            self._store.remove(name)
        return record, objects

    def _worker(self, key: str) -> Worker:
        known, made = self._recorded.records.get(key), self._recorded.made
        where = known.device if known else str(made.get("device"))
        how = known.precision if known else str(made.get("precision"))
        device = "cuda" if where == "cuda" and torch.cuda.is_available() else "cpu"
        precision: Precision = self._job.options.precision
        precision = {"fp32": "fp32", "bf16": "bf16"}.get(how, precision)  # type: ignore[assignment]
        if (device, precision) not in self._workers:
            threads = torch.get_num_threads()
            worker = Worker(self._model.data, device, threads, precision)
            self._workers[device, precision] = worker
        return self._workers[device, precision]


def _check_constants(data: bytes, made: Mapping[str, Any]) -> None:
    """Their attention statistics must be those whose hash the scene states."""
    stated = made.get("attention_statistics_sha256")
    try:
        digest = Calibration.from_bytes(data).digest()
    except Exception as error:  # a damaged file may hold anything
        raise SceneError(
            "output-failed", "its constants cannot be read: publish it anew"
        ) from error
    if stated is not None and stated != digest:
        raise SceneError("output-failed", "its constants are not those of its attributes")
