"""Which patch is trained on when: a sequence that only seed, process and step decide.

Steps come in rounds. In a round a process draws its patches from a few blocks, the next ones of a
shuffled list of all; meanwhile a thread reads the blocks of the next round. So a resumed training
sees what it would have seen, an archive of any size needs the memory of two rounds, and every block
has its turn before any has its second.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.augmentation import NONE, Augmentation, augment
from pipeline.errors import SceneError
from pipeline.finetune.blocks import LEAST_VALID, Block, BlockReader, Content

_ROUND_BLOCKS = 16
_PATCHES_PER_BLOCK = 4  # drawn on average before a block is laid aside
_BLOCK_TRIES = 32  # other blocks, in the place of one without data
_PATCH_TRIES = 8


@dataclass(frozen=True)
class Seat:
    """A process among those that train together."""

    rank: int = 0
    world: int = 1


@dataclass(frozen=True)
class Shape:
    """Of what a step gets: HR pixels along a patch's side, and patches."""

    side: int
    batch: int


@dataclass(frozen=True)
class Batch:
    """What one step trains on.

    Attributes:
        high: `[batch, bands, side, side]` float32, finite.
        valid: bool, the same shape, where there is a measured value; everywhere in bands not used.
        used: bool, `[batch, bands, 1, 1]`, False where a band is interpolated from others.
    """

    high: Tensor
    valid: Tensor
    used: Tensor


class PatchStream:
    """Batches by the number of their step; ask for them in order.

    Args:
        blocks: of all areas.
        reader: reads them.
        shape: of a batch.
        seed: of the sequence.
        seat: whose share this is.
        augmentation: how patches are varied.
        most_blocks: that a round may hold.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        reader: BlockReader,
        shape: Shape,
        seed: int,
        seat: Seat = Seat(),
        augmentation: Augmentation = NONE,
        most_blocks: int = _ROUND_BLOCKS,
    ) -> None:
        self._blocks, self._reader = blocks, reader
        self._shape, self._seed, self._seat = shape, seed, seat
        self._augmentation = augmentation
        most = max(1, min(_ROUND_BLOCKS, most_blocks))
        self._per_round = min(most, -(-len(blocks) // seat.world))
        self.round_steps = max(1, self._per_round * _PATCHES_PER_BLOCK // shape.batch)
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="patches")
        self._rounds: dict[int, Future[list[Content]]] = {}
        self._cycle, self._order = -1, np.empty(0, dtype=np.int64)

    def batch(self, step: int) -> Batch:
        """What the process trains on in a step.

        Raises:
            SceneError: no block of the round holds data.
        """
        contents = self._contents(step // self.round_steps)
        random = np.random.default_rng((self._seed, self._seat.rank, step, 1))
        patches = [self._patch(contents, random) for _ in range(self._shape.batch)]
        return Batch(*(torch.stack(part) for part in zip(*patches, strict=True)))

    def close(self) -> None:
        self._ahead.shutdown(wait=False, cancel_futures=True)

    def _contents(self, number: int) -> list[Content]:
        for wanted in (number, number + 1):
            if wanted not in self._rounds:
                self._rounds[wanted] = self._ahead.submit(self._read_round, wanted)
        for old in [each for each in self._rounds if each < number]:
            del self._rounds[old]
        contents = self._rounds[number].result()
        if not contents:
            known = next(iter(self._reader.failures.items()), None)
            why = f": {known[0]}: {known[1]}" if known else ", all blocks read are mostly nodata"
            raise SceneError("no-valid-pixels", f"nothing to train on{why}")
        return contents

    def _read_round(self, number: int) -> list[Content]:
        found = (self._slot(number, slot) for slot in range(self._per_round))
        return [content for content in found if content is not None]

    def _slot(self, number: int, slot: int) -> Content | None:
        """The block whose turn it is, or another one where that has no data."""
        turn = (number * self._seat.world + self._seat.rank) * self._per_round + slot
        random = np.random.default_rng((self._seed, turn, 2))
        place = self._in_turn(turn)
        for _ in range(_BLOCK_TRIES):
            content = self._reader.read(self._blocks[place])
            if content is not None and content.share() >= LEAST_VALID / 4:
                return content
            place = int(random.integers(len(self._blocks)))
        return None

    def _in_turn(self, turn: int) -> int:
        cycle, place = divmod(turn, len(self._blocks))
        if cycle != self._cycle:
            random = np.random.default_rng((self._seed, cycle, 3))
            self._cycle, self._order = cycle, random.permutation(len(self._blocks))
        return int(self._order[place])

    def _patch(
        self, contents: list[Content], random: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        content = contents[int(random.integers(len(contents)))]
        bands = list(content.bands[int(random.integers(len(content.bands)))])
        place = self._place(content, random)
        # Both are turned alike: what `augment` draws does not depend on its options.
        seed = int(random.integers(2**63))
        turned = Augmentation(flips=self._augmentation.flips, gain_chance=0.0)
        values, valid = (
            augment(part[:, *place][bands], np.random.default_rng(seed), how)
            for part, how in (
                (content.values, self._augmentation),
                (content.valid.astype(np.float32), turned),
            )
        )
        used = torch.from_numpy(content.used[bands])[:, None, None]
        return torch.from_numpy(values), torch.from_numpy(valid) > 0, used

    def _place(self, content: Content, random: np.random.Generator) -> tuple[slice, slice]:
        """Where in a block: the first place with enough data, or the best of a few."""
        side = self._shape.side
        best, most = (slice(side), slice(side)), -1.0
        for _ in range(_PATCH_TRIES):
            top, left = (int(random.integers(size - side + 1)) for size in content.valid.shape[1:])
            place = slice(top, top + side), slice(left, left + side)
            share = content.share(*place)
            if share > most:
                best, most = place, share
            if most >= LEAST_VALID:
                break
        return best
