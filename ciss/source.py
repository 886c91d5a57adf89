"""Facts that modules state as literals, read from their source: planning imports no torch."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from ciss.errors import CissError


def parsed(module: str) -> tuple[Path, ast.Module]:
    """Return a module's file and its syntax, without importing more than its package."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(module)
    path = Path(spec.origin)
    return path, ast.parse(path.read_text(encoding="utf-8"), filename=spec.origin)


def literals(statements: Iterable[ast.stmt], names: Collection[str], where: str) -> dict[str, Any]:
    """Return what ``statements`` assign to any of ``names``.

    Raises ``CissError``, which begins with ``where``, for a value that is no literal.
    """
    values: dict[str, Any] = {}
    for statement in statements:
        if not isinstance(statement, ast.AnnAssign | ast.Assign) or statement.value is None:
            continue
        targets = [statement.target] if isinstance(statement, ast.AnnAssign) else statement.targets
        for target in targets:
            if isinstance(target, ast.Name) and target.id in names:
                try:
                    values[target.id] = ast.literal_eval(statement.value)
                except ValueError as error:
                    raise CissError(
                        f"{where}{target.id} must be written as a literal: the workflow reads it "
                        "without importing the module"
                    ) from error
    return values
