"""Evaluations made by hand."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.evaluation.result import BICUBIC, Curve, Evaluation, Figures, Method, SceneResult


def figures(psnr: float | None, sam: float) -> Figures:
    return {"cc": 0.9, "sam": sam, "rmse": 0.02, "ergas": 3.0, "psnr": psnr, "ssim": 0.8}


def by_hand(
    methods: Mapping[str, tuple[str, float | None, float]], scenes: int = 3, name: str = "scene"
) -> Evaluation:
    """Of methods by name: digest, PSNR and SAM; the figures of all scenes are the same."""
    everyone = {BICUBIC: ("", 30.0, 4.0), **methods}
    results = tuple(
        SceneResult(
            name=f"{name}{number}",
            source="somewhere",
            window=None,
            rows=8,
            columns=8,
            bands=(0, 2),
            wavelengths=(500.0, 520.0),
            peak=1.0,
            valid=1.0,
            sample="",
            figures={m: figures(psnr, sam) for m, (_, psnr, sam) in everyone.items()},
            parts=dict.fromkeys(everyone, ()),
            curves={m: Curve((psnr, psnr), (0.02, 0.02)) for m, (_, psnr, _) in everyone.items()},
            notes={},
        )
        for number in range(scenes)
    )
    listed = tuple(Method(m, m, digest) for m, (digest, _, _) in everyone.items())
    return Evaluation("wald", "bicubic x4", 4, listed, results)
