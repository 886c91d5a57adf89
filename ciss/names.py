"""Helping people who misspell a name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, name: object, known: Iterable[object]) -> str:
    """Say that ``name`` is not one of ``known``, which one is nearest, and which there are."""
    choices = [str(choice) for choice in known]
    near = difflib.get_close_matches(str(name), choices, n=1, cutoff=0.5)
    hint = f" (did you mean '{near[0]}'?)" if near else ""
    return f"{what} '{name}' is unknown{hint}; there are: {', '.join(choices) or 'none'}"
