"""The state of a training on disk: tensors as safetensors, the rest as JSON. Never a pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

_TENSORS, _FACTS = "state.safetensors", "state.json"
_BEST = "best."


@dataclass(frozen=True)
class Validation:
    """Figures at one point of a training; PSNR in dB, in the network's own units.

    `share` is the part of the way from the start to the averaged weights where the best lie.
    """

    step: int
    seconds: float
    loss: float
    psnr: float
    share: float = 1.0


@dataclass
class Course:
    """How a training went until now.

    Attributes:
        seconds: of training, over all restarts.
        bicubic: PSNR of plain bicubic on the validation areas, dB.
        validations: in order.
        best: PSNR of the best averaged weights yet; None before the first validation.
        since: validations since the best.
        over: it was stopped early.
    """

    seconds: float = 0.0
    bicubic: float = 0.0
    validations: list[Validation] = field(default_factory=list)
    best: float | None = None
    since: int = 0
    over: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Course:
        validations = [Validation(**each) for each in values["validations"]]
        return cls(**{**values, "validations": validations})


def save_state(
    folder: Path, trainer: dict[str, Any], best: dict[str, Tensor], course: Course
) -> None:
    """Write a checkpoint of a training.

    Args:
        folder: exists.
        trainer: `Trainer.state_dict()`: tensors and whole numbers.
        best: the best averaged weights by name.
        course: how it went.
    """
    tensors = {name: value for name, value in trainer.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in trainer.items() if name not in tensors}
    tensors |= {f"{_BEST}{name}": value for name, value in best.items()}
    save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, folder / _TENSORS)
    (folder / _FACTS).write_text(json.dumps({"trainer": numbers, "course": asdict(course)}))


def load_state(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], Course]:
    """The inverse of `save_state`: the trainer's state, the best weights, the course."""
    tensors: dict[str, Tensor] = load_file(folder / _TENSORS)
    facts = json.loads((folder / _FACTS).read_text())
    best = {n.removeprefix(_BEST): t for n, t in tensors.items() if n.startswith(_BEST)}
    trainer = {n: t for n, t in tensors.items() if not n.startswith(_BEST)}
    return {**trainer, **facts["trainer"]}, best, Course.from_dict(facts["course"])
