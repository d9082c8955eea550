"""The gate: whether a checkpoint has earned to be the one that archives are made with."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.evaluation.result import BICUBIC, Evaluation, Figure, Metric


@dataclass(frozen=True)
class Incumbent:
    """The checkpoint that is the latest now: its weights, and how to call it."""

    weights_sha256: str
    name: str


def verdict(evaluation: Evaluation, digest: str, latest: Incumbent | None) -> tuple[bool, str]:
    """Whether the gate opens, and why or why not in one line.

    It does if, as means over the regions, PSNR is higher and SAM lower than bicubic's, and PSNR not
    lower and SAM not higher than the latest's.

    Args:
        evaluation: of the candidate, and of the latest if there is one.
        digest: of the candidate's weights.
        latest: None: nothing was promoted yet.
    """
    method = evaluation.named(digest)
    if method is None:
        return False, f"the evaluation does not hold the weights {digest[:12]}"
    if evaluation.failed:
        name, why = next(iter(evaluation.failed.items()))
        return False, (
            f"{len(evaluation.failed)} region(s) could not be evaluated, first {name} ({why}): "
            "leave them out and evaluate again"
        )
    if latest is not None and latest.weights_sha256 == digest:
        return False, f"{latest.name} is the latest already"
    if (fault := _behind(evaluation, method, BICUBIC, strictly=True)) is not None:
        return False, fault
    if latest is None:
        return True, "better than bicubic, and there was no latest"
    rival = evaluation.named(latest.weights_sha256)
    if rival is None:
        return False, (
            f"the evaluation does not hold the present latest, {latest.name}: evaluate with "
            "--against it and promote again"
        )
    if (fault := _behind(evaluation, method, rival, strictly=False)) is not None:
        return False, fault
    return True, f"no worse than {latest.name} and better than bicubic"


def _behind(evaluation: Evaluation, method: str, rival: str, *, strictly: bool) -> str | None:
    """Where a method falls behind another, in words."""
    ours, theirs = evaluation.mean(method), evaluation.mean(rival)
    judged: tuple[tuple[Metric, str, bool], ...] = (("psnr", "dB", True), ("sam", "degrees", False))
    for metric, unit, higher_is_better in judged:
        mine, other = ours[metric], theirs[metric]
        gain = _gain(mine, other, higher_is_better)
        if gain is None:
            return f"{metric.upper()} is not defined on all regions"
        if gain < 0 or (strictly and gain == 0):
            word = "not better" if strictly else "worse"
            figures = f"{mine:.4f} against {other:.4f} {unit}"
            return f"{metric.upper()} is {word} than {rival}'s: {figures}"
    return None


def _gain(mine: Figure, other: Figure, higher_is_better: bool) -> float | None:
    if mine is None or other is None:
        return None
    return mine - other if higher_is_better else other - mine
