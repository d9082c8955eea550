"""A command's options on the command line: made from its settings, so that neither lacks one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer

from pipeline.config_file import read_config
from pipeline.console import err
from pipeline.settings import RunSettings, Settings, plain_types

_ARGUMENTS = ("source", "output")
S = TypeVar("S", bound=Settings)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def settings_options(
    settings: type[S], *left_out: str
) -> Callable[[Callable[[S, bool], None]], Callable[..., None]]:
    """Give a command its arguments, an option for every other setting, and --json.

    The command is called with the settings; what is not given on the command line comes from the
    environment, then from the operator's file, then from the defaults.

    Args:
        settings: the class of its options.
        left_out: settings that are of no use to the command.
    """

    def decorate(command: Callable[[S, bool], None]) -> Callable[..., None]:
        def called(as_json: bool, **given: Any) -> None:
            known = {settings.option_name(name): name for name in settings.model_fields}
            file = read_config(command.__name__, known)
            if file.options:
                names = ", ".join(settings.option_name(name) for name in file.options)
                err.print(f"{file.path}: {names}", markup=False, highlight=False, soft_wrap=True)
            command(settings.from_options(given, file.options), as_json)

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
    choices = settings.choices(name)
    listed = f"{', '.join(choices[:-1])} or {choices[-1]}. " if choices else ""
    return f"{listed}{settings.model_fields[name].description or ''}"


def _parameter(settings: type[Settings], name: str) -> inspect.Parameter:
    described = describe_option(name, settings)
    if name in _ARGUMENTS:
        # Not required by the parser: it may come from the environment or the file.
        argument = typer.Argument(help=described, metavar=name.upper(), show_default=False)
        return _keyword(name, Annotated[str | None, argument], None)
    annotation, choices = settings.model_fields[name].annotation, settings.choices(name)
    option = typer.Option(
        f"--{settings.option_name(name)}",
        help=described,
        autocompletion=_completion(choices) if choices else None,
    )
    if get_origin(annotation) is list:
        return _keyword(name, Annotated[list[str] | None, option], None)
    [plain] = {_bare(kind) for kind in plain_types(annotation)}
    return _keyword(name, Annotated[plain | None, option], None)


def _bare(kind: Any) -> Any:
    """What the parser needs of a type, and shows in --help; bounds are the settings' own."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    return str if get_origin(kind) is Literal else kind


def _completion(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    """What a shell offers behind the option."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return complete


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, annotation=annotation, default=default)
