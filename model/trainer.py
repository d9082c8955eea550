"""One training step after the other: loss, gradients, optimiser, schedule, averaged weights.

Knows tensors only. Who trains brings the patches and says how far the training has come; files,
clocks and several processes are theirs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from model.augmentation import shifted_groups
from model.degradation import upsample
from model.losses import hybrid_loss
from model.precision import Precision, exact_float32, resolve
from model.recording import Recorder
from model.sspsr import SSPSR
from model.training_form import TrainingForm

Schedule = Literal["cosine", "published"]

_MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's, by the names torch gives them


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        learning_rate: peak of the schedule, as published; from scratch 6e-4 gets further in a short
            training, but spoils weights that were carried over (docs/transfer.md).
        schedule: `cosine` warms up over 2 % and falls to 1 % of the peak; `published` divides by 10
            after three quarters (30 of 40 epochs).
        spatial: weight of the spatial total variation in the loss, as published.
        spectral: weight of the spectral total variation, as published.
        angle: weight of the mean spectral angle in radians; 0, as published, leaves it out.
        ema: decay of the averaged weights.
        clip: largest norm of the gradient; 0: no limit.
        shift_groups: groups of bands overlap at random, anew at every step, so that a shared branch
            meets every band at every place of its group.
        precision: of the forward and backward pass; weights, loss and optimiser are float32.
        seed: of the groups that are drawn, and of what the caller draws around the steps: initial
            weights, patches, their augmentation.

    Raises:
        ValueError: a value out of range.
    """

    learning_rate: float = 1e-4
    schedule: Schedule = "cosine"
    spatial: float = 1e-3
    spectral: float = 1e-3
    angle: float = 0.0
    ema: float = 0.999
    clip: float = 0.5
    shift_groups: bool = False
    precision: Precision = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(f"the learning rate must be positive, not {self.learning_rate}")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be cosine or published, not {self.schedule!r}")
        for name in ("spatial", "spectral", "angle", "clip"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must not be negative, and finite")
        if not 0.0 <= self.ema < 1.0:
            raise ValueError(f"ema must lie in [0, 1), not {self.ema}")

    def rate(self, elapsed: float) -> float:
        """The learning rate at a position of the schedule in [0, 1]."""
        elapsed = min(1.0, max(0.0, elapsed))
        if self.schedule == "published":
            return self.learning_rate * (1.0 if elapsed < 0.75 else 0.1)
        warm = min(1.0, (elapsed + 1e-3) / 0.02)
        return self.learning_rate * warm * (0.01 + 0.495 * (1 + math.cos(math.pi * elapsed)))


class Trainer:
    """A network in training.

    Args:
        net: the network to start from; it is moved to the device and trained in place.
        options: how.
        device: where to train.
        parallel: wraps the module that computes the loss's gradients, for instance with
            `DistributedDataParallel`; its parameters are those of `net`.

    Attributes:
        net: the weights being trained.
        average: their running average, in evaluation mode: what is saved and evaluated.
        steps: steps made, skipped ones too.
        skipped: steps without a finite loss and gradient, which changed nothing.
    """

    def __init__(
        self,
        net: SSPSR,
        options: TrainingOptions = TrainingOptions(),
        device: str | torch.device = "cpu",
        parallel: Callable[[nn.Module], nn.Module] = lambda module: module,
    ) -> None:
        self.options, self.device = options, torch.device(device)
        self.net: SSPSR = net.to(self.device).train()
        self.average: SSPSR = copy.deepcopy(self.net).eval().requires_grad_(False)
        self.steps = self.skipped = 0
        self._dtype = resolve(options.precision, self.device)
        form = TrainingForm(self.net)
        self._form = parallel(form)
        self._rate, self._weight = (torch.zeros((), device=self.device) for _ in range(2))
        self._adam = torch.optim.Adam(
            self.net.parameters(), self._rate, fused=True, capturable=self.device.type == "cuda"
        )
        self._starts = torch.tensor(self.net.config.group_starts, device=self.device)
        self._recorder = Recorder(self.device) if self._form is form else None

    def step(self, low: Tensor, high: Tensor, valid: Tensor | None, elapsed: float) -> float:
        """One step of the optimiser.

        A loss or gradient that is not finite changes no weights: the step counts as skipped, on
        all processes alike if `parallel` averages gradients.

        Args:
            low: `[N, bands, h, w]` float32 in [0, 1], finite.
            high: `[N, bands, scale*h, scale*w]` float32; anything, NaN too, where not valid.
            valid: bool, `[N, 1 or bands, scale*h, scale*w]`: where the loss counts; None:
                everywhere.
            elapsed: position in the schedule, in [0, 1].

        Returns:
            The loss; NaN or infinity if the step was skipped for it.
        """
        self._rate.fill_(self.options.rate(elapsed))
        # Early on the average forgets faster, so that the start does not linger.
        updates = self.steps - self.skipped + 1
        self._weight.fill_(1.0 - min(self.options.ema, updates / (updates + 10)))
        if self.options.shift_groups and self.net.config.shared_branch:
            random = np.random.default_rng((self.options.seed, self.steps))
            self._starts.copy_(torch.tensor(shifted_groups(self.net.config, random)))
        low, high = low.to(self.device), high.to(self.device)
        valid = None if valid is None else valid.to(self.device)
        bicubic = upsample(low, self.net.config.scale)
        inputs = low, bicubic, high, valid
        recorder = self._recorder
        outcome = recorder(self._step, *inputs) if recorder else self._step(*inputs)
        loss, failed = outcome.tolist()
        self.steps += 1
        self.skipped += int(failed)
        return float(loss)

    def _step(self, low: Tensor, bicubic: Tensor, high: Tensor, valid: Tensor | None) -> Tensor:
        """All of a step that happens on the device: nothing here waits for a result.

        Returns:
            The loss, and 1 if the step was skipped, else 0.
        """
        self._adam.zero_grad(set_to_none=True)
        with exact_float32(self.device):
            loss = self._loss(low, bicubic, high, valid)
            # A loss that is not finite makes all gradients so, on every process that shares them.
            loss.backward(1.0 + 0.0 * loss.detach())  # type: ignore[no-untyped-call]
        limit = self.options.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.net.parameters(), limit, foreach=True)
        failed = norm.isfinite().logical_not().float()
        # How torch's GradScaler tells the optimiser to leave everything as it is.
        self._adam.found_inf = failed  # type: ignore[attr-defined]
        self._adam.step()
        self._follow(self._weight * (1.0 - failed))
        return torch.stack([loss.detach(), failed])

    def _loss(self, low: Tensor, bicubic: Tensor, high: Tensor, valid: Tensor | None) -> Tensor:
        options = self.options
        mixed = self._dtype != torch.float32
        with torch.autocast(self.device.type, self._dtype, enabled=mixed):
            estimate = self._form(low, bicubic, self._starts)
        return hybrid_loss(
            estimate.float(), high, options.spatial, options.spectral, options.angle, valid
        )

    @torch.no_grad()
    def _follow(self, weight: Tensor) -> None:
        """Move the average towards the weights."""
        average: list[Tensor] = list(self.average.parameters())
        weights: list[Tensor] = list(self.net.parameters())
        apart = list(torch._foreach_sub(weights, average))
        torch._foreach_mul_(apart, weight)
        torch._foreach_add_(average, apart)

    def state_dict(self) -> dict[str, Any]:
        """All that a continued training needs: flat, tensors and whole numbers only.

        Keys: `net.*`, `average.*`, `exp_avg.*`, `exp_avg_sq.*` by the names of the network's
        parameters, `steps`, `skipped`. The tensors are copies.
        """
        state: dict[str, Any] = {"steps": self.steps, "skipped": self.skipped}
        for part, tensors in self._tensors().items():
            state |= {f"{part}.{name}": value.detach().clone() for name, value in tensors.items()}
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of the same network.

        Raises:
            ValueError: it is of another network, or incomplete; nothing has changed then.
        """
        targets = {
            f"{part}.{name}": value
            for part, tensors in self._tensors().items()
            for name, value in tensors.items()
        }
        wrong = targets.keys() ^ (state.keys() - {"steps", "skipped"})
        wrong |= {"steps", "skipped"} - state.keys()
        wrong |= {
            name
            for name, value in targets.items()
            if name in state and state[name].shape != value.shape
        }
        if wrong:
            raise ValueError(f"the training state does not fit this network: {min(wrong)}")
        for name, value in targets.items():
            value.copy_(state[name])
        self.steps, self.skipped = int(state["steps"]), int(state["skipped"])
        for moments in self._adam.state.values():
            moments["step"].fill_(float(self.steps - self.skipped))

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """Weights, their average and Adam's moments, by parameter."""
        named = dict(self.net.named_parameters())
        for parameter in named.values():
            if not self._adam.state[parameter]:
                self._adam.state[parameter] = {
                    "step": torch.zeros((), device=self.device),
                    **{moment: torch.zeros_like(parameter) for moment in _MOMENTS},
                }
        moments = {
            moment: {name: self._adam.state[parameter][moment] for name, parameter in named.items()}
            for moment in _MOMENTS
        }
        return {"net": named, "average": dict(self.average.named_parameters()), **moments}
