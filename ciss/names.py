"""Names: those of methods and initialisations, and helping people who misspell one."""

from __future__ import annotations

import difflib
import pkgutil
import re
from collections.abc import Iterable

from ciss.errors import CissError


def of_modules(folders: Iterable[str]) -> tuple[str, ...]:
    """Return what the modules in ``folders`` are called in experiments, sorted: ``lwf-mc``.

    ``base`` is none of them. Raises ``CissError`` for a file whose name cannot be a part of an
    experiment's.
    """
    found = []
    for finder, name, _ in pkgutil.iter_modules(folders):
        if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name):
            raise CissError(
                f"{getattr(finder, 'path', '')}/{name}.py: rename it to lower-case letters, digits "
                "and single underscores, as its name is a part of experiments' names"
            )
        if name != "base":
            found.append(name.replace("_", "-"))
    return tuple(sorted(found))


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
