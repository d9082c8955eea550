"""The one call through which the archive job runs the network."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from model.attention import AttentionStatistics, frozen
from model.degradation import upsample
from model.receptive_field import halo
from model.sspsr import SSPSR

Precision = Literal["auto", "fp32"]


class Engine:
    """`engine(x)`: x `[N, bands, H, W]` float32 in [0, 1], taken as a whole scene, super-resolved.

    Attributes:
        config: the network's config.
        halo: LR pixels a tile's core needs around it to equal the whole scene's result.
    """

    def __init__(self, net: SSPSR, statistics: AttentionStatistics | None) -> None:
        self.net = net.eval()
        self.config = net.config
        self.halo = halo(net.config)
        self.statistics = statistics

    def with_statistics(self, statistics: AttentionStatistics | None) -> Engine:
        """The same weights with another scene's attention."""
        return Engine(self.net, statistics)

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        trunk = None if self.statistics is None else self.statistics.trunk.to(x.device)
        merged = self.net.merge_groups(x, self._group)
        with frozen(self.net.trunk, trunk):
            return self.net.reconstruct(merged, upsample(x, self.config.scale))

    def _group(self, group: int, part: Tensor) -> Tensor:
        means = None if self.statistics is None else self.statistics.branches[group]
        branch = self.net.branch_of(group)
        with frozen(branch, None if means is None else means.to(part.device)):
            y: Tensor = branch(part)
            return y


def compile(
    net: SSPSR, statistics: AttentionStatistics | None = None, precision: Precision = "auto"
) -> Engine:
    """Prepare a network for inference.

    Args:
        net: the network; its device is the engine's.
        statistics: frozen attention of the scene; None pools over each input, as published.
        precision: float32 is the only one yet, and what `auto` means.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in ("auto", "fp32"):
        raise ValueError(f"precision must be auto or fp32, not {precision!r}")
    return Engine(net, statistics)
