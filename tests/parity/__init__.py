"""Parity with the published implementation: its stored values against the project's functions.

``python -m tests.parity --cases DIR`` checks all cases of a folder with a ``manifest.json``. One
module a group of cases: its ``check`` computes what the case holds and compares it; its ``INPUTS``
lists, with the reason, the arrays that nothing is compared with. Any other array that was not
compared with something fails its case.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import (
    attribution,
    initialisations,
    labels,
    losses,
    metrics,
    model,
    optim,
    plop,
    regularisers,
    splits,
    trajectory,
    transforms,
)
from .case import CPU, Case, Cases, Comparison, UnknownCaseError

__all__ = ["Case", "Cases", "Outcome", "check_case"]

#: modules by the group in a case's name
GROUPS = {
    "1_losses": losses,
    "2_plop": plop,
    "3_regularizers": regularisers,
    "4_classifier_init": initialisations,
    "5_attribution": attribution,
    "6_metrics": metrics,
    "7_optim": optim,
    "8_labels": labels,
    "9_splits": splits,
    "10_trajectory": trajectory,
    "11_model": model,
    "12_transforms": transforms,
}
#: groups that a GPU computes where there is one; the others are the CPU's work anyway
ON_DEVICE = ("1_losses", "2_plop", "3_regularizers", "5_attribution", "6_metrics", "10_trajectory")
ON_DEVICE += ("11_model",)


@dataclass(frozen=True)
class Outcome:
    """What came of a case; ``problems`` is empty where it passed."""

    name: str
    #: array that comes nearest to its tolerance, or exceeds it most
    worst: str
    #: largest relative difference of all arrays
    difference: float
    problems: tuple[str, ...]

    def __str__(self) -> str:
        line = f"{'FAILED' if self.problems else 'passed'} {self.name}  {self.difference:.1e}"
        if self.worst:
            line += f" ({self.worst})"
        return "; ".join([line, *self.problems])


def check_case(cases: Cases, entry: Mapping[str, Any]) -> Outcome:
    """Check one case of a manifest. Never raises: what goes wrong fails the case."""
    name = entry["name"]
    module = GROUPS.get(name.partition("/")[0])
    if module is None:
        return Outcome(name, "", float("nan"), ("unknown case: no such group",))
    try:
        on_device = name.partition("/")[0] in ON_DEVICE
        case = cases.load(entry, None if on_device else CPU)
        listed = {array for part in entry["arrays"] for array in part["names"]}
        problems = [f"not in its file: {a}" for a in sorted(listed - case.arrays.keys())]
    except Exception as error:
        return Outcome(name, "", float("nan"), (f"cannot be read: {_describe(error)}",))
    try:
        module.check(case)
    except UnknownCaseError as error:
        problems.append(f"unknown case: {error}")
    except Exception as error:
        problems.append(_describe(error))
    problems += _differences(case.comparisons)
    if unchecked := case.unchecked(module.INPUTS):
        problems.append(f"not checked: {_some(unchecked)}")
    if not case.comparisons and not problems:
        problems.append("nothing was compared")
    differences = {a: max(c.difference for c in cs) for a, cs in case.comparisons.items()}
    worst = max(differences, key=lambda array: differences[array], default="")
    return Outcome(name, worst, differences.get(worst, 0.0), tuple(problems))


def _differences(comparisons: Mapping[str, list[Comparison]]) -> list[str]:
    failures = [(array, c) for array, cs in comparisons.items() for c in cs if c.fails]
    failures.sort(key=lambda failure: -failure[1].difference)
    texts = [f"{array} differs by {c.difference:.1e} > {c.tolerance:.1e}" for array, c in failures]
    return [_some(texts)] if texts else []


def _some(texts: list[str], at_most: int = 6) -> str:
    more = f" and {len(texts) - at_most} more" if len(texts) > at_most else ""
    return ", ".join(texts[:at_most]) + more


def _describe(error: Exception) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"
