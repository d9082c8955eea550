"""A run that may last so long and no longer."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TimeOver(BaseException):
    """As `KeyboardInterrupt`, no error that a scene could be blamed for."""


@contextmanager
def time_limit(hours: float | None) -> Iterator[None]:
    """Interrupt what runs inside after so many hours; only in the main thread.

    Prefect's own limit raises an `Exception`, wherever the run just is: a store that is being asked
    then passes for one that has failed.

    Raises:
        TimeOver: the time is over.
    """
    if hours is None:
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise TimeOver(f"stopped after {hours:g} h; run again to go on")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 3600 * hours)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
