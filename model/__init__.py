"""SSPSR: the network, its inference, its training and its checkpoints."""

from model import (
    attention,
    consistency,
    degradation,
    inference,
    losses,
    metrics,
    projection,
    receptive_field,
)
from model.attention import AttentionStatistics
from model.card import Card
from model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from model.config import SSPSRConfig
from model.sspsr import SSPSR

__all__ = [
    "SSPSR",
    "AttentionStatistics",
    "Card",
    "CheckpointError",
    "SSPSRConfig",
    "attention",
    "consistency",
    "degradation",
    "inference",
    "load_checkpoint",
    "losses",
    "metrics",
    "projection",
    "receptive_field",
    "save_checkpoint",
]
