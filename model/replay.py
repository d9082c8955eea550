"""Work on a GPU recorded once as a CUDA graph and replayed: small kernels without their launches.

A training step of a small network is a thousand kernels of a few microseconds each; launching them
one by one takes longer than computing them. (CUDA C++ Programming Guide, "CUDA Graphs"; PyTorch,
"CUDA semantics", "Whole-network capture".)
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_WARM_UP = 3  # runs before recording, in which libraries choose kernels and take their memory
_MOST = 2  # shapes that are recorded, since every recording keeps its memory

Inputs = tuple[Tensor | None, ...]
Work = Callable[..., Tensor]

_log = logging.getLogger(__name__)


def replayed(work: Work, device: torch.device) -> Work:
    """The same work, replayed where the device can do that; what it cannot replay runs as it is.

    Args:
        work: of tensors on the device (or None) to one tensor; it waits for no result, and what
            else it reads or changes are tensors that stay where they are.
        device: where.

    Returns:
        A function that does the work; on CUDA its result is overwritten by the next call.
    """
    return _Replayed(work) if device.type == "cuda" else work


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
        return self.output


class _Replayed:
    def __init__(self, work: Work) -> None:
        self._work = work
        self._seen: Counter[object] = Counter()
        self._recordings: dict[object, _Recording] = {}
        self._refused = False

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        shapes = tuple(None if x is None else (x.shape, x.stride(), x.dtype) for x in inputs)
        if shapes not in self._recordings and not self._record(shapes, inputs):
            return self._aside(inputs)
        return self._recordings[shapes](inputs)

    def _record(self, shapes: object, inputs: Inputs) -> bool:
        """Whether there is a recording now."""
        self._seen[shapes] += 1
        late = self._seen[shapes] > _WARM_UP and len(self._recordings) < _MOST
        if self._refused or not late:
            return False
        own = tuple(None if x is None else x.clone() for x in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on using the GPU meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = self._work(*own)
        except RuntimeError as error:
            self._refused = True
            _log.warning("no CUDA graph, going on without: %s", str(error).splitlines()[0])
            return False
        self._recordings[shapes] = _Recording(graph, own, output)
        return True

    def _aside(self, inputs: Inputs) -> Tensor:
        """Outside of the default stream, as what is recorded later must have run before."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            output = self._work(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        return output
