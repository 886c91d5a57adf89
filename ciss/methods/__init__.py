"""The methods, found by listing this package: one file with one ``Method`` subclass each.

A method is called as its file, with ``-`` for ``_``. Importing this package imports no torch:
``names`` and ``describe`` are for the workflow, which plans on machines and at moments where
loading torch would be a waste; ``method_class`` and ``create`` are for training.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from ciss.errors import CissError
from ciss.flags import check_value
from ciss.names import of_modules, unknown
from ciss.source import literals, parsed

if TYPE_CHECKING:
    from ciss.methods.base import Method

_T = TypeVar("_T")

_BASE = ("ciss.methods.base", "Method")
#: methods whose losses at step 0 a base objective is
_BASE_METHODS = {"ce": "ft", "ce-preallocated": "dft", "bce": "lwf-mc", "ssul": "ssul"}
#: what step 0 may be trained with
BASE_OBJECTIVES = (*_BASE_METHODS, "ce-importance")
#: the one under which step 0 has classifiers of all classes to come: it depends on their number
PREALLOCATED = "ce-preallocated"
#: settings that every method has beside its options: the words that each takes, the default first
COMMON: Mapping[str, tuple[str, ...]] = {
    # what becomes of a step's model, once it is trained (ciss.fusion); of variants alone
    "fuse": ("none", "ewf"),
    # what stays as the step before left it, whatever else the method trains
    "freeze": ("none", "old_classifiers"),
}
_FACTS = (
    "defaults",
    "choices",
    "default_init",
    "base_objective",
    "base_options",
    "keeps_importances",
    "closed_form",
    "completes_labels",
    "only_adds",
    "has_unknown",
)


@dataclass(frozen=True)
class Description:
    """What planning needs to know of a method: the class attributes of ``Method``."""

    defaults: Mapping[str, Any]
    choices: Mapping[str, list[str]]
    default_init: str
    base_objective: str
    base_options: tuple[str, ...]
    keeps_importances: bool
    closed_form: bool
    completes_labels: bool
    only_adds: bool
    has_unknown: bool


def names() -> tuple[str, ...]:
    """Names of all methods, sorted."""
    return _names_in(tuple(__path__))


@cache
def _names_in(folders: tuple[str, ...]) -> tuple[str, ...]:
    return of_modules(folders)


def trained_names() -> tuple[str, ...]:
    """Names of the methods that train by losses and gradients."""
    return tuple(name for name in names() if not describe(name).closed_form)


@cache
def describe(name: str) -> Description:
    """Read a method's class attributes from its source, without importing it.

    They must be literals there, or inherited. Raises ``CissError`` for an unknown name, and for a
    module in which they are not, or that has more or fewer than one method.
    """
    module = _module(name)
    classes = [node.name for node in parsed(module)[1].body if isinstance(node, ast.ClassDef)]
    found = [facts for facts in (_facts(module, name) for name in classes) if facts is not None]
    return Description(**_only(module, found))


def method_class(name: str) -> type[Method]:
    """Return a method's class. Raises ``CissError``, with the nearest name, for an unknown one."""
    from ciss.methods.base import Method

    module = importlib.import_module(_module(name))
    found = [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Method) and member.__module__ == module.__name__
    ]
    return _only(module.__name__, found)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ``CissError`` where ``options`` has one, or a value for one, that does not exist."""
    described = describe(name)
    for option, value in options.items():
        if option not in described.defaults:
            raise CissError(unknown(f"option of method {name}", option, described.defaults))
        check_value(f"option {option} of method {name}", value, described.defaults[option])
        if option in described.choices and value not in described.choices[option]:
            where = f"value of option {option} of method {name}"
            raise CissError(unknown(where, value, described.choices[option]))


def create(name: str, options: Mapping[str, Any], n_old: int, n_new: int) -> Method:
    """Make a method for one step; ``options`` override its defaults."""
    check_options(name, options)
    return method_class(name)(options, n_old, n_new)


def create_base(objective: str, n_new: int, options: Mapping[str, Any] | None = None) -> Method:
    """Make the method that trains step 0 under one of ``BASE_OBJECTIVES``.

    ``options`` are for an objective that has some, of the method that is called as it.
    """
    if objective in _BASE_METHODS:
        return create(_BASE_METHODS[objective], options or {}, 0, n_new)
    if objective == "ce-importance":
        from ciss.regularisers import ImportanceRecording

        return ImportanceRecording(describe("rw").defaults, 0, n_new)
    raise CissError(unknown("base objective", objective, BASE_OBJECTIVES))


def _only(module: str, found: list[_T]) -> _T:
    """Return the only subclass of a module, or what is known of it."""
    if len(found) != 1:
        raise CissError(
            f"{module} has {len(found)} subclasses of Method; it must have one "
            "(docs/add-a-method.md)"
        )
    return found[0]


def _module(name: str) -> str:
    if name not in names():
        raise CissError(unknown("method", name, names()))
    return f"{__name__}.{name.replace('-', '_')}"


def _facts(module: str, class_name: str) -> dict[str, Any] | None:
    """Collect ``_FACTS`` of a class, inherited ones first; None if it is not a ``Method``."""
    body = parsed(module)[1].body
    node = next((n for n in body if isinstance(n, ast.ClassDef) and n.name == class_name), None)
    if node is None:
        return None
    imported = {
        alias.asname or alias.name: (statement.module, alias.name)
        for statement in body
        if isinstance(statement, ast.ImportFrom) and statement.module is not None
        for alias in statement.names
    }
    facts: dict[str, Any] | None = {} if (module, class_name) == _BASE else None
    for base in node.bases:
        if isinstance(base, ast.Name):
            inherited = _inherited(*imported.get(base.id, (module, base.id)))
            if inherited is not None:
                facts = {**inherited, **(facts or {})}
    if facts is not None:
        facts.update(literals(node.body, _FACTS, f"{module}.{node.name}."))
    return facts


def _inherited(module: str, class_name: str) -> dict[str, Any] | None:
    return _facts(module, class_name) if module.startswith("ciss.") else None
