"""Initialisations of a step's new classifiers: one module each, named as experiments name them.

``-`` in a name is ``_`` in the module's. A module offers ``NEEDS_ATTRIBUTION``, ``OPTIONS`` (its
options with their defaults), ``CHOICES`` where an option takes one of a few words, all written as
literals, and ``initialise(classifiers, options, masks, generator)``, which returns the new
``Classifiers``. One that is learned on the step's images says ``NEEDS_PRETUNING`` and offers
``learner(network, options)`` instead, which ``ciss.pretuning`` runs. A new file in this folder is a
new initialisation; nothing else needs to know of it. Importing this package imports no torch, as
``ciss.methods`` does not; ``ciss.transfer`` applies initialisations.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ciss.errors import CissError
from ciss.flags import check_value
from ciss.names import of_modules, unknown
from ciss.source import literals, parsed

#: options from which the channel masks are made, for initialisations that need attribution
CHANNEL_OPTIONS = ("fraction", "grouping", "pooling")
#: options that are a training's, for initialisations that are learned
PRETUNING_OPTIONS = ("epochs", "lr", "momentum", "weight_decay")
_FACTS = ("NEEDS_ATTRIBUTION", "NEEDS_PRETUNING", "OPTIONS", "CHOICES")


@dataclass(frozen=True)
class Description:
    """What planning needs to know of an initialisation."""

    summary: str
    defaults: Mapping[str, Any]
    needs_attribution: bool
    needs_pretuning: bool
    choices: Mapping[str, list[str]]


@cache
def names() -> tuple[str, ...]:
    """Names of all initialisations, with ``-`` for ``_`` in the modules' names."""
    return of_modules(__path__)


def module_of(name: str) -> str:
    """Return the module of an initialisation. Raises ``CissError`` when there is none."""
    check_name(name)
    return f"{__name__}.{name.replace('-', '_')}"


@cache
def describe(name: str) -> Description:
    """Read an initialisation's facts from its source, without importing it.

    Raises ``CissError`` for an unknown name, for one that needs attribution but lacks an option of
    ``CHANNEL_OPTIONS``, or pre-tuning but one of ``PRETUNING_OPTIONS``, or that needs both, and for
    a module that lacks what all offer.
    """
    path, syntax = parsed(module_of(name))
    values: dict[str, Any] = {"CHOICES": {}, "NEEDS_PRETUNING": False}
    values |= literals(syntax.body, _FACTS, f"{path}: ")
    _check_offered(path, syntax, values)
    _check_facts(name, values)
    summary = (ast.get_docstring(syntax) or name).partition("\n")[0]
    return Description(
        summary,
        values["OPTIONS"],
        values["NEEDS_ATTRIBUTION"],
        values["NEEDS_PRETUNING"],
        values["CHOICES"],
    )


def _check_offered(path: Path, syntax: ast.Module, values: Mapping[str, Any]) -> None:
    """Before step 0 is trained, not when the first later step begins."""
    function = "learner" if values["NEEDS_PRETUNING"] else "initialise"
    functions = {node.name for node in syntax.body if isinstance(node, ast.FunctionDef)}
    imports = (node.names for node in syntax.body if isinstance(node, ast.ImportFrom))
    functions |= {alias.asname or alias.name for aliases in imports for alias in aliases}
    absent = [fact for fact in ("NEEDS_ATTRIBUTION", "OPTIONS") if fact not in values]
    absent += [f"{function}()"] if function not in functions else []
    if absent:
        raise CissError(f"{path} lacks {', '.join(absent)}; docs/add-an-initialisation.md")


def _check_facts(name: str, values: Mapping[str, Any]) -> None:
    needs = {
        "NEEDS_ATTRIBUTION": ("attribution", CHANNEL_OPTIONS, "channels are chosen by them"),
        "NEEDS_PRETUNING": ("pre-tuning", PRETUNING_OPTIONS, "it is trained with them"),
    }
    if all(values[fact] for fact in needs):
        raise CissError(f"initialisation {name} needs attribution and pre-tuning; choose one")
    for fact, (what, options, reason) in needs.items():
        absent = sorted({*options} - values["OPTIONS"].keys())
        if values[fact] and absent:
            raise CissError(
                f"initialisation {name} needs {what}, but has no option {', '.join(absent)}: "
                f"{reason}; add them to OPTIONS in ciss/initialisations/{name}.py"
            )


def check_name(name: str) -> None:
    """Raise ``CissError`` when there is no such initialisation."""
    if name not in names():
        raise CissError(unknown("initialisation", name, names()))


def options_of(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of an initialisation: its defaults, overridden by ``given``.

    Raises ``CissError`` for an option, or a value of one, that it does not have.
    """
    defaults = describe(name).defaults
    for option, value in given.items():
        if option not in defaults:
            raise CissError(unknown(f"option of initialisation {name}", option, defaults))
        check_value(f"option {option} of initialisation {name}", value, defaults[option])
    return {**defaults, **given}
