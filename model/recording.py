"""Work on a GPU, recorded once as a CUDA graph and played back: kernels without their launches.

A step or a tile of a small network is a thousand kernels of a few microseconds each; launching them
one by one takes longer than computing them. (CUDA C++ Programming Guide, "CUDA Graphs"; PyTorch,
"CUDA semantics", "Whole-network capture".)
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

_WARM_UP = 3  # runs before recording, in which libraries choose kernels and take their memory
_MOST = 16  # shapes that are recorded of one work, since each has to be made first

Inputs = tuple[Tensor | None, ...]
Work = Callable[..., Tensor]

_log = logging.getLogger(__name__)


@dataclass
class Pool:
    """Memory that recordings share: their intermediate results, inputs and outputs.

    Recordings of one pool never run at the same time.
    """

    lock: threading.RLock = field(default_factory=threading.RLock)
    _handle: Any = None
    _buffers: dict[object, Tensor] = field(default_factory=dict)

    def handle(self) -> Any:
        """As `torch.cuda.graph` takes it."""
        self._handle = self._handle or torch.cuda.graph_pool_handle()
        return self._handle

    def buffer(self, purpose: object, like: Tensor) -> Tensor:
        """A tensor of that shape, type and layout that stays where it is."""
        key = purpose, like.shape, like.stride(), like.dtype, like.device
        if key not in self._buffers:
            self._buffers[key] = torch.empty_like(like)
        return self._buffers[key]

    def renew(self) -> None:
        """Leave what is there to the recordings that have it; a failed one may have spoilt it."""
        self._handle, self._buffers = None, {}


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    output: Tensor

    def __call__(self, inputs: Inputs) -> Tensor:
        for mine, given in zip(self.inputs, inputs, strict=True):
            if mine is not None and given is not None:
                mine.copy_(given)
        self.graph.replay()
        return self.output.clone()


class Recorder:
    """Runs work, from a recording where the device can; what cannot be recorded runs as it is.

    Args:
        device: where.
        pool: for work that changes nothing and is recorded many times; a recording is tried out
            then, and not used if its result differs from that of the work as it is.
    """

    def __init__(self, device: torch.device, pool: Pool | None = None) -> None:
        self._records = device.type == "cuda"
        self._tried = pool is not None
        self._pool = pool or Pool()
        self._seen: Counter[object] = Counter()
        self._recordings: dict[object, _Recording] = {}

    def __call__(self, work: Work, *inputs: Tensor | None, kind: object = None) -> Tensor:
        """The work's result.

        Args:
            work: of the inputs to one tensor; it waits for no result, and what else it reads or
                changes are tensors that stay where they are as long as this recorder is used.
            inputs: tensors on the device.
            kind: tells apart work on inputs of the same shapes.
        """
        if not self._records:
            return work(*inputs)
        shapes = tuple(None if x is None else (x.shape, x.dtype) for x in inputs)
        with self._pool.lock:
            recording = self._recording((kind, shapes), work, inputs)
            return recording(inputs) if recording else _aside(work, inputs)

    def _recording(self, key: object, work: Work, inputs: Inputs) -> _Recording | None:
        if key in self._recordings:
            return self._recordings[key]
        self._seen[key] += 1
        if self._seen[key] <= _WARM_UP or len(self._recordings) == _MOST:
            return None
        try:
            recording = _record(work, inputs, self._pool)
        except (RuntimeError, MemoryError) as error:
            self._refuse(str(error).splitlines()[0])
            return None
        if self._tried and not _alike(recording(inputs), work(*inputs)):
            self._refuse("it gave another result")
            return None
        self._recordings[key] = recording
        return recording

    def _refuse(self, cause: str) -> None:
        self._records = False
        self._recordings.clear()
        self._pool.renew()
        _log.warning("no CUDA graph, going on without: %s", cause)


def _record(work: Work, inputs: Inputs, pool: Pool) -> _Recording:
    own: list[Tensor | None] = []
    for place, x in enumerate(inputs):
        own.append(None if x is None else pool.buffer(place, x.contiguous()).copy_(x))
    graph = torch.cuda.CUDAGraph()
    # Relaxed: other threads, and questions for free memory, may go on meanwhile.
    with torch.cuda.graph(graph, pool.handle(), capture_error_mode="relaxed"):
        result = work(*own)
        output = pool.buffer("output", result).copy_(result)
    return _Recording(graph, tuple(own), output)


def _aside(work: Work, inputs: Inputs) -> Tensor:
    """Outside of the default stream, as what is recorded later must have run before."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = work(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    return output


def _alike(ours: Tensor, exact: Tensor) -> bool:
    """But for the rounding of another algorithm, in bfloat16 too."""
    return torch.allclose(ours, exact, rtol=0.02, atol=0.005)
