"""Defaults of an operator's own, in a TOML file with one table per command.

    [run]
    model = "registry:s3://bucket/models"
    workers = 4

    [finetune]
    budget = "2h"

`plan` takes those of `run`, and its own table. What the environment or the command line says counts
more. The file is `sr-archive.toml` in the working directory, or what `SR_ARCHIVE_CONFIG` names.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UsageError, closest

NAME = "sr-archive.toml"
VARIABLE = "SR_ARCHIVE_CONFIG"
LARGEST = 1 << 20  # bytes

COMMANDS = {"run": ("run",), "plan": ("run", "plan"), "finetune": ("finetune",)}


@dataclass(frozen=True)
class ConfigFile:
    """What the file says for one command.

    Attributes:
        path: of the file; None: there is none.
        options: by the setting's name in Python.
    """

    path: Path | None = None
    options: dict[str, Any] = field(default_factory=dict)


def read_config(command: str, known: Mapping[str, str]) -> ConfigFile:
    """The options of a command.

    Args:
        command: one of `COMMANDS`.
        known: the names of its settings, by the names of its options.

    Raises:
        UsageError: one line: the file cannot be read, is no TOML, or has a table or an option that
            there is not.
    """
    path = _path()
    if path is None:
        return ConfigFile()
    tables = _tables(path)
    options: dict[str, Any] = {}
    for name in COMMANDS[command]:
        table = tables.get(name, {})
        if not isinstance(table, dict):
            raise UsageError(f"{path}: {name} is not a table: write [{name}] above its options")
        for key, value in table.items():
            option = key.replace("_", "-")
            if option not in known:
                raise UsageError(f"{path}: [{name}] has no option {key}{closest(option, known)}")
            options[known[option]] = value
    return ConfigFile(path, options)


def _path() -> Path | None:
    if named := os.environ.get(VARIABLE):
        return Path(named).expanduser()
    return Path(NAME) if Path(NAME).is_file() else None


def _tables(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as opened:
            text = opened.read(LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); see {VARIABLE}") from None
    if len(text) > LARGEST:
        raise UsageError(f"{path}: more than {LARGEST} bytes is no configuration file")
    try:
        tables = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not TOML: {error}") from None
    for name in tables:
        if name not in COMMANDS:
            raise UsageError(f"{path}: no command takes [{name}]{closest(name, COMMANDS)}")
    return tables
