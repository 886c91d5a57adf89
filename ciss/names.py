"""Helping people who misspell a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[object], cutoff: float = 0.5) -> str:
    """Return which of ``known`` is most like ``name``, whatever its case; empty for none."""
    choices = {str(choice).lower(): str(choice) for choice in known}
    near = difflib.get_close_matches(str(name).lower(), choices, n=1, cutoff=cutoff)
    return choices[near[0]] if near else ""


def unknown(what: str, name: object, known: Iterable[object]) -> str:
    """Say that ``name`` is not one of ``known``, which one is nearest, and which there are."""
    choices = [str(choice) for choice in known]
    near = nearest(name, choices)
    hint = f" (did you mean '{near}'?)" if near else ""
    return f"{what} '{name}' is unknown{hint}; there are: {', '.join(choices) or 'none'}"
