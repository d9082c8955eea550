"""How good the weights are on areas that do not train; says when to stop, proves nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model import SSPSR, inference
from model.degradation import upsample
from model.pairs import make_pair
from pipeline.errors import SceneError
from pipeline.finetune.blocks import Block, BlockReader, Content
from pipeline.finetune.job import Pixels

_MOST_BLOCKS = 16
_MOST_WINDOWS = 8  # of the spectrum, of one block


@dataclass(frozen=True)
class _Sample:
    low: Tensor
    high: Tensor
    counts: Tensor


class Validator:
    """Holds a few blocks of the validation areas, degraded once.

    Args:
        blocks: of all validation areas.
        reader: reads them.
        pixels: how pairs are made.
        scale: of the network.

    Raises:
        SceneError: none of the blocks can be read.
    """

    def __init__(
        self, blocks: Sequence[Block], reader: BlockReader, pixels: Pixels, scale: int
    ) -> None:
        order = np.random.default_rng(pixels.seed).permutation(len(blocks))[:_MOST_BLOCKS]
        contents = [reader.read(blocks[place]) for place in order]
        self._samples = [
            sample
            for content in contents
            if content is not None and content.share()
            for sample in _samples(content, pixels, scale)
        ]
        if not self._samples:
            why = next(iter(reader.failures.values()), "its areas are nodata")
            raise SceneError("no-valid-pixels", f"nothing to validate on: {why}")
        self.bicubic = _mean(_psnr(upsample(each.low, scale), each) for each in self._samples)

    def psnr(self, net: SSPSR, device: torch.device) -> float:
        """Mean over bands and blocks, dB for a peak of 1, with attention pooled per block."""
        engine = inference.compile(net, precision="fp32")
        return _mean(_psnr(engine(each.low.to(device)).cpu(), each) for each in self._samples)


def _samples(content: Content, pixels: Pixels, scale: int) -> list[_Sample]:
    rows, columns = (size // scale * scale for size in content.valid.shape[1:])
    spread = np.linspace(0, len(content.bands) - 1, min(_MOST_WINDOWS, len(content.bands)))
    made = []
    for place in sorted(set(spread.round().astype(int).tolist())):
        bands = list(content.bands[place])
        high, valid = (
            torch.from_numpy(part[bands, :rows, :columns])[None]
            for part in (content.values, content.valid)
        )
        low, counts = make_pair(high, valid, pixels.degradation, scale, pixels.mtf)
        used = torch.from_numpy(content.used[bands])[None, :, None, None]
        assert counts is not None
        made.append(_Sample(low, high, counts & used))
    return made


def _psnr(estimate: Tensor, sample: _Sample) -> list[float]:
    """Of each band that has pixels to count."""
    error = ((estimate - sample.high) ** 2).masked_fill(~sample.counts, 0.0).sum((0, 2, 3))
    number = sample.counts.sum((0, 2, 3))
    error = error[number > 0] / number[number > 0]
    return [float(value) for value in -10 * torch.log10(error.clamp(min=1e-12))]


def _mean(values: object) -> float:
    flat = [value for each in values for value in each]  # type: ignore[attr-defined]
    return float(np.mean(flat)) if flat else 0.0
