"""Writing files so that nothing half-written is ever seen."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

#: in C, where PyYAML has it: the loader in Python takes ten times as long
YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it onto ``path`` when the block succeeds.

    The data are on the disk before the rename, so that a crash of the machine leaves either the
    old file or the whole new one. When the block raises, the temporary file is removed and
    ``path`` keeps what it held.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix, suffix = _partial(path)
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except OSError as error:
        # Of a full disk nothing says which file it was; the temporary one's name says nothing.
        if error.filename in (None, name, temporary):
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def remove_partial(path: Path | str) -> None:
    """Remove what processes that were killed while they wrote ``path`` left beside it.

    Only for whoever knows that nobody else is writing ``path``.
    """
    path = Path(path)
    prefix, suffix = _partial(path)
    for left in path.parent.glob(f"{glob.escape(prefix)}*{suffix}"):
        left.unlink(missing_ok=True)


def _partial(path: Path) -> tuple[str, str]:
    """Return how the names of temporary files for ``path`` begin and end."""
    return f".{path.name}.", ".partial"


def write_text(path: Path | str, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_yaml(path: Path | str) -> Any:
    """Read a YAML file of plain data. Raises ``yaml.YAMLError`` where it is none."""
    loader = YAML_LOADER(Path(path).read_text(encoding="utf-8"))
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
