"""Importing this lets a script find `ciss` beside its folder, where it is not installed.

It comes before all that is not Python's own: from then on, what is missing is one sentence.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import TracebackType

#: pyproject.toml says the same
OLDEST_PYTHON = (3, 11)

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
if sys.version_info[:2] < OLDEST_PYTHON:
    found, needed = (
        ".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST_PYTHON)
    )
    sys.exit(f"error: this is Python {found}, {needed} or newer is needed (docs/environments.md)")


def say(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Say in one sentence that an import failed, unless the command line has ``--traceback``."""
    from ciss.errors import import_error

    if isinstance(error, ImportError) and "--traceback" not in sys.argv:
        print(f"error: {import_error(error)}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, where)


sys.excepthook = say
