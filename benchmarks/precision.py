"""What bfloat16 costs in quality, with trained weights, on scenes with a truth.

    python -m benchmarks.precision DATA/cave/test [--model starter]

Every scene is degraded as MATLAB's imresize does, super-resolved by the published form and by the
engine in both precisions (attention as published), and compared with the truth and with float32.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import print_table
from benchmarks.train_shipped import load
from model import inference, load_checkpoint
from model.degradation import downsample, upsample
from model.metrics import assess


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--model", default="starter")
    given = parser.parse_args()
    net, _ = load_checkpoint(given.model)
    scale = net.config.scale
    engines = {name: inference.compile(net, precision=name) for name in ("fp32", "bf16")}
    rows = []
    for name, truth in load(given.scenes).items():
        low = downsample(torch.from_numpy(truth), scale)[None]
        published = net(low, upsample(low, scale))
        results = {"published": published} | {kind: engine(low) for kind, engine in engines.items()}
        figures = {kind: assess(truth, y[0].numpy(), scale) for kind, y in results.items()}
        difference = (results["bf16"] - results["fp32"]).abs().flatten()
        rows.append(
            [
                name,
                f"{figures['published']['psnr']:.4f}",
                f"{figures['fp32']['psnr'] - figures['published']['psnr']:+.1e}",
                f"{figures['bf16']['psnr'] - figures['fp32']['psnr']:+.1e}",
                f"{figures['bf16']['sam'] - figures['fp32']['sam']:+.1e}",
                float((results["fp32"] - published).abs().max()),
                float(difference.max()),
                float(np.quantile(difference.numpy(), 0.999)),
                float(difference.square().mean().sqrt()),
            ]
        )
    header = [
        "scene",
        "published PSNR dB",
        "fp32 - published dB",
        "bf16 - fp32 dB",
        "bf16 - fp32 SAM degrees",
        "fp32 - published, max",
        "bf16 - fp32, max",
        "99.9 %",
        "RMS",
    ]
    print_table(f"{given.model}: {net.config}", header, rows)


if __name__ == "__main__":
    main()
