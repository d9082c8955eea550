"""In which floating type the network computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Precision = Literal["auto", "fp32", "bf16"]


def resolve(precision: Precision, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the device has matrix units for it, else float32.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be auto, fp32 or bf16, not {precision!r}")
    if precision == "auto":
        matrix_units = (
            torch.cuda.get_device_capability(device) >= (8, 0)
            if device.type == "cuda"
            else has_amx(device)
        )
        precision = "bf16" if matrix_units else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def has_amx(device: torch.device) -> bool:
    """Whether it is a processor with matrix units for bfloat16."""
    return device.type == "cpu" and bool(torch.cpu.get_capabilities().get("amx_bf16", False))


@contextmanager
def exact_float32(device: torch.device, cudnn: bool = True) -> Iterator[None]:
    """No TF32: what is called float32 has 24 bits on a GPU too.

    Args:
        device: where.
        cudnn: for forward passes in float32 alone better False: without TF32 cuDNN takes Fourier
            transforms for large kernels, measured 12 times as slow as plain matrix products.
    """
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=cudnn, allow_tf32=False):
        yield
