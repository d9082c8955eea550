"""A command's options on the command line: made from its settings, so that neither lacks one."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer

from pipeline.settings import RunSettings, Settings

_ARGUMENTS = ("source", "output")
S = TypeVar("S", bound=Settings)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def settings_options(
    settings: type[S], *left_out: str
) -> Callable[[Callable[[S, bool], None]], Callable[..., None]]:
    """Give a command its arguments, an option for every other setting, and --json.

    The command is called with the settings; what is not given on the command line comes from the
    environment, then from the defaults.

    Args:
        settings: the class of its options.
        left_out: settings that are of no use to the command.
    """

    def decorate(command: Callable[[S, bool], None]) -> Callable[..., None]:
        def called(as_json: bool, **given: Any) -> None:
            command(settings.from_options(given), as_json)

        names = [name for name in settings.model_fields if name not in left_out]
        parameters = [_parameter(settings, name) for name in names]
        parameters.append(_keyword("as_json", AsJson, False))
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        called.__name__, called.__doc__ = command.__name__, command.__doc__
        return called

    return decorate


def describe_option(name: str, settings: type[Settings] = RunSettings) -> str:
    """The help text of a setting, choices first."""
    field = settings.model_fields[name]
    choices = _choices(field.annotation)
    listed = f"{', '.join(choices[:-1])} or {choices[-1]}. " if choices else ""
    return f"{listed}{field.description or ''}"


def _parameter(settings: type[Settings], name: str) -> inspect.Parameter:
    described = describe_option(name, settings)
    if name in _ARGUMENTS:
        kind: Any = Annotated[str, typer.Argument(help=described)]
        return _keyword(name, kind, inspect.Parameter.empty)
    annotation = settings.model_fields[name].annotation
    option = typer.Option(f"--{settings.option_name(name)}", help=described)
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
