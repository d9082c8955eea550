"""What a flow run writes to its worker's terminal must not end it."""

from __future__ import annotations

import logging

from rich.console import Console


def outlive_worker() -> None:
    """Go on without lines on the terminal when the worker that shows them is killed.

    Rich, with which Prefect writes them, ends the program at the first line that nobody reads.
    Lines for Prefect's server are sent all the same.
    """
    for logger in list(logging.root.manager.loggerDict.values()):
        for handler in getattr(logger, "handlers", []):
            console = getattr(handler, "console", None)
            if isinstance(console, Console):
                _silence_when_alone(console)


def _silence_when_alone(console: Console) -> None:
    def silence() -> None:
        console.quiet = True

    console.on_broken_pipe = silence  # type: ignore[method-assign]
