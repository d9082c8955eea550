"""SSPSR rewritten to run fast, and exactly tileable.

What the published network computes, in fewer and larger steps: every chain of convolutions with
nothing but a pixel shuffle between them is one convolution (`model.fusion`); residual scale and
attention are part of the weights behind them; groups of bands go through their shared branch as
one batch, in chunks that fit the cache or the memory; activations are channels-last; convolutions
inside a tile are not padded but consume its halo, while the scene's border is padded as published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from model.attention import AttentionStatistics, check_samples
from model.convolution import Convolution
from model.extent import Axis, Extent
from model.fused import FusedNetwork, Gate
from model.memory import branch_bytes, tile_bytes
from model.precision import Precision, exact_float32, resolve
from model.receptive_field import halo
from model.recording import Pool, Recorder
from model.sspsr import SSPSR

_CPU_CHUNK = 16 << 20  # bytes of activations of one chunk of groups: about what caches hold
_STRIP = 4 << 20  # bytes of output at once on a CPU, for the same reason
_GPU_SHARE = 0.5  # of the free memory of a GPU that one chunk of groups may take
_TRUNK = -1  # in place of a group
_POOL = Pool()  # of all engines of a process: one tile after the other


class Engine:
    """`engine(x)` super-resolves x as a whole scene, `engine.tile` a part of one.

    With frozen statistics the two agree: a tile with its halo gives what the whole scene gives
    there. On a CPU several threads may use one engine at once.

    Attributes:
        config: the network's config.
        device: where it runs.
        halo: LR pixels that a tile needs around its core wherever the scene goes on.
        precision: `fp32` or `bf16`, the one in use.
        statistics: frozen attention; None pools over each input, as published.
    """

    def __init__(self, network: FusedNetwork, statistics: AttentionStatistics | None) -> None:
        self._network = network
        self.config, self.device = network.config, network.device
        self.halo = halo(network.config)
        self.precision: Precision = "fp32" if network.dtype == torch.float32 else "bf16"
        self.statistics = statistics
        self._most_groups = len(self.config.group_starts)
        self._recorder = Recorder(self.device, _POOL)
        self._gates: list[list[Convolution]] | None = None
        if statistics is not None:
            self._gates = self._freeze(statistics)

    def with_statistics(self, statistics: AttentionStatistics | None) -> Engine:
        """The same weights with another scene's attention."""
        return Engine(self._network, statistics)

    @torch.inference_mode()
    def _freeze(self, statistics: AttentionStatistics) -> list[list[Convolution]]:
        """The last convolutions of all blocks, by group; those of the trunk come last."""
        config, network = self.config, self._network
        expected = (len(config.group_starts), config.blocks, config.features)
        if statistics.branches.shape != expected or statistics.trunk.shape != expected[1:]:
            raise ValueError(
                f"the statistics are {tuple(statistics.branches.shape)} and "
                f"{tuple(statistics.trunk.shape)}, this network's are {expected} and {expected[1:]}"
            )
        bodies = [network.body(group) for group in range(expected[0])]
        means = [*statistics.branches, statistics.trunk]
        return [
            [
                block.gated(mean.to(network.device))
                for block, mean in zip(body.blocks, m, strict=True)
            ]
            for body, m in zip([*bodies, network.trunk], means, strict=True)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """Super-resolve whole scenes.

        Args:
            x: `[N, bands, H, W]` float32 in [0, 1], finite, on the network's device.

        Returns:
            `[N, bands, scale*H, scale*W]` float32, not clipped, channels-last.

        Raises:
            ValueError: another number of bands.
            MemoryError: not enough memory even for the smallest part.
        """
        self._check(x)
        rows, columns = (Extent(0, size, True, True) for size in x.shape[2:])
        return self.tile(x, rows, columns)

    @torch.inference_mode()
    def tile(self, x: Tensor, rows: Extent, columns: Extent) -> Tensor:
        """Super-resolve a part of scenes.

        Args:
            x: `[N, bands, H, W]` float32 in [0, 1], finite, on the network's device: the core and
                at least `halo` LR pixels around it, except where the scene ends.
            rows, columns: where in x the core lies, and which of its sides are the scene's border.

        Returns:
            `[N, bands, scale*h, scale*w]` float32 of the core, not clipped, channels-last.

        Raises:
            ValueError: another number of bands, too small a halo, or a part of a scene without
                frozen statistics.
            MemoryError: not enough memory even for the smallest part.
        """
        self._check(x)
        high, wide = x.shape[2:]
        axes = (
            Axis.of(rows, high, self.config),
            Axis.of(columns, wide, self.config, padded_below=self._network.padded_below),
        )
        whole = all(axis.starts and axis.ends and axis.core == (0, axis.size) for axis in axes)
        if self._gates is None and not whole:
            raise ValueError("a part of a scene needs the scene's frozen attention statistics")
        window = x[:, :, axes[0].window, axes[1].window]
        fitting = partial(self._fitting, rows=axes[0], columns=axes[1])
        with self._exact_float32():
            parts = [self._recorder(fitting, x, kind=axes) for x in torch.split(window, 1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @torch.inference_mode()
    def measure(self, samples: Tensor) -> AttentionStatistics:
        """`model.attention.calibrate` on the fast form: the means over all samples, one pass.

        Memory: the activations of one group, and then of the trunk, over all samples.

        Args:
            samples: `[S, bands, h, w]` float32 in [0, 1], finite, on the network's device.

        Raises:
            ValueError: no samples, another number of bands, or values that are not finite.
        """
        check_samples(samples, self.config)
        rows, columns = (
            Axis.of(Extent(0, size, True, True), size, self.config) for size in samples.shape[2:]
        )
        seen: dict[int, list[Tensor]] = {}
        with self._exact_float32():
            self._features(samples, rows, columns, lambda group: self._observing(group, seen))
        groups = range(len(self.config.group_starts))
        branches = torch.stack([torch.stack(seen[group]) for group in groups])
        return AttentionStatistics(branches.cpu(), torch.stack(seen[_TRUNK]).cpu())

    def memory(self, rows: int, columns: int) -> int:
        """Bytes, beside the weights, that a core of so many LR pixels takes at most."""
        return tile_bytes(self.config, rows, columns, self._network.dtype.itemsize)

    def _check(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.config.bands or x.dtype != torch.float32:
            raise ValueError(
                f"the network takes [N, {self.config.bands}, H, W] float32, "
                f"not {list(x.shape)} {str(x.dtype).removeprefix('torch.')}"
            )

    def _exact_float32(self) -> AbstractContextManager[None]:
        network = self._network
        return exact_float32(network.device, cudnn=network.dtype != torch.float32)

    def _fitting(self, x: Tensor, rows: Axis, columns: Axis) -> Tensor:
        """One sample; if memory runs out, with fewer groups at once, then in smaller parts."""
        while True:
            try:
                features = self._features(x, rows, columns, self._gate)
                return self._output(x, features, rows, columns)
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                cause = str(error).splitlines()[0]
            # Outside of the handler, so that the failed attempt's tensors are gone.
            at_once = self._groups_at_once(x)
            if at_once > 1:
                self._most_groups = at_once // 2
                continue
            longer = max((rows, columns), key=lambda axis: axis.core[1] - axis.core[0])
            if self._gates is None or longer.core[1] - longer.core[0] == 1:
                needed = self.memory(*(axis.core[1] - axis.core[0] for axis in (rows, columns)))
                raise MemoryError(
                    f"the network needs about {needed / 2**30:.1f} GiB for this tile; give it "
                    f"smaller tiles or more memory ({cause})"
                )
            return self._in_halves(x, rows, columns, split_rows=longer is rows)

    def _in_halves(self, x: Tensor, rows: Axis, columns: Axis, *, split_rows: bool) -> Tensor:
        parts = []
        for axis in (rows if split_rows else columns).halves():
            window = x[:, :, axis.window] if split_rows else x[..., axis.window]
            parts.append(self._fitting(window, *((axis, columns) if split_rows else (rows, axis))))
        return torch.cat(parts, dim=2 if split_rows else 3)

    def _features(
        self, x: Tensor, rows: Axis, columns: Axis, gate_of: Callable[[int], Gate]
    ) -> Tensor:
        """Branches and the trunk's body, at the resolution between them."""
        network, config = self._network, self.config
        high, wide = (axis.between[1] - axis.between[0] for axis in (rows, columns))
        size = len(x), high, wide, len(config.group_starts), config.group_size
        between = torch.empty(size, dtype=network.dtype, device=x.device)
        padding = (rows.padding, columns.padding)
        reaches = rows.branch_tail(), columns.branch_tail()
        for groups in self._chunks(x):
            starts = [config.group_starts[group] for group in groups]
            parts = torch.cat([x[:, start : start + config.group_size] for start in starts])
            features = network.body(groups[0])(parts, padding, [gate_of(group) for group in groups])
            share = between[:, :, :, groups.start : groups.stop].permute(3, 0, 1, 2, 4)
            network.tail(groups[0]).fill(share, features, *reaches)
        trunk_padding = (rows.trunk_padding, columns.trunk_padding)
        bands = between.flatten(3).permute(0, 3, 1, 2)
        return network.trunk(bands, trunk_padding, [gate_of(_TRUNK)])

    def _output(self, x: Tensor, features: Tensor, rows: Axis, columns: Axis) -> Tensor:
        """The skip of the bicubic image, plus the trunk's fine pixels."""
        config = self.config
        high, wide = (config.scale * (axis.core[1] - axis.core[0]) for axis in (rows, columns))
        y = x.new_empty(1, high, wide, config.bands)
        fill = self._network.skip.over(x, columns)
        row_bytes = y[:, 0].nbytes * config.scale
        step = max(1, _STRIP // row_bytes) if x.device.type == "cpu" else rows.core[1]
        for start in range(*rows.core, step):
            strip = replace(rows, core=(start, min(start + step, rows.core[1])))
            first = config.scale * (start - rows.core[0])
            target = y[:, first : first + config.scale * step]
            fill(target, strip)
            self._network.trunk_tail.add_to(
                target, features, strip.trunk_tail(), columns.trunk_tail()
            )
        return y.permute(0, 3, 1, 2)

    def _chunks(self, x: Tensor) -> Iterator[range]:
        """Groups that run at once."""
        groups, count = len(self.config.group_starts), self._groups_at_once(x)
        return (range(start, min(start + count, groups)) for start in range(0, groups, count))

    def _groups_at_once(self, x: Tensor) -> int:
        if not self.config.shared_branch:
            return 1
        each = branch_bytes(self.config, x[:, 0].numel(), self._network.dtype.itemsize)
        return max(1, min(self._most_groups, _chunk_budget(x.device) // each))

    def _gate(self, group: int) -> Gate:
        if self._gates is not None:
            frozen = self._gates[group]
            return lambda block, x: frozen[block]
        return self._observing(group, {})

    def _observing(self, group: int, seen: dict[int, list[Tensor]]) -> Gate:
        """Attention from what passes now, kept in `seen`."""
        body = self._network.trunk if group == _TRUNK else self._network.body(group)
        kept = seen.setdefault(group, [])

        def gate(block: int, x: Tensor) -> Convolution:
            kept.append(body.blocks[block].means(x))
            return body.blocks[block].gated(kept[-1])

        return gate


def _chunk_budget(device: torch.device) -> int:
    if device.type != "cuda":
        return _CPU_CHUNK
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(_GPU_SHARE * (free + cached))


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Of a GPU, of torch's allocator on a CPU, or of oneDNN, whose words are vague."""
    signs = ("can't allocate memory", "could not create a primitive", "could not create a memory")
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in signs)


@torch.inference_mode()
def compile(
    net: SSPSR, statistics: AttentionStatistics | None = None, precision: Precision = "auto"
) -> Engine:
    """Prepare a network for inference.

    Args:
        net: the network; its device is the engine's. Later changes of its weights do not count.
        statistics: frozen attention of the scene; None pools over each input, as published.
        precision: `fp32`; `bf16` (the skip of the bicubic image stays precise); `auto` is bf16
            where the device has matrix units for it (AMX, tensor cores), else fp32.

    Raises:
        ValueError: an unknown precision.
    """
    dtype = resolve(precision, next(net.parameters()).device)
    return Engine(FusedNetwork(net.eval(), dtype), statistics)
