"""SSPSR as it is trained: the published network's output and gradients, in fewer, larger steps."""

from __future__ import annotations

from torch import Tensor, nn

from model.sspsr import SSPSR


class TrainingForm(nn.Module):
    """`form(low, bicubic)` is `net(low, bicubic)`, and so are all gradients, to float rounding."""

    def __init__(self, net: SSPSR) -> None:
        super().__init__()
        self.net = net

    def forward(self, low: Tensor, bicubic: Tensor) -> Tensor:
        estimate: Tensor = self.net(low, bicubic)
        return estimate
