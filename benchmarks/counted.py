"""The run's pool, whose workers tell at the end what they sent and held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pipeline.job
from pipeline.actors import ActorPool
from pipeline.estimate.metered import Meter, MeteredActor, MeteredPool
from pipeline.ray_session import Share
from pipeline.settings import Precision


@contextmanager
def counted_runs() -> Iterator[list[Meter]]:
    """All runs of this process inside add what their workers took, together, to the list."""
    meters: list[Meter] = []

    class Counted(ActorPool):
        def __init__(self, model: bytes, share: Share, precision: Precision) -> None:
            super().__init__(model, share, precision, MeteredActor)

        def close(self) -> None:
            meters.append(MeteredPool(self).meter())
            super().close()

    with mock.patch.object(pipeline.job, "ActorPool", Counted):
        yield meters
