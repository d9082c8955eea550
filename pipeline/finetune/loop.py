"""What one process does in a training: steps, validations, checkpoints; resumes where it was.

Rank 0 measures time, validates and decides; before every step the others are told. So all make the
same steps, whatever their clocks say.
"""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed
from ray.train.torch import get_device, prepare_model
from torch import Tensor

from model.checkpoint import unpack
from model.pairs import make_pair
from model.trainer import Trainer
from pipeline import events
from pipeline.finetune.blocks import BlockReader, block_bytes, cut_blocks
from pipeline.finetune.job import Job
from pipeline.finetune.patches import PatchStream, Seat, Shape
from pipeline.finetune.state import Course, Validation, load_state, save_state
from pipeline.finetune.validation import Validator

_BETTER = 1e-3  # dB by which a PSNR must exceed the best one to count as better
_TELL_SECONDS = 1.0
_SMOOTH = 0.95
# Parts of the way from the start to the averaged weights at which validation tries the network: on
# few pixels the whole way is too far, and on the way lie weights better than either end (Wortsman
# et al. 2022, arXiv 2109.01903).
_SHARES = (1.0, 0.5, 0.25)
# The schedule warms up over the first hundredths of a training, which may be a single slow step;
# Adam's first steps at full rate would undo what the parent has learnt.
_WARM, _WARM_STEPS = 0.02, 20


def train(config: Mapping[str, Any]) -> None:
    """The function that Ray Train runs in every process.

    Args:
        config: `job`, a `Job`, and `board`, the actor that hears of events.
    """
    context = ray.train.get_context()
    seat = Seat(context.get_world_rank(), context.get_world_size())
    training = Training(config["job"], seat, config["board"])
    try:
        training.run()
    finally:
        training.close()


class Training:
    """One process's part of a training."""

    def __init__(self, job: Job, seat: Seat, board: Any) -> None:
        torch.set_num_threads(job.threads)
        self._job, self._seat, self._board = job, seat, board
        net, self._card = unpack(job.model, "the model to start from")
        self._scale = net.config.scale
        self._device = get_device()
        self._trainer = Trainer(net, job.options, self._device, _wrap)
        self._start = _copied(self._trainer.average)
        self._trial = copy.deepcopy(self._trainer.average)
        self._reader = BlockReader(self._card, job.pixels)
        self._stream = self._patches()
        self._best: dict[str, Tensor] = {}
        self._course = Course()
        self._loss = 0.0
        self._resume()
        self._validator = self._make_validator() if seat.rank == 0 else None
        self._since = time.monotonic() - self._course.seconds
        self._reported = self._trainer.steps, time.monotonic()
        self._told = -_TELL_SECONDS
        self._failed: set[str] = set()

    def _patches(self) -> PatchStream:
        job, pixels = self._job, self._job.pixels
        side = self._scale * pixels.patch
        most = pixels.cache_bytes // (2 * block_bytes(pixels.scene_bands, side))
        return PatchStream(
            cut_blocks(job.train, side),
            self._reader,
            Shape(side, pixels.batch),
            pixels.seed,
            self._seat,
            job.augmentation,
            most,
        )

    def _make_validator(self) -> Validator:
        pixels = self._job.pixels
        blocks = cut_blocks(self._job.validation, self._scale * pixels.patch)
        # A reader of its own: the training's keeps the blocks that it will need again.
        return Validator(blocks, BlockReader(self._card, pixels), pixels, self._scale)

    def _resume(self) -> None:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return
        with checkpoint.as_directory() as folder:
            state, self._best, self._course = load_state(Path(folder))
        self._trainer.load_state_dict(state)
        self._loss = self._course.validations[-1].loss

    def run(self) -> None:
        """Train until the end is reached; the last report holds the final state."""
        if self._validator is not None:
            self._course.bicubic = self._validator.bicubic
        self._tell_start()
        if not self._course.validations:
            self._report()
        while True:
            progress, report = self._agree()
            if progress >= 1.0:
                break
            self._step(progress)
            if report:
                self._report()
        if self._trainer.steps > self._reported[0]:
            self._report()

    def close(self) -> None:
        self._stream.close()

    def _agree(self) -> tuple[float, bool]:
        """The progress that rank 0 sees, and whether a report follows the next step."""
        progress, due = 1.0, False
        if self._seat.rank == 0:
            self._course.seconds = time.monotonic() - self._since
            progress = self._job.ending.progress(self._course.seconds, self._trainer.steps)
            progress, due = 1.0 if self._course.over else progress, self._is_time()
        progress, told = self._from_first(progress, float(due))
        return progress, told > 0

    def _from_first(self, *numbers: float) -> tuple[float, ...]:
        if self._seat.world == 1:
            return numbers
        told = torch.tensor(numbers, dtype=torch.float64, device=self._device)
        torch.distributed.broadcast(told, 0)
        return tuple(told.tolist())

    def _is_time(self) -> bool:
        steps, moment = self._reported
        if self._job.report_steps is not None:
            return self._trainer.steps + 1 - steps >= self._job.report_steps
        return time.monotonic() - moment >= self._job.report_seconds

    def _step(self, progress: float) -> None:
        batch, pixels = self._stream.batch(self._trainer.steps), self._job.pixels
        high, valid, used = (
            part.to(self._device) for part in (batch.high, batch.valid, batch.used)
        )
        low, counts = make_pair(high, valid, pixels.degradation, self._scale, pixels.mtf)
        assert counts is not None
        loss = self._trainer.step(low, high, counts & used, self._elapsed(progress))
        if math.isfinite(loss):
            first = self._loss == 0.0
            self._loss = loss if first else _SMOOTH * self._loss + (1 - _SMOOTH) * loss
        self._tell_progress(progress)

    def _elapsed(self, progress: float) -> float:
        """The position in the schedule, in the warm-up for a number of steps at least."""
        steps = self._trainer.steps
        return min(progress, _WARM * steps / _WARM_STEPS) if steps < _WARM_STEPS else progress

    def _report(self) -> None:
        """Validate, and make a checkpoint that Ray Train keeps once all processes came here."""
        metrics: dict[str, Any] = {"step": self._trainer.steps}
        self._tell_failures()
        if self._validator is None:
            ray.train.report(metrics)
        else:
            self._validate(self._validator)
            with tempfile.TemporaryDirectory() as folder:
                self._course.seconds = time.monotonic() - self._since
                save_state(Path(folder), self._trainer.state_dict(), self._best, self._course)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
                ray.train.report(metrics, checkpoint=checkpoint)
        self._reported = self._trainer.steps, time.monotonic()

    def _validate(self, validator: Validator) -> None:
        course, steps = self._course, self._trainer.steps
        shares = _SHARES if steps else _SHARES[:1]  # before the first step all are the start
        psnr, share = max((self._tried(validator, share), share) for share in shares)
        if course.best is None or psnr > course.best + _BETTER:
            course.best, course.since = psnr, 0
            self._move(share)
            self._best = {name: value.cpu() for name, value in _copied(self._trial).items()}
        else:
            course.since += 1
            course.over = course.since >= self._job.ending.patience
        seconds = time.monotonic() - self._since
        course.validations.append(Validation(steps, round(seconds, 2), self._loss, psnr, share))
        self._tell(
            events.TrainingValidated(
                steps, round(seconds, 2), self._loss, psnr, course.bicubic, course.since == 0
            )
        )

    def _tried(self, validator: Validator, share: float) -> float:
        """PSNR of the weights at a part of the way."""
        self._move(share)
        return validator.psnr(self._trial, self._device)

    def _move(self, share: float) -> None:
        """Put the trial network on a part of the way from the start to the averaged weights."""
        average = self._trainer.average.state_dict()
        self._trial.load_state_dict(
            {name: torch.lerp(self._start[name], value, share) for name, value in average.items()}
        )

    def _tell_start(self) -> None:
        ending, steps = self._job.ending, self._trainer.steps
        self._tell(events.TrainingStarted(steps, ending.steps, ending.seconds, self._seat.world))

    def _tell_progress(self, progress: float) -> None:
        if time.monotonic() - self._told >= _TELL_SECONDS:
            self._told = time.monotonic()
            steps, seconds = self._trainer.steps, self._course.seconds
            self._tell(events.TrainingProgress(steps, progress, seconds, self._loss))

    def _tell_failures(self) -> None:
        """Each process tells of its own."""
        for scene_id in [name for name in self._reader.failures if name not in self._failed]:
            self._failed.add(scene_id)
            self._put(events.TrainingSkipped(scene_id, self._reader.failures[scene_id]))

    def _tell(self, event: events.Event) -> None:
        if self._seat.rank == 0:
            self._put(event)

    def _put(self, event: events.Event) -> None:
        with suppress(Exception):  # whoever listens, the training goes on
            self._board.put.remote(event)


def _copied(net: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def _wrap(module: torch.nn.Module) -> torch.nn.Module:
    wrapped: torch.nn.Module = prepare_model(module, move_to_device=False)
    return wrapped
