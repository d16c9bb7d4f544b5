"""Command-line options made from frozen dataclasses, so that a setting is named, explained and checked in one place."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import click

from rwk.cli.console import document_only, emit


@dataclass(frozen=True)
class Common:
    """What every command takes."""

    seed: int = field(default=0, metadata={"help": "Seed of everything that is drawn."})
    device: str = field(default="cpu", metadata={"help": "Where networks run: cpu, cuda, cuda:1, mps."})
    json: bool = field(
        default=False,
        metadata={"help": "Print one JSON document on stdout and nothing else there.", "switch": True},
    )

    def __post_init__(self) -> None:
        if self.device != "cpu":  # what is always there is not worth an import of torch
            from rwk.rewards.devices import check_device

            check_device(self.device)


Function = Callable[..., Any]


def options(*configs: type[Any]) -> Callable[[Function], Function]:
    """A decorator that gives a command one option for each field of the configs and of `Common`.

    The command is called with the built configs in their order, `Common` last, and returns the document that `--json`
    prints. A field of one name in several configs is one option, and the first config's help and default hold. A
    ValueError of a `__post_init__` becomes a usage error. Field metadata:

    * `help`: the help text.
    * `argument`: True for a positional argument.
    * `choices`: the values a string may take, where its type is not a `Literal`.
    * `short`: a second name such as "-r".
    * `option`: the option's name, where it is not the field's: `--reward` for `rewards`.
    * `metavar`: what stands for the value in the help.
    * `switch`: True for a flag without its `--no-` form.

    Types: str, int, float, bool, Path, Literal, any of these with None, float with Literal, and tuples of them
    (`multiple`).
    """
    everything = (*configs, Common)

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def run(**values: Any) -> None:
            built = [_build(config, values) for config in everything]
            if not built[-1].json:
                function(*built)
                return
            with document_only():
                document = function(*built)
            emit(document)

        decorated: Function = run
        for declare in reversed(list(_declared(everything).values())):
            decorated = declare(decorated)
        return decorated

    return decorate


def _build(config: type[Any], values: dict[str, Any]) -> Any:
    try:
        return config(**{item.name: values[item.name] for item in fields(config)})
    except ValueError as error:
        raise click.UsageError(str(error), click.get_current_context(silent=True)) from error


def _declared(configs: tuple[type[Any], ...]) -> dict[str, Function]:
    declared: dict[str, Function] = {}
    for config in configs:
        hints = typing.get_type_hints(config)
        for item in fields(config):
            if item.name not in declared:
                declared[item.name] = _option(item, hints[item.name])
    return declared


def _option(item: Field[Any], hint: Any) -> Function:
    """The click decorator for one field."""
    meta = item.metadata
    kind, multiple = _kind(item.name, hint, meta.get("choices"))
    default = item.default if item.default_factory is MISSING else item.default_factory()
    required = default is MISSING
    if meta.get("argument"):
        return click.argument(
            item.name,
            type=kind,
            nargs=-1 if multiple else 1,
            required=required,
            default=None if required or multiple else default,
            metavar=meta.get("metavar", item.name.upper() + ("..." if multiple else "")),
        )
    name = meta.get("option", "--" + item.name.replace("_", "-"))
    names = [item.name, name]
    settings: dict[str, Any] = {"help": meta.get("help"), "required": required, "metavar": meta.get("metavar")}
    if not required:
        settings |= {"default": default, "show_default": default not in (None, (), "", False)}
    if hint in (bool, bool | None):
        names[1] = name if meta.get("switch") else f"{name}/--no-{name[2:]}"
        settings |= {"is_flag": True}
    else:
        settings |= {"type": kind, "multiple": multiple}
    if "short" in meta:
        names.insert(1, meta["short"])
    return click.option(*names, **settings)


class NumberOr(click.ParamType[Any]):
    """A number, or one of some words."""

    name = "number"

    def __init__(self, words: tuple[str, ...]) -> None:
        self.words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in self.words:
            return value
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor {' or '.join(self.words)}.", param, ctx)


SIMPLE: dict[Any, Any] = {
    str: click.STRING,
    int: click.INT,
    float: click.FLOAT,
    bool: click.BOOL,
    Path: click.Path(path_type=Path),
}


def _kind(name: str, hint: Any, choices: Any) -> tuple[Any, bool]:
    """The click type for a type hint, and whether it may be given many times."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return _kind(name, arguments[0], choices)[0], True
    if origin in (typing.Union, types.UnionType):
        kept = [argument for argument in arguments if argument is not type(None)]
        if len(kept) == 1:
            return _kind(name, kept[0], choices)
        if kept[0] is float and typing.get_origin(kept[1]) is Literal:
            return NumberOr(typing.get_args(kept[1])), False
    if choices:
        return click.Choice(list(choices)), False
    if origin is Literal:
        return click.Choice(list(arguments)), False
    if hint in SIMPLE:
        return SIMPLE[hint], False
    raise TypeError(f"field {name} has type {hint}, which no option can hold; see the types in rwk.cli.options.")
