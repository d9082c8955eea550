"""What all commands print with, and the exit statuses they share."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

_LOG_WIDTH = 200  # columns of a table where no terminal says how wide it is

QUARANTINED = 3  # also: faults found
USAGE = 2
INTERRUPTED = 130

Output = Annotated[str, typer.Argument(help="Folder or bucket prefix of the results.")]


def _console(*, stderr: bool) -> Console:
    terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return Console(stderr=stderr, width=None if terminal else _LOG_WIDTH)


out = _console(stderr=False)
err = _console(stderr=True)


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=1) + "\n")


def print_table(rows: list[dict[str, Any]], title: str) -> None:
    """One row per entry, columns as in the first."""
    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ["nothing"]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row.values()))
    out.print(table, markup=False)
