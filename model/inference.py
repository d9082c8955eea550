"""SSPSR rewritten to run fast, and exactly tileable.

What the published network computes, in fewer and larger steps: every chain of convolutions with
nothing but a pixel shuffle between them is one convolution (`model.fusion`); residual scale and
attention are part of the weights behind them; groups of bands go through their shared branch as
one batch, in chunks that fit the cache or the memory; activations are channels-last; convolutions
inside a tile are not padded but consume its halo, while the scene's border is padded as published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from model.attention import AttentionStatistics, ChannelAttention, check_samples
from model.convolution import Convolution, Padding, SplitConvolution, halves
from model.extent import Axis, Extent
from model.fusion import Chain, Kernel, Places, Stage
from model.memory import branch_bytes, tile_bytes
from model.receptive_field import halo
from model.sspsr import SSPSR, Branch, SpatialSpectralBlock
from model.upsampling import Upsampling

Precision = Literal["auto", "fp32", "bf16"]

_CPU_CHUNK = 16 << 20  # bytes of activations of one chunk of groups: about what caches hold
_STRIP = 4 << 20  # bytes of output at once on a CPU, for the same reason
_GPU_SHARE = 0.5  # of the free memory of a GPU that one chunk of groups may take
_TRUNK = -1  # in place of a group
_COARSE = 0.5  # norm of the skip path's detail from which bfloat16 inputs need a second half

Gate = Callable[[int, Tensor], Convolution]  # block, its input -> the convolution with attention


class _Block:
    """One spatial-spectral block with the residual scale in its weights."""

    def __init__(self, block: SpatialSpectralBlock, dtype: torch.dtype) -> None:
        spatial_in, _, spatial_out = block.spa.body
        spectral_in, _, spectral_out, attention = deepcopy(block.spc.body)
        self.spatial_in = _convolution(spatial_in, 1.0, dtype)
        self.spatial_out = _convolution(spatial_out, block.spa.residual_scale, dtype)
        self.spectral_in = _convolution(spectral_in, 1.0, dtype)
        self._spectral_out = cast(nn.Conv2d, spectral_out)
        self._attention = cast(ChannelAttention, attention)
        self._scale, self._dtype = block.spc.residual_scale, dtype

    def gated(self, means: Tensor) -> Convolution:
        """The last 1x1 convolution with the attention that these means `[features]` give it."""
        gate = self._scale * self._attention.conv_du(means.view(1, -1, 1, 1)).flatten()
        return _convolution(self._spectral_out, gate.view(-1, 1, 1, 1), self._dtype)

    def means(self, x: Tensor) -> Tensor:
        """What the attention pools if the last convolution runs on x: its output's means."""
        pooled = x.mean(dim=(0, 2, 3), dtype=torch.float32)
        output = self._spectral_out
        return output.weight.flatten(1) @ pooled + _bias(output)


def _convolution(layer: nn.Module, factor: Tensor | float, dtype: torch.dtype) -> Convolution:
    layer = cast(nn.Conv2d, layer)
    bias = _bias(layer) * (factor.flatten() if isinstance(factor, Tensor) else factor)
    return Convolution(layer.weight * factor, bias, dtype)


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias


class _Body:
    """Head and blocks of a branch or of the trunk."""

    def __init__(
        self, branch: Branch, dtype: torch.dtype, head: Convolution | SplitConvolution
    ) -> None:
        self.head = head
        self.blocks = [
            _Block(cast(SpatialSpectralBlock, block), dtype) for block in branch.body.net
        ]

    def __call__(self, x: Tensor, padding: Padding, gates: Sequence[Gate]) -> Tensor:
        """Features of x, channels-last; every gate serves an equal share of the batch, in order."""
        start = y = self.head(x, padding)
        for index, block in enumerate(self.blocks):
            residual = block.spatial_in(y, padding, relu=True)
            if index == 0 or 0 in padding:  # the head's output is needed once more
                y = _crop(y, padding, 2).clone(memory_format=torch.channels_last)
            block.spatial_out.add_to(y, residual, padding)
            residual = block.spectral_in(y, relu=True)
            shares = (tensor.chunk(len(gates)) for tensor in (y, residual))
            for gate, total, part in zip(gates, *shares, strict=True):
                gate(index, part).add_to(total, part)
        return y.add_(_crop(start, padding, 2 * len(self.blocks)))


def _crop(x: Tensor, padding: Padding, pixels: int) -> Tensor:
    """What convolutions that consume so many pixels leave of x, along the axes not padded."""
    rows, columns = (slice(None) if pad else slice(pixels, -pixels) for pad in padding)
    return x[:, :, rows, columns]


class _Skip:
    """The skip of the bicubic image: skip_conv and final as one 5x5 convolution.

    In bfloat16 the image itself would be rounded to 8 bits. So the convolution is split: what it
    does to a constant runs in float32, one 1x1 convolution; the rest, which vanishes on a
    constant, runs in bfloat16, on the image's upper 8 bits and, where its weights are large, on
    the next 8.
    """

    def __init__(self, net: SSPSR, device: torch.device, dtype: torch.dtype) -> None:
        self._mix: Convolution | None = None
        self._halves, self._dtype = 1, dtype
        kernels = Chain([Stage.of(net.skip_conv), Stage.of(net.final)]).kernels()
        if dtype != torch.float32:
            kernels = self._split(kernels, device)
        self._detail = Upsampling(kernels, device, dtype)

    def _split(
        self, kernels: Iterable[tuple[Places, Kernel]], device: torch.device
    ) -> Iterator[tuple[Places, Kernel]]:
        """Take the constant's part out of the map; repeat the rest for every half of the image."""
        for places, kernel in kernels:
            weight, bias = kernel.weight, kernel.bias
            if places == ("middle", "middle"):
                mix = weight.sum((-2, -1), keepdim=True)
                weight = weight.clone()
                weight[..., 2:3, 2:3] -= mix
                norm = weight.square().sum((3, 4, 5)).mean().sqrt()  # of the map to one band
                self._halves = 2 if float(norm) > _COARSE else 1
                # The constant's part also takes what rounding the rest would add to it.
                mix -= weight.to(self._dtype).double().sum((-2, -1), keepdim=True)
                mixing = mix[0, 0].float().to(device)
                self._mix = Convolution(mixing, bias.flatten().float().to(device), torch.float32)
                bias = torch.zeros_like(bias)
            weight = torch.cat([weight] * self._halves, dim=3)
            yield places, replace(kernel, weight=weight, bias=bias)

    def __call__(self, bicubic: Tensor, rows: Axis, columns: Axis) -> Tensor:
        """`[N, rows, columns, bands]` of the core, from the bicubic image around it."""
        reaches = rows.skip_tail(), columns.skip_tail()
        if self._mix is None:
            return self._detail(bicubic, *reaches)
        inside = tuple(slice(r.low - r.origin, r.high - r.origin) for r in reaches)
        y = self._mix(bicubic).permute(0, 2, 3, 1)[:, *inside]
        if self._halves == 2:
            detail = torch.cat(halves(bicubic, self._dtype), dim=1)
        else:
            detail = bicubic.to(self._dtype)
        self._detail.add_to(y, detail, *reaches)
        return y


class _Network:
    """The weights of a network, fused and laid out for one device and precision."""

    def __init__(self, net: SSPSR, dtype: torch.dtype) -> None:
        self.config, self.dtype = net.config, dtype
        self.device = next(net.parameters()).device
        config = self.config
        groups = range(1 if config.shared_branch else len(config.group_starts))
        branches = [net.branch_of(group) for group in groups]
        self._bodies = [
            _Body(branch, dtype, SplitConvolution(branch.head.weight, _bias(branch.head), dtype))
            for branch in branches
        ]
        self._tails = [
            self._tail([*_stages(branch), Stage.of(cast(nn.Conv2d, branch.tail))])
            for branch in branches
        ]
        self.trunk = _Body(net.trunk, dtype, _convolution(net.trunk.head, 1.0, dtype))
        # The final convolution serves trunk and skip; its bias counts once.
        self.trunk_tail = self._tail([*_stages(net.trunk), Stage.of(net.final, biased=False)])
        self.skip = _Skip(net, self.device, dtype)
        count = torch.zeros(config.bands)
        for start in config.group_starts:
            count[start : start + config.group_size] += 1
        self.share = (1 / count).to(self.device)

    def _tail(self, stages: list[Stage]) -> Upsampling:
        return Upsampling(Chain(stages).kernels(), self.device, self.dtype)

    def body(self, group: int) -> _Body:
        return self._bodies[group if len(self._bodies) > 1 else 0]

    def tail(self, group: int) -> Upsampling:
        return self._tails[group if len(self._tails) > 1 else 0]


def _stages(branch: Branch) -> list[Stage]:
    return [Stage.of(layer, 2) for layer in branch.upsample if isinstance(layer, nn.Conv2d)]


class Engine:
    """`engine(x)` super-resolves x as a whole scene, `engine.tile` a part of one.

    With frozen statistics the two agree: a tile with its halo gives what the whole scene gives
    there. Not safe for several threads at once.

    Attributes:
        config: the network's config.
        device: where it runs.
        halo: LR pixels that a tile needs around its core wherever the scene goes on.
        precision: `fp32` or `bf16`, the one in use.
        statistics: frozen attention; None pools over each input, as published.
    """

    def __init__(self, network: _Network, statistics: AttentionStatistics | None) -> None:
        self._network = network
        self.config, self.device = network.config, network.device
        self.halo = halo(network.config)
        self.precision: Precision = "fp32" if network.dtype == torch.float32 else "bf16"
        self.statistics = statistics
        self._most_groups = len(self.config.group_starts)
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
        axes = tuple(
            Axis.of(extent, size, self.config)
            for extent, size in zip((rows, columns), x.shape[2:], strict=True)
        )
        whole = all(axis.starts and axis.ends and axis.core == (0, axis.size) for axis in axes)
        if self._gates is None and not whole:
            raise ValueError("a part of a scene needs the scene's frozen attention statistics")
        window = x[:, :, axes[0].window, axes[1].window]
        with _exact_float32(self._network.device):
            parts = [self._fitting(sample, *axes) for sample in torch.split(window, 1)]
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
        with _exact_float32(self._network.device):
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
            if self._most_groups > 1:
                self._most_groups //= 2
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
        """Branches, merged groups and the trunk's body, at the resolution between them."""
        network, config = self._network, self.config
        high, wide = (axis.between[1] - axis.between[0] for axis in (rows, columns))
        merged = x.new_zeros(len(x), high, wide, config.bands)
        padding = (rows.padding, columns.padding)
        for groups in self._chunks(x):
            bands = [
                slice(start, start + config.group_size)
                for start in (config.group_starts[group] for group in groups)
            ]
            parts = torch.cat([x[:, part] for part in bands])
            features = network.body(groups[0])(parts, padding, [gate_of(group) for group in groups])
            reaches = rows.branch_tail(), columns.branch_tail()
            for part, share in zip(bands, torch.split(features, len(x)), strict=True):
                network.tail(groups[0]).add_to(merged[..., part], share, *reaches)
        merged *= network.share
        trunk_padding = (rows.trunk_padding, columns.trunk_padding)
        return network.trunk(
            merged.permute(0, 3, 1, 2).to(network.dtype), trunk_padding, [gate_of(_TRUNK)]
        )

    def _output(self, x: Tensor, features: Tensor, rows: Axis, columns: Axis) -> Tensor:
        """The skip of the bicubic image, plus the trunk's fine pixels."""
        config = self.config
        wide = columns.core[1] - columns.core[0]
        row_bytes = 4 * len(x) * config.bands * wide * config.scale**2
        step = max(1, _STRIP // row_bytes) if x.device.type == "cpu" else rows.core[1]
        strips = []
        for start in range(*rows.core, step):
            strip = replace(rows, core=(start, min(start + step, rows.core[1])))
            y = self._network.skip(_bicubic(x, strip, columns), strip, columns)
            self._network.trunk_tail.add_to(y, features, strip.trunk_tail(), columns.trunk_tail())
            strips.append(y)
        return torch.cat(strips, dim=1).permute(0, 3, 1, 2)

    def _chunks(self, x: Tensor) -> Iterator[range]:
        """Groups that run at once."""
        groups = len(self.config.group_starts)
        if not self.config.shared_branch:
            yield from (range(group, group + 1) for group in range(groups))
            return
        each = branch_bytes(self.config, x[:, 0].numel(), self._network.dtype.itemsize)
        count = max(1, min(self._most_groups, _chunk_budget(x.device) // each))
        yield from (range(start, min(start + count, groups)) for start in range(0, groups, count))

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


def _bicubic(x: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """The bicubic image around the core, `[N, bands, rows, columns]` float32, channels-last."""
    (top, bottom), (left, right) = rows.cubic_input(), columns.cubic_input()
    lines = x[:, :, top:bottom, left:right].permute(0, 2, 3, 1).contiguous()
    down, across = (axis.enlargement().to(x.device) for axis in (rows, columns))
    samples, height, width, bands = lines.shape
    lines = (down @ lines.view(samples, height, -1)).view(samples, -1, width, bands)
    return (across @ lines).permute(0, 3, 1, 2)


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


@contextmanager
def _exact_float32(device: torch.device) -> Iterator[None]:
    """No TF32: what is called float32 has 24 bits on a GPU too."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def _resolve(precision: Precision, device: torch.device) -> torch.dtype:
    """`auto`: bfloat16 where the device has matrix units for it, else float32."""
    if precision == "auto":
        matrix_units = (
            torch.cuda.get_device_capability(device) >= (8, 0)
            if device.type == "cuda"
            else device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)
        )
        precision = "bf16" if matrix_units else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


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
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be auto, fp32 or bf16, not {precision!r}")
    dtype = _resolve(precision, next(net.parameters()).device)
    return Engine(_Network(net.eval(), dtype), statistics)
