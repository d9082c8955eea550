"""Pages of the documentation that are made of the code, so that they cannot fall behind it.

Each function returns Markdown. `infra/site.py` puts them into the site.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from typer.main import get_command

import model
import pipeline
from model.checkpoint import load_checkpoint, resolve, shipped, weights_digest
from pipeline.cli import app
from pipeline.finetune.settings import FinetuneSettings
from pipeline.options import describe_option
from pipeline.settings import PlanSettings, RunSettings, Settings
from pipeline.storage import open_filesystem

PROGRAM = "sr-archive"
MADE = "*This page is made of the code when the site is built.*"


def pages() -> dict[str, str]:
    """All of them: path in the site, text."""
    made: dict[str, Callable[[], str]] = {
        "reference/commands.md": commands_page,
        "reference/settings.md": settings_page,
        "reference/pipeline.md": lambda: package_page(pipeline),
        "reference/model.md": lambda: package_page(model),
    }
    cards = {f"models/{name}.md": card_page(name) for name in shipped()}
    return {path: make() for path, make in made.items()} | cards


def table(titles: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; what would be markup in a cell is escaped, but for backticks."""
    lines = [list(titles), *([_cell(value) for value in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(value: object) -> str:
    text = " ".join(str("" if value is None else value).split())
    if text.startswith("`"):
        return text.replace("|", "\\|")
    for sign, escaped in {"&": "&amp;", "<": "&lt;", "|": "\\|", "*": "\\*", "_": "\\_"}.items():
        text = text.replace(sign, escaped)
    return text


def commands_page() -> str:
    """Every command with its arguments and options, as the program itself knows them."""
    program: Any = get_command(app)
    context = program.context_class(program, info_name=PROGRAM)
    parts = [f"# Commands\n\n{program.help}\n\n{MADE} `{PROGRAM} COMMAND --help` says the same.\n"]
    for name in program.list_commands(context):
        command = program.get_command(context, name)
        parts.append(_command(command, program.context_class(command, context, name)))
    return "\n".join(parts)


def _command(command: Any, context: Any) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    parts = [f"## {context.info_name}\n", f"```\n{usage}\n```\n", _paragraphs(command.help or "")]
    for kind in ("argument", "option"):
        records = [
            each.get_help_record(context)
            for each in command.get_params(context)
            if each.param_type_name == kind
        ]
        if records:
            rows = ((f"`{shown}`", described) for shown, described in records)
            parts.append(table((kind, ""), rows))
    return "\n".join(parts)


def _paragraphs(text: str) -> str:
    """Help text as Markdown; examples as code."""
    parts = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        head, found, example = paragraph.partition("Example: ")
        parts.append(f"```\n{' '.join(example.split())}\n```" if found and not head else paragraph)
    return "\n\n".join(parts) + "\n"


def settings_page() -> str:
    """Every setting with its option, its variable in the environment and its default."""
    of_plan = set(PlanSettings.model_fields) - set(RunSettings.model_fields)
    parts = [
        f"# All settings\n\n{MADE} How options, environment and file go together: "
        "[settings](../settings.md).\n",
        "## run and plan\n",
        _settings_table(RunSettings, RunSettings.model_fields),
        "## plan alone\n",
        _settings_table(PlanSettings, of_plan),
        "## finetune\n",
        _settings_table(FinetuneSettings, FinetuneSettings.model_fields),
    ]
    return "\n".join(parts)


def _settings_table(settings: type[Settings], names: Iterable[str]) -> str:
    prefix = str(settings.model_config["env_prefix"])
    rows = []
    for name, field in settings.model_fields.items():
        if name in names:
            option = settings.option_name(name)
            shown = f"`{option.upper()}`" if name in ("source", "output") else f"`--{option}`"
            default = field.get_default(call_default_factory=True)
            stated = "" if default is None or field.is_required() else f"`{default}`"
            described = describe_option(name, settings)
            rows.append((shown, f"`{prefix}{name.upper()}`", described, stated))
    return table(("option", "variable", "", "default"), rows)


def package_page(package: ModuleType) -> str:
    """What a package offers in `__all__`, for mkdocstrings to fill in.

    Names that lie in a module of `__all__` are shown with that module.
    """
    name = package.__name__
    offered = [getattr(package, each) for each in sorted(package.__all__, key=str.lower)]
    modules = {each.__name__ for each in offered if inspect.ismodule(each)}
    parts = [f"# Python: {name}\n\n{package.__doc__}\n"]
    parts += [
        f"::: {each.__module__}.{each.__qualname__}\n"
        for each in offered
        if not inspect.ismodule(each) and each.__module__ not in modules
    ]
    return "\n".join([*parts, *(f"::: {module}\n" for module in sorted(modules))])


def card_page(name: str) -> str:
    """The card of a shipped checkpoint, whole."""
    net, card = load_checkpoint(name)
    filesystem, path = open_filesystem(resolve(name))
    facts = {
        "weights, SHA-256": weights_digest(net),
        "file": f"{filesystem.size(path) / 1e6:.1f} MB",
        "parameters": f"{sum(each.numel() for each in net.parameters()):,}",
        "licence of the weights": card.licence,
        "bands": _centres(card.wavelengths),
        "FWHM": "not stated" if card.fwhm is None else _centres(card.fwhm),
        "normalisation": f"{card.normalisation.kind}, divisor {card.normalisation.divisor:g}",
    }
    parts = [
        f"# {card.name}\n\n{MADE} It is the card that travels with the weights; "
        "`model.load_checkpoint` returns it.\n",
        _facts(facts),
        f"## Network\n\n{_facts(card.architecture.model_dump())}",
        "## Trained on\n\n" + "".join(f"- {_cell(each)}\n" for each in card.training_data),
        f"## Training\n\n{_facts(card.training)}",
        _metrics(card.metrics),
        "## What one must know\n\n" + "".join(f"- {_cell(each)}\n" for each in card.notes),
    ]
    return "\n".join(parts)


def _facts(facts: Mapping[str, Any]) -> str:
    return table(("", ""), ((name.replace("_", " "), value) for name, value in facts.items()))


def _centres(values: list[float] | None) -> str:
    if values is None:
        return "not stated"
    return f"{len(values)}, {min(values):g} to {max(values):g} nm"


def _metrics(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """A row per evaluation; evaluations of one kind of figures share their columns."""
    names = sorted({name for figures in metrics.values() for name in figures})
    rows = (
        (where, *(_rounded(figures.get(name)) for name in names))
        for where, figures in metrics.items()
    )
    return f"## Figures\n\n{table(('evaluation', *names), rows)}" if metrics else ""


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
