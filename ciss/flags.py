"""Dataclasses as command-line flags, so that a field is declared once."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml

from ciss.errors import CissError

T = TypeVar("T")

#: what users call the types of options
_TYPES = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def add_flags(parser: argparse.ArgumentParser, cls: type[Any]) -> None:
    """Add ``--field`` for each field of the dataclass ``cls``; required where it has no default.

    A field's metadata may have ``help``, and of a number the ``least`` that it can be.
    """
    group = parser.add_argument_group(cls.__name__)
    types = get_type_hints(cls)
    for field in fields(cls):
        required = field.default is MISSING
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=_reader(types[field.name], field.metadata.get("least")),
            required=required,
            default=None if required else field.default,
            help=field.metadata.get("help", "") + ("" if required else " (default: %(default)s)"),
        )


def from_flags(arguments: argparse.Namespace, cls: type[T]) -> T:
    """Make a ``cls`` of the arguments that ``add_flags`` added."""
    return cls(**{field.name: getattr(arguments, field.name) for field in fields(cls)})  # type: ignore[arg-type]


def to_flags(values: Mapping[str, object]) -> list[str]:
    """Turn ``{"lr": 0.02, "classes": ["cat", "dog"]}`` into flags; ``None`` is left out.

    They are sorted: the order of keys in a configuration is no change of its settings. Paths are
    given as ``Path``: one that begins with a hyphen would be taken for a flag.
    """
    flags: list[str] = []
    for name, value in sorted(values.items()):
        if value is None:
            continue
        flags.append(f"--{name.replace('_', '-')}")
        if isinstance(value, Sequence) and not isinstance(value, str):
            flags.extend(str(item) for item in value)
        else:
            flags.append(path_argument(value) if isinstance(value, Path) else str(value))
    return flags


def path_argument(path: Path) -> str:
    """Spell a path so that no program takes it for an option: ``-a`` as ``./-a``."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _reader(kind: type[Any], least: float | None) -> Callable[[str], Any]:
    """What reads a value of one type; ``type`` of argparse's ``add_argument``."""
    if kind is bool:
        return _boolean
    return kind if least is None else at_least(least, kind)


def at_least(
    least: float, kind: type[Any] = int, most: float = sys.float_info.max
) -> Callable[[str], Any]:
    """Return what reads a finite number of ``kind`` within limits, for ``add_argument``."""
    what = "whole number" if kind is int else "finite number"
    end = "" if most == sys.float_info.max else f" and at most {most}"

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"'{text}' is not a {what} of at least {least}{end}")
        return value

    return read


#: reads a seed: what all generators take
seed = at_least(0, most=2**32 - 1)


def _boolean(text: str) -> bool:
    words = {"true": True, "false": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return words[text.lower()]


def option_flags(options: Mapping[str, object]) -> list[str]:
    """Turn options of a method or initialisation into ``--option name=value …``, sorted."""
    if not options:
        return []
    return ["--option", *[f"{name}={value}" for name, value in sorted(options.items())]]


def add_option_flag(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--option``, which takes what ``option_flags`` makes."""
    parser.add_argument(
        "--option", nargs="*", default=[], metavar="NAME=VALUE", help=f"options of the {what}"
    )


def options_from(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read the values of ``--option``; numbers and true/false as such.

    Raises ``CissError`` for one without a value.
    """
    options = {}
    for text in arguments.option:
        name, given, value = text.partition("=")
        if not given:
            raise CissError(f"--option {text}: expected NAME=VALUE")
        options[name] = read_value(value)
    return options


def check_value(key: str, value: object, default: object) -> None:
    """Raise ``CissError`` unless ``value`` of the option ``key`` is of its default's type.

    Numbers must be finite and not negative, whole ones at least 1.
    """
    numbers = (int, float)
    # A whole number where a fraction may be is fine, the reverse is not: half a bin does not exist.
    fits = type(value) is type(default) or (type(value) is int and type(default) is float)
    if default is not None and not fits:
        raise CissError(f"{key} is {value!r}; give {_TYPES[type(default)]} (default: {default!r})")
    if type(value) in numbers and not 0 <= value < float("inf"):  # type: ignore[operator]
        raise CissError(f"{key} is {value!r}; give a finite number from 0 on")
    if type(default) is int and value == 0:
        raise CissError(f"{key} is 0; give a whole number of at least 1")


def value_flags(values: Mapping[str, int | Sequence[int]]) -> list[str]:
    """Spell mask values by class for ``--values``: ``["road=1,2", "lake=3"]``."""
    lists = {name: [raw] if isinstance(raw, int) else raw for name, raw in values.items()}
    return [f"{name}={','.join(map(str, raw))}" for name, raw in sorted(lists.items())]


def values_from(spelled: Sequence[str]) -> dict[str, list[int]]:
    """Read what ``value_flags`` made; ``CissError`` where it is something else."""
    pairs = [text.rpartition("=") for text in spelled]
    try:
        return {name: [int(raw) for raw in values.split(",") if raw] for name, _, values in pairs}
    except ValueError:
        raise CissError(f"--values {' '.join(spelled)}: expected NAME=1,2 …") from None


def read_value(text: str) -> Any:
    """Read text as YAML, where it is valid; unlike there, ``1e-5`` is a number too."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        with suppress(ValueError):
            return float(value)
    return value
