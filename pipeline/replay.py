"""Prove a stored tile by computing it again."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.difference import ArrayDifference, compare_objects
from pipeline.errors import SceneError
from pipeline.integrity import read_records, repair_command
from pipeline.recompute import (
    Recomputer,
    Source,
    check_tiles,
    chosen_scenes,
    recorded_job,
    stored_objects,
)
from pipeline.storage import describe
from pipeline.store import SceneStore


@dataclass
class Replay:
    """A stored tile beside the same tile computed again.

    Attributes:
        identical: all objects have the same bytes.
        device, precision: of the new computation.
        recorded: device and precision of the stored one.
        arrays: by how much decoded contents differ.
    """

    scene_id: str
    tile: str
    identical: bool
    device: str
    precision: str
    recorded: str
    arrays: list[ArrayDifference] = field(default_factory=list)

    @property
    def within_rounding(self) -> bool:
        return all(array.within_rounding for array in self.arrays)


def replay_tile(output: str, scene_id: str, tile: str, source: Source) -> Replay:
    """Compute one stored tile again and compare; nothing is written to the output.

    Raises:
        SceneError: what made the scene is not here now, or the stored tile cannot be read.
        UsageError: a scene or tile that is not there, or a checkpoint that cannot be used.
    """
    [scene_id] = chosen_scenes(output, [scene_id])
    store = SceneStore(output, scene_id)
    recorded, _ = read_records(store)
    check_tiles([tile], recorded)
    model = source.load_model()
    job = recorded_job(store, recorded.made, model, source)
    with Recomputer(store, recorded, job, model) as recomputer:
        record, made = recomputer.tile(tile)
    stored = stored_objects(store, made)
    if absent := sorted(made.keys() - stored.keys()):
        command = repair_command(store, "--tile", tile)
        raise SceneError("unreadable", f"{absent[0]} is not there: {command}")
    known = recorded.records.get(tile)
    how = ", ".join((known.device, known.precision)) if known else ""
    try:
        arrays = compare_objects(recorded.documents, stored, made, record.precision)
    except Exception as error:  # a codec may raise anything
        raise SceneError(
            "unreadable", f"tile {tile} cannot be decoded: {describe(error)}"
        ) from error
    same = stored == made
    return Replay(scene_id, tile, same, record.device, record.precision, how, arrays)
