"""The documents against the code: what can be chosen is described, with its default."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from helpers import REPOSITORY

from ciss import initialisations, methods
from ciss.config import checked
from ciss.experiments import matrix_experiments, matrix_seeds
from ciss.paths import trained_model

METHODS_PAGE = (REPOSITORY / "docs" / "methods.md").read_text(encoding="utf-8")
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def spelled(value: Any) -> str:
    """Spell a default as the documents do."""
    if isinstance(value, bool | str):
        return str(value).lower()
    return f"{value:g}"


def section(name: str) -> str:
    """Return the part of docs/methods.md under the heading that names a method."""
    parts = re.split(r"^### ", METHODS_PAGE, flags=re.MULTILINE)
    found = [part for part in parts if f"`{name}`" in part.splitlines()[0]]
    assert len(found) == 1, f"{len(found)} headings of docs/methods.md name {name}"
    return found[0]


@pytest.mark.parametrize("name", methods.names())
def test_each_method_is_described_with_all_its_options(name: str) -> None:
    text = section(name)
    description = methods.describe(name)
    for option, default in description.defaults.items():
        # A comma, a bracket or an equation's symbol may stand between the two.
        shown = rf"`{option}`[^`]{{0,60}}?`?\b{re.escape(spelled(default))}\b"
        assert re.search(shown, text), f"{option} {spelled(default)} of {name}"
    assert f"Default initialisation `{description.default_init}`" in text


def test_each_initialisation_is_described_with_all_its_options() -> None:
    text = METHODS_PAGE[METHODS_PAGE.index("## Initialisations") :]
    for name in initialisations.names():
        assert re.search(rf"^\| `{name}` \|", text, flags=re.MULTILINE), name
        for option, default in initialisations.describe(name).defaults.items():
            assert f"`{option}`" in text, f"{option} of {name}"
            if name == "awt":
                value = f"`{default}`" if isinstance(default, str) else spelled(default)
                assert f"| `{option}` | {value} |" in text, option


@pytest.mark.parametrize(
    ("row", "names"), [("method", methods.names()), ("initialisation", initialisations.names())]
)
def test_readme_lists_what_can_be_named(row: str, names: list[str]) -> None:
    line = next(line for line in README.splitlines() if line.startswith(f"| {row} |"))
    listed = re.findall(r"`([^`]+)`", line)[0].split()
    assert sorted(listed) == sorted(names)


def test_the_trainings_of_the_paper_are_as_many_as_documents_say() -> None:
    config = checked(yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8")))
    found = [
        f"{experiment.dataset}/{trained_model(experiment, seed, step)}"
        for name in config["paper"]
        for experiment in matrix_experiments(config, name)
        for seed in matrix_seeds(config, name)
        for step in range(experiment.scenario.n_steps)
    ]
    numbers = re.findall(r"(\d+) trainings instead of (\d+)", README)
    assert numbers == [(str(len(set(found))), str(len(found)))]
    cluster = (REPOSITORY / "docs" / "cluster.md").read_text(encoding="utf-8")
    assert f"{len(set(found))} trainings, as many evaluations" in cluster
