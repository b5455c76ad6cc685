"""Command-line options from the fields of specs, and the options that several commands share.

The name, type, default, choices and help of an option are those of the spec's field: the first sentence of the field's
entry in the docstring is the help. A `Group` turns the options of a command into one value.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, fields
from functools import cache
from inspect import Parameter, Signature
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from featcache.errors import FeatcacheError, InvalidParameter, UsageError
from featcache.specs import check_weights

Spec = TypeVar("Spec")
_FIELDS_OF = {  # options whose fields have other names
    "drop_class": ("drop_classes",), "folds": ("n_splits",), "from_cache": ("store",), "head": ("kind",),
    "merge": ("merge_classes",), "repeats": ("n_repeats",), "tap": ("taps",), "text": ("texts",),
    "timeout": ("timeout_s",),
}  # fmt: skip
_RUNNING: ContextVar["OptionCommand | None"] = ContextVar("running", default=None)


def existing_weights(weights: str | None) -> str | None:
    """The value of `--weights`; a file that does not exist is refused before torch is loaded."""
    check_weights(weights)
    return weights


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; the rest goes to stderr.")]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda or cuda:N.", rich_help_panel="Machine")]
StoreFile = Annotated[Path, typer.Argument(help="Path of a store, STORE.h5.")]
AllowOutside = Annotated[bool, typer.Option(help="Allow links and CSV paths that lead out of the folder.")]
Timeout = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        max=86_400,
        show_default="60",
        help="Longest time to decode one image, in seconds.",
        rich_help_panel="Machine",
    ),
]
RunWeights = Annotated[
    str | None,
    typer.Option(callback=existing_weights, help="Weights file of the backbone, if the store was made with one."),
]


@dataclass(frozen=True)
class Option:
    """An option of a command that sets a field of a spec.

    Attributes:
        field: name of the field.
        parameter: the option, as a parameter of the command.
        read: converts the text of the option into the value of the field.
    """

    field: str
    parameter: Parameter
    read: Callable[[Any], Any]


class Group:
    """Options of which one value is built.

    Args:
        build: called with the fields whose options were given; an InvalidParameter that it raises names the options.
        options: the options, in the order of the help.
    """

    def __init__(self, build: Callable[..., Any], *options: Option) -> None:
        self._build = build
        self._options = options

    @property
    def parameters(self) -> list[Parameter]:
        """The options as parameters of a command."""
        return [option.parameter for option in self._options]

    def value(self, arguments: dict[str, Any]) -> Any:
        """The value for the arguments of a command.

        Raises:
            UsageError: the value of an option is refused.
        """
        pairs = [(option, arguments[option.parameter.name]) for option in self._options]
        values = {
            option.field: option.read(text)
            for option, text in pairs
            if text not in (None, []) and text != option.parameter.default
        }
        names = {option.field: option.parameter.name for option in self._options}
        return spec_of(self._build, values, **names)


def takes(**groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command: a parameter named as a group receives its value, and the command has the group's options."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters

        def run(**arguments: Any) -> None:
            values = {name: group.value(arguments) for name, group in groups.items()}
            command(**values, **{name: arguments[name] for name in own if name not in groups})

        parameters = [
            parameter.replace(kind=Parameter.KEYWORD_ONLY)
            for name in own
            for parameter in (groups[name].parameters if name in groups else [own[name]])
        ]
        run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # typer reads the options from it
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def option(
    spec: type,
    field: str,
    name: str | None = None,
    *,
    panel: str | None = None,
    text: str | None = None,
    default: str | None = None,
    several: bool = False,
    read: Callable[[Any], Any] | None = None,
    flag: str | None = None,
    of: type | None = None,
    required: bool = False,
) -> Option:
    """The option of a spec's field.

    Args:
        spec: the dataclass.
        field: its field.
        name: name of the option's parameter; None for that of the field.
        panel: panel of the help.
        text: the help, where the sentence of the docstring does not fit.
        default: the default that the help shows, where it is not that of the spec.
        several: the option may be repeated, and each value is read by itself.
        read: converts the text of the option; None reads it by the type of the field.
        flag: how the option is spelled, where that does not follow from its name.
        of: type of the option's value, where it is not that of the field.
        required: the option must be given.
    """
    name = name or field
    kind, convert, is_list = _value_type(get_type_hints(spec)[field], name)
    kind, convert = of or kind, read or convert
    if several and not is_list:
        convert_one = convert
        convert = lambda values: [convert_one(value) for value in values]  # noqa: E731
    value: Any = kind
    annotation = list[value] | None if several or is_list else bool if kind is bool else value | None
    info = typer.Option(
        flag or f"--{name.replace('_', '-')}",
        help=text or _help(spec, field),
        show_default=default or _default(spec, field),
        rich_help_panel=panel,
    )
    if required:
        return Option(field, _parameter(name, Annotated[value, info], Parameter.empty), convert)
    initial = False if annotation is bool else None
    return Option(field, _parameter(name, Annotated[annotation, info], initial), convert)


def own_option(name: str, annotation: Any, default: Any = None, field: str | None = None) -> Option:
    """An option of a group that no spec has."""
    return Option(field or name, _parameter(name, annotation, default), lambda value: value)


def _parameter(name: str, annotation: Any, default: Any) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _value_type(hint: Any, name: str) -> tuple[type, Callable[[Any], Any], bool]:
    """(type of the option's value, how it becomes that of the field, whether the option may be repeated)."""
    if isinstance(hint, UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is not tuple:
        return hint, lambda value: value, False
    item = get_args(hint)[0]
    if item in (int, float):
        return str, lambda text: numbers(name, text, item), False
    return item, tuple, True


def numbers(name: str, text: str, kind: type) -> tuple[Any, ...]:
    """Numbers that are separated by commas or spaces: `512,256`, or `0.485, 0.456, 0.406`."""
    try:
        return tuple(kind(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        example, expected = ("512,256", "whole numbers") if kind is int else ("0.5,0.5,0.5", "numbers")
        raise InvalidParameter(f"`{name}`={text!r}: {expected} are expected, as in {example}.") from error


@cache
def _sentences(spec: type) -> dict[str, str]:
    """By field, the first sentence of its entry in the docstring."""
    section = (inspect.getdoc(spec) or "").partition("Attributes:\n")[2]
    entries = re.split(r"^    (?=\w+: )", section, flags=re.MULTILINE)
    pairs = (" ".join(entry.split()).partition(": ") for entry in entries if entry.strip())
    return {name: re.split(r"(?<=\.) (?=[A-Z\"])", text)[0] for name, _, text in pairs}


def _help(spec: type, field: str) -> str:
    sentence = _sentences(spec)[field]
    choices = getattr(spec, "choices", {}).get(field)
    return f"{sentence.removesuffix('.')}: {_either(choices)}." if choices else sentence


def _either(choices: Sequence[str]) -> str:
    return f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else choices[0]


def _default(spec: type, field: str) -> str | bool:
    """The default of a field as the help shows it; of a head, that of each kind that has another one."""
    if hasattr(spec, "defaults"):
        by_kind = {kind: _plain(value) for kind, value in spec.defaults(field).items()}
        first = next(iter(by_kind.values()))
        if first == "False":
            return False
        return ", ".join([first, *(f"{kind} {value}" for kind, value in by_kind.items() if value != first)])
    default = next(item.default for item in fields(spec) if item.name == field)
    return False if default is None or default is MISSING or default is False or default == () else _plain(default)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def spec_of(kind: Callable[..., Spec], fields: dict[str, Any], /, **parameter_of: str) -> Spec:
    """A spec of the options that were given; the defaults are its own.

    Args:
        kind: makes it.
        fields: its fields; None stands for an option that was not given.
        parameter_of: the parameter of the command that sets a field of another name.

    Raises:
        UsageError: a value that the spec refuses.
    """
    try:
        return kind(**{name: value for name, value in fields.items() if value is not None})
    except InvalidParameter as error:
        message = str(error)
        for name, parameter in parameter_of.items():
            message = message.replace(f"`{name}`", f"`{parameter}`")
        raise UsageError(message) from error


class OptionCommand(TyperCommand):
    """A command whose errors show the parameters that a message names in backticks as options of this command."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        with self._showing_options():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        with self._showing_options():
            return super().invoke(ctx)

    @contextmanager
    def _showing_options(self) -> Iterator[None]:
        token = _RUNNING.set(self)
        try:
            yield
        except FeatcacheError as error:
            error.args = (with_options(str(error)), *error.args[1:])
            raise
        finally:
            _RUNNING.reset(token)


def with_options(message: str) -> str:
    """A message of the library as the running command shows it: "`lr` must be > 0" becomes "--lr must be > 0", and
    "`lr`=2" becomes "--lr 2"."""
    command = _RUNNING.get()
    for parameter in command.params if command else ():
        option = max(parameter.opts, key=len)
        for name in (parameter.name, *_FIELDS_OF.get(parameter.name or "", ())):
            message = message.replace(f"`{name}`=", f"{option} ").replace(f"`{name}`", option)
    return message
