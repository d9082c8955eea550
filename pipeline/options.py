"""The options of a run on the command line: made from the settings, so that neither lacks one."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from pipeline.settings import RunSettings

_ARGUMENTS = ("source", "output")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def settings_options(
    *left_out: str,
) -> Callable[[Callable[[RunSettings, bool], None]], Callable[..., None]]:
    """Give a command SOURCE, OUTPUT, an option for every other setting, and --json.

    The command is called with the settings; what is not given on the command line comes from the
    environment, then from the defaults.

    Args:
        left_out: settings that are of no use to the command.
    """

    def decorate(command: Callable[[RunSettings, bool], None]) -> Callable[..., None]:
        def called(as_json: bool, **given: Any) -> None:
            command(RunSettings.from_options(given), as_json)

        names = [name for name in RunSettings.model_fields if name not in left_out]
        parameters = [*map(_parameter, names), _keyword("as_json", AsJson, False)]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        return called

    return decorate


def describe_option(name: str) -> str:
    """The help text of a setting, choices first."""
    field = RunSettings.model_fields[name]
    choices = _choices(field.annotation)
    listed = f"{', '.join(choices[:-1])} or {choices[-1]}. " if choices else ""
    return f"{listed}{field.description or ''}"


def _parameter(name: str) -> inspect.Parameter:
    if name in _ARGUMENTS:
        kind: Any = Annotated[str, typer.Argument(help=describe_option(name))]
        return _keyword(name, kind, inspect.Parameter.empty)
    annotation = RunSettings.model_fields[name].annotation
    flags = (f"--{name.replace('_', '-')}",) if bool in _plain(annotation) else ()
    option = typer.Option(*flags, help=describe_option(name))
    if get_origin(annotation) is list:
        return _keyword(name, Annotated[list[str] | None, option], None)
    [plain] = {str if get_origin(kind) is Literal else kind for kind in _plain(annotation)}
    return _keyword(name, Annotated[plain | None, option], None)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)


def _plain(annotation: Any) -> tuple[Any, ...]:
    """The types of an annotation, without None."""
    union = get_origin(annotation) in (Union, types.UnionType)
    kinds = get_args(annotation) if union else (annotation,)
    return tuple(kind for kind in kinds if kind is not type(None))


def _choices(annotation: Any) -> tuple[str, ...]:
    for kind in _plain(annotation):
        inner = get_args(kind)[0] if get_origin(kind) is list else kind
        if get_origin(inner) is Literal:
            return tuple(str(choice) for choice in get_args(inner))
    return ()
