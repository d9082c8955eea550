"""The registry: what is promoted, what is not, and two promotions at once."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from infra.local_s3 import LocalS3
from model import CheckpointError, save_checkpoint
from model.checkpoint import weights_digest
from pipeline import UsageError
from pipeline.conditional import LocalSlot
from pipeline.job import load_model
from pipeline.registry import load_registered, promote, resolve
from pipeline.settings import RunSettings
from tests.evaluations import by_hand
from tests.test_lease import in_parallel
from tests.test_model import make_card, make_net


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty registry on a disk, or on the S3 server."""
    if request.param == "local":
        return str(tmp_path / "registry")
    server: LocalS3 = request.getfixturevalue("s3")
    return server.url(f"registry/{tmp_path.name}-{os.getpid()}")


class Candidate:
    """A checkpoint of its own weights."""

    def __init__(self, folder: Path, name: str, seed: int) -> None:
        net = make_net()
        with torch.no_grad():
            net.final.bias.fill_(seed / 100)
        self.path = str(folder / f"{name}.safetensors")
        self.card = make_card(net).model_copy(update={"name": name})
        self.net, self.digest = net, weights_digest(net)
        save_checkpoint(self.path, net, self.card)

    def scored(self, psnr: float | None, sam: float) -> dict[str, tuple[str, float | None, float]]:
        return {self.card.name: (self.digest, psnr, sam)}


@pytest.fixture
def first(tmp_path: Path) -> Candidate:
    return Candidate(tmp_path, "first", 1)


@pytest.fixture
def second(tmp_path: Path) -> Candidate:
    return Candidate(tmp_path, "second", 2)


def latest(folder: str) -> dict[str, Any]:
    with fsspec.open(f"{folder}/latest.json") as file:
        return dict(json.load(file))


def test_the_first_that_beats_bicubic_is_the_latest(folder: str, first: Candidate) -> None:
    made = promote(folder, first.path, by_hand(first.scored(31.0, 3.5)))
    assert made.promoted and not made.note, made
    for model in (f"registry:{folder}", f"{folder}/latest.json"):
        assert resolve(model) == made.checkpoint
        net, card = load_registered(model)
        assert weights_digest(net) == first.digest and card == first.card
        settings = RunSettings(source="x", output="y", model=model)
        assert load_model(settings).digest == first.digest
    with fsspec.open(made.evaluation, "rb") as file:
        assert file.read().decode() == by_hand(first.scored(31.0, 3.5)).to_json()


@pytest.mark.parametrize(
    ("psnr", "sam", "reason"),
    [
        (30.0, 3.5, "PSNR is not better than bicubic's"),
        (31.0, 4.0, "SAM is not better than bicubic's"),
        (29.0, 3.0, "PSNR is not better"),
        (None, 3.5, "not defined"),
    ],
)
def test_bicubic_must_be_beaten_in_both(
    tmp_path: Path, first: Candidate, psnr: float | None, sam: float, reason: str
) -> None:
    made = promote(str(tmp_path / "r"), first.path, by_hand(first.scored(psnr, sam)))
    assert not made.promoted and reason in made.reason
    assert Path(made.checkpoint).is_file() and Path(made.evaluation).is_file()
    assert not (tmp_path / "r" / "latest.json").exists()


@pytest.mark.parametrize(
    ("psnr", "sam", "promoted", "reason"),
    [
        (31.5, 3.4, True, "no worse"),
        (31.0, 3.5, True, "no worse"),  # equal
        (30.9, 3.0, False, "PSNR is worse than first's"),
        (33.0, 3.6, False, "SAM is worse than first's"),
    ],
)
def test_the_latest_must_not_be_better(
    tmp_path: Path, first: Candidate, second: Candidate,
    psnr: float, sam: float, promoted: bool, reason: str,
) -> None:  # fmt: skip
    folder = str(tmp_path / "r")
    assert promote(folder, first.path, by_hand(first.scored(31.0, 3.5))).promoted
    both = by_hand(first.scored(31.0, 3.5) | second.scored(psnr, sam))
    made = promote(folder, second.path, both)
    assert made.promoted == promoted and reason in made.reason
    assert latest(folder)["card"] == ("second" if promoted else "first")
    if promoted:
        assert latest(folder)["previous"].startswith("first-")


def test_without_the_present_latest_nothing_is_decided(
    tmp_path: Path, first: Candidate, second: Candidate
) -> None:
    folder = str(tmp_path / "r")
    assert promote(folder, first.path, by_hand(first.scored(31.0, 3.5))).promoted
    made = promote(folder, second.path, by_hand(second.scored(40.0, 1.0)))
    assert not made.promoted and "does not hold the present latest, first-" in made.reason
    again = promote(folder, first.path, by_hand(first.scored(31.0, 3.5)))
    assert not again.promoted and "already" in again.reason


def test_regions_left_out_shut_the_gate(tmp_path: Path, first: Candidate) -> None:
    partial = replace(by_hand(first.scored(31.0, 3.5)), failed={"bad": "truncated: half a file"})
    made = promote(str(tmp_path / "r"), first.path, partial)
    assert not made.promoted and "bad" in made.reason


def test_an_evaluation_of_other_weights_promotes_nothing(
    tmp_path: Path, first: Candidate, second: Candidate
) -> None:
    with pytest.raises(UsageError, match="does not hold first"):
        promote(str(tmp_path / "r"), first.path, by_hand(second.scored(31.0, 3.5)))
    assert not (tmp_path / "r").exists()


def test_nothing_is_overwritten(tmp_path: Path, first: Candidate) -> None:
    folder, evaluation = str(tmp_path / "r"), by_hand(first.scored(31.0, 3.5))
    stored = Path(promote(folder, first.path, evaluation).checkpoint)
    before = stored.read_bytes()
    other = first.card.model_copy(update={"licence": "another"})
    save_checkpoint(first.path, first.net, other)
    with pytest.raises(UsageError, match="another card"):
        promote(folder, first.path, evaluation)
    assert stored.read_bytes() == before


def test_names_stay_in_the_folder(tmp_path: Path) -> None:
    candidate = Candidate(tmp_path, "plain", 3)
    hostile = candidate.card.model_copy(update={"name": "../../outside\n$HOME"})
    save_checkpoint(candidate.path, candidate.net, hostile)
    made = promote(str(tmp_path / "r"), candidate.path, by_hand(candidate.scored(31.0, 3.5)))
    assert made.promoted and Path(made.checkpoint).parent == tmp_path / "r"
    assert load_registered(f"registry:{tmp_path / 'r'}")[1] == hostile


def test_of_two_promotions_at_once_one_is_made(
    folder: str, tmp_path: Path, first: Candidate
) -> None:
    """Each is better than the first, neither evaluation knows the other: one must lose."""
    assert promote(folder, first.path, by_hand(first.scored(31.0, 3.5))).promoted
    rivals = [Candidate(tmp_path, f"rival{number}", 5 + number) for number in range(3)]

    def attempt(number: int) -> Any:
        rival = rivals[number]
        both = by_hand(first.scored(31.0, 3.5) | rival.scored(32.0 + number, 3.0))
        return promote(folder, rival.path, both)

    made = in_parallel(len(rivals), attempt)
    [winner] = [number for number, each in enumerate(made) if each.promoted]
    assert latest(folder)["card"] == f"rival{winner}"
    for number, each in enumerate(made):
        assert number == winner or "does not hold the present latest, rival" in each.reason
    assert weights_digest(load_registered(f"registry:{folder}")[0]) == rivals[winner].digest


def test_a_write_whose_answer_was_lost_counts(
    tmp_path: Path, first: Candidate, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = LocalSlot.create

    def lost(slot: LocalSlot, data: bytes) -> str | None:
        token = create(slot, data)
        return None if slot.read() and b"safetensors" in data else token

    monkeypatch.setattr(LocalSlot, "create", lost)
    made = promote(str(tmp_path / "r"), first.path, by_hand(first.scored(31.0, 3.5)))
    assert made.promoted and "better than bicubic" in made.reason


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"checkpoint": "../secret.safetensors"}',
        json.dumps({
            "checkpoint": "../up.safetensors", "weights_sha256": "0" * 64, "card": "x",
            "evaluation": "x", "promoted": "x", "previous": "",
        }).encode(),
        json.dumps({
            "checkpoint": "/etc/x.safetensors", "weights_sha256": "0" * 64, "card": "x",
            "evaluation": "x", "promoted": "x", "previous": "",
        }).encode(),
    ],
)  # fmt: skip
def test_a_damaged_pointer_is_one_line(tmp_path: Path, first: Candidate, content: bytes) -> None:
    folder = tmp_path / "r"
    folder.mkdir()
    (folder / "latest.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="promote again") as found:
        load_registered(f"registry:{folder}")
    assert "\n" not in str(found.value)
    with pytest.raises(UsageError, match="promote again"):
        promote(str(folder), first.path, by_hand(first.scored(31.0, 3.5)))
    assert (folder / "latest.json").read_bytes() == content


def test_other_weights_in_the_promoted_file_are_not_used(
    tmp_path: Path, first: Candidate, second: Candidate
) -> None:
    made = promote(str(tmp_path / "r"), first.path, by_hand(first.scored(31.0, 3.5)))
    Path(made.checkpoint).write_bytes(Path(second.path).read_bytes())
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        load_registered(f"registry:{tmp_path / 'r'}")


def test_an_empty_registry_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing is promoted yet"):
        load_model(RunSettings(source="x", output="y", model=f"registry:{tmp_path}"))
