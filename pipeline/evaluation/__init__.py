"""How good checkpoints are, measured on scenes that are degraded and super-resolved again."""

from pipeline.evaluation.evaluate import evaluate_regions
from pipeline.evaluation.interval import Difference
from pipeline.evaluation.regions import Region
from pipeline.evaluation.result import BICUBIC, METRICS, Evaluation, EvaluationError

__all__ = [
    "BICUBIC",
    "METRICS",
    "Difference",
    "Evaluation",
    "EvaluationError",
    "Region",
    "evaluate_regions",
]
