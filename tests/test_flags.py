"""Command-line flags that are made of settings, and read back to the same."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciss import initialisations, methods
from ciss.flags import (
    add_flags,
    add_option_flag,
    from_flags,
    option_flags,
    options_from,
    read_value,
    to_flags,
)
from ciss.models import NetworkConfig
from ciss.runtime import Runtime
from ciss.training import Recipe


@dataclass(frozen=True)
class Example:
    """Something with a required field and one of each type."""

    n_epochs: int
    lr: float = 0.5
    name: str = field(default="x", metadata={"help": "a name"})


def parse_dataclass(cls: type, words: list[str]) -> object:
    parser = argparse.ArgumentParser()
    add_flags(parser, cls)
    return from_flags(parser.parse_args(words), cls)


def parse_options(words: list[str]) -> dict[str, object]:
    parser = argparse.ArgumentParser()
    add_option_flag(parser, "method")
    return options_from(parser.parse_args(words))


@given(st.integers(), st.floats(allow_nan=False), st.text().filter(lambda s: s[:1] != "-"))
def test_a_dataclass_is_read_back(n_epochs: int, lr: float, name: str) -> None:
    example = Example(n_epochs, lr, name)
    flags = [
        f"--n-epochs={n_epochs}",
        f"--lr={lr!r}",
        f"--name={name}",
    ]
    assert parse_dataclass(Example, flags) == example


def test_flags_of_the_settings_are_read_back() -> None:
    recipe = Recipe(epochs=3, lr=1e-5, batch=7, momentum=0.0, precision="bf16")
    assert parse_dataclass(Recipe, to_flags(vars(recipe))) == recipe
    network = NetworkConfig("resnet18", 8, width=5)
    assert parse_dataclass(NetworkConfig, to_flags(vars(network))) == network
    assert parse_dataclass(Runtime, []) == Runtime()


def test_a_required_field_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_dataclass(Example, ["--lr", "1"])
    assert "--n-epochs" in capsys.readouterr().err


def test_none_is_left_out_and_lists_are_words() -> None:
    flags = to_flags({"n_steps": 5, "classes": ["a cat", "dog"], "order": None, "steps": (1, 2)})
    assert flags == ["--classes", "a cat", "dog", "--n-steps", "5", "--steps", "1", "2"]
    assert to_flags({}) == []


def test_the_order_of_keys_is_no_setting() -> None:
    assert to_flags({"lr": 1, "crop": 2}) == to_flags({"crop": 2, "lr": 1})


@pytest.mark.parametrize("name", [*methods.names(), *initialisations.names()])
def test_default_options_are_read_back(name: str) -> None:
    for registry in (methods, initialisations):
        if name in registry.names():
            defaults = dict(registry.describe(name).defaults)
            assert parse_options(option_flags(defaults)) == defaults


option_values = (
    st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.from_regex(r"[a-z]+_[a-z_]+", fullmatch=True)
)


@given(st.dictionaries(st.from_regex(r"[a-z_]+", fullmatch=True), option_values))
def test_options_are_read_back_with_their_types(options: dict[str, object]) -> None:
    found = parse_options(option_flags(options))
    assert found == options
    assert [type(found[name]) for name in options] == [type(value) for value in options.values()]


def test_options_do_not_depend_on_their_order() -> None:
    assert option_flags({"b": 1, "a": 2}) == option_flags({"a": 2, "b": 1})
    assert option_flags({}) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1e-05", 1e-5),
        ("2", 2),
        ("0.5", 0.5),
        ("true", True),
        ("False", False),
        ("max_after_mean", "max_after_mean"),
        ("{", "{"),
        ("", None),
    ],
)
def test_values_given_as_text(text: str, value: object) -> None:
    assert read_value(text) == value
    assert type(read_value(text)) is type(value)


@pytest.mark.parametrize("name", ["-a", "--root", "-own'ü'$HOME", "a -b", "/-a", "-1"])
def test_a_path_is_no_option(name: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--root", type=Path)
    assert parser.parse_args(to_flags({"root": Path(name)})).root == Path(name)
