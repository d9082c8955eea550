"""A folder of checkpoints with a pointer to the one that archives are made with.

    <folder>/<name>-<weights>.safetensors                      never overwritten
    <folder>/<name>-<weights>.evaluation-<content>.json        likewise, one per evaluation
    <folder>/latest.json                                       the pointer, moved by `promote` alone

The pointer moves only when an evaluation shows the new checkpoint to be no worse than the one it
points to, on the same regions. It is changed by a conditional write (`pipeline.conditional`), so of
two promotions at once one is made, and the other is judged against it.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from model import SSPSR, Card, CheckpointError, load_checkpoint
from model.checkpoint import pack, weights_digest
from pipeline.conditional import Slot, is_enforced, open_slot
from pipeline.errors import StoreUnavailable, UsageError
from pipeline.evaluation.gate import Incumbent, verdict
from pipeline.evaluation.result import Evaluation
from pipeline.scene_job import Model
from pipeline.storage import (
    describe,
    join,
    open_filesystem,
    read_if_present,
    redact,
    without_secrets,
    write_atomic,
)

LATEST = "latest.json"
_PREFIX = "registry:"
_DIGITS = 16  # of a digest in a file name
_LONGEST = 64 << 10  # bytes; a foreign object of this name may be of any size
_TRIES = 5  # each ends in a decision, or shows that another process was faster
_FILE = re.compile(r"[A-Za-z0-9][\w.-]{0,150}\.safetensors", re.ASCII)


@dataclass(frozen=True)
class Pointer:
    """What `latest.json` says: which file beside it, with which weights, by which evaluation."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    checkpoint: Annotated[str, Field(pattern=f"^{_FILE.pattern}$")]
    weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    card: Annotated[str, Field(max_length=200)]
    evaluation: Annotated[str, Field(max_length=250)]
    promoted: Annotated[str, Field(max_length=40)]
    previous: Annotated[str, Field(max_length=200)] = ""

    @classmethod
    def parse(cls, data: bytes) -> Pointer | None:
        """A pointer from its bytes; None where they are none."""
        try:
            return _ADAPTER.validate_json(data)
        except pydantic.ValidationError:
            return None

    def encode(self) -> bytes:
        return _ADAPTER.dump_json(self, indent=1)


_ADAPTER: pydantic.TypeAdapter[Pointer] = pydantic.TypeAdapter(Pointer)


@dataclass(frozen=True)
class Promotion:
    """What became of a checkpoint.

    Attributes:
        promoted: the pointer names it now.
        reason: the gate's verdict, one line.
        checkpoint: address of the stored file.
        evaluation: of the stored evaluation.
        note: what the operator should know of the store; usually empty.
    """

    promoted: bool
    reason: str
    checkpoint: str
    evaluation: str
    note: str = ""


def resolve(model: str) -> str:
    """The checkpoint that `registry:FOLDER` or `FOLDER/latest.json` points to; else as it is.

    Raises:
        CheckpointError: there is no pointer, or it is damaged.
    """
    pointer = _pointed(model)
    return model if pointer is None else join(_folder_of(model), pointer.checkpoint)


def load_registered(model: str) -> tuple[SSPSR, Card]:
    """`model.load_checkpoint` that takes a registry too, and then checks the weights.

    Raises:
        CheckpointError: as `load_checkpoint` and `resolve`, or the weights are not those that were
            promoted.
    """
    pointer = _pointed(model)
    if pointer is None:
        return load_checkpoint(model)
    net, card = load_checkpoint(join(_folder_of(model), pointer.checkpoint))
    if weights_digest(net) != pointer.weights_sha256:
        raise CheckpointError(
            f"{redact(model)}: {pointer.checkpoint} does not hold the weights that were promoted: "
            "restore the file, or promote again"
        )
    return net, card


def usable_model(model: str, option: str = "--model") -> Model:
    """The checkpoint of a run.

    Args:
        model: as for `load_registered`.
        option: what the operator calls it.

    Raises:
        UsageError: it cannot be used.
    """
    try:
        return Model.of(*load_registered(model))
    except (CheckpointError, StoreUnavailable) as error:
        raise UsageError(f"{option}: {without_secrets(str(error))}") from error


def _is_registry(model: str) -> bool:
    return model.startswith(_PREFIX) or model == LATEST or model.endswith(f"/{LATEST}")


def _folder_of(model: str) -> str:
    folder = model.removeprefix(_PREFIX).removesuffix(LATEST)
    return folder.rstrip("/") or ("/" if folder else ".")


def _pointed(model: str) -> Pointer | None:
    """The pointer that a model option names; None where it names none."""
    if not _is_registry(model):
        return None
    place = redact(join(_folder_of(model), LATEST))
    try:
        filesystem, path = open_filesystem(join(_folder_of(model), LATEST))
        data: bytes = filesystem.cat_file(path, start=0, end=_LONGEST)
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"nothing is promoted yet: there is no {place}") from None
    except Exception as error:  # whatever a store raises, it is of no use
        raise CheckpointError(f"cannot read {place}: {describe(error)}") from None
    pointer = Pointer.parse(data)
    if pointer is None:
        raise CheckpointError(f"{place} is no pointer to a checkpoint: remove it and promote again")
    return pointer


def promote(folder: str, checkpoint_path: str, evaluation: Evaluation) -> Promotion:
    """Store a checkpoint with its evaluation, and make it the latest if it has earned that.

    What earns that is said at `pipeline.evaluation.gate.verdict`; the evaluation must hold the
    checkpoint that is the latest now, unless there is none.

    Args:
        folder: a path or fsspec URL.
        checkpoint_path: as `load_checkpoint` takes it.
        evaluation: that has the checkpoint among its methods, by its weights.

    Raises:
        UsageError: the checkpoint cannot be read, is not in the evaluation, or is stored already
            with another card; or the folder cannot be written.
    """
    try:
        net, card = load_checkpoint(checkpoint_path)
    except CheckpointError as error:
        raise UsageError(f"cannot promote: {error}") from None
    digest = weights_digest(net)
    if evaluation.named(digest) is None:
        raise UsageError(
            f"the evaluation does not hold {card.name} (weights {digest[:12]}): evaluate this "
            "checkpoint and promote it with what comes out"
        )
    try:
        return _Registry(folder).promote(pack(net, card), card.name, digest, evaluation)
    except UsageError:
        raise
    except Exception as error:  # whatever a store raises, it is of no use
        raise UsageError(f"cannot write to registry {redact(folder)}: {describe(error)}") from error


class _Registry:
    """The objects of a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._fs, self._path = open_filesystem(folder)

    def promote(self, data: bytes, name: str, digest: str, evaluation: Evaluation) -> Promotion:
        stem = f"{_file_name(name)}-{digest[:_DIGITS]}"
        file, record = f"{stem}.safetensors", evaluation.to_json().encode()
        content = hashlib.sha256(record).hexdigest()[:_DIGITS]
        beside = f"{stem}.evaluation-{content}.json"
        self._store(file, data)
        self._store(beside, record)
        slot, note = self._slot()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        wanted = Pointer(file, digest, name, beside, now)
        promoted, reason = self._decide(slot, wanted, evaluation)
        stored, judged = (redact(join(self._folder, each)) for each in (file, beside))
        return Promotion(promoted, reason, stored, judged, note)

    def _decide(
        self, slot: Slot | None, wanted: Pointer, evaluation: Evaluation
    ) -> tuple[bool, str]:
        """Judge and move the pointer, again while others move it; whether it moved, and why."""
        asked: Pointer | None = None
        reason = ""
        for _ in range(_TRIES):
            found = None if slot is None else slot.read()
            present = self._present(slot, None if found is None else found.data)
            if present is not None and present == asked:  # a write of ours whose answer was lost
                return True, reason
            passed, reason = verdict(evaluation, wanted.weights_sha256, _incumbent(present))
            if not passed:
                return False, reason
            asked = replace(wanted, previous="" if present is None else present.checkpoint)
            if self._move(slot, asked, None if found is None else found.token):
                return True, reason
        return False, "others moved the pointer all the time: promote again"

    def _store(self, name: str, data: bytes) -> None:
        """Write an object once; what is there already must be the same."""
        path = join(self._path, name)
        there = read_if_present(self._fs, path)
        if there is None:
            write_atomic(self._fs, path, data)
        elif there != data:
            raise UsageError(
                f"{redact(join(self._folder, name))} is there with other content, perhaps the same "
                "weights with another card: give the card another name, or remove the file"
            )

    def _slot(self) -> tuple[Slot | None, str]:
        """The pointer as an object of conditional writes, or why that cannot be had."""
        probe = open_slot(self._folder, f".probe-{secrets.token_hex(8)}")
        if probe is not None and is_enforced(probe):
            return open_slot(self._folder, LATEST), ""
        return None, "the store has no conditional writes: let no two promotions run at once"

    def _present(self, slot: Slot | None, data: bytes | None) -> Pointer | None:
        if slot is None:
            data = read_if_present(self._fs, join(self._path, LATEST))
        if data is None:
            return None
        pointer = Pointer.parse(data)
        if pointer is None:
            place = redact(join(self._folder, LATEST))
            raise UsageError(f"{place} is no pointer to a checkpoint: remove it and promote again")
        return pointer

    def _move(self, slot: Slot | None, pointer: Pointer, token: str | None) -> bool:
        """Whether the pointer is ours now; not if somebody changed it since it was read."""
        if slot is None:
            write_atomic(self._fs, join(self._path, LATEST), pointer.encode())
            return True
        data = pointer.encode()
        return (slot.create(data) if token is None else slot.replace(data, token)) is not None


def _incumbent(present: Pointer | None) -> Incumbent | None:
    return None if present is None else Incumbent(present.weights_sha256, present.checkpoint)


def _file_name(name: str) -> str:
    """A card's name as a part of a file name."""
    return re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip("._-")[:100] or "checkpoint"
