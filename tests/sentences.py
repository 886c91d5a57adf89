"""The standard for whatever a user does wrong, and ways to see it as a user does.

One clear sentence, which says what is wrong, where, and what to do; a status that is not zero; no
traceback; and nothing that was finished is changed or lost, nothing half-written is left.
"""

from __future__ import annotations

import io
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from fnmatch import fnmatch
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from helpers import REPOSITORY

from ciss.errors import CissError

#: how the line of a sentence begins: of a script, of its parser of flags, of the Snakefile
_SENTENCE = re.compile(
    r"^(?:\d\d:\d\d:\d\d  error: |[\w.]+: error: |error: |Error: )", re.MULTILINE
)
#: what a person cannot read
_NOISE = re.compile(r"Traceback|<class |<function | object at 0x|\b[A-Z]\w+Error\b|\[Errno ")
#: logs, and what Snakemake and Python keep for themselves
_EXCEPTED = ("logs", "benchmarks", ".snakemake", "__pycache__", ".cache")


class Ended(NamedTuple):
    """How a program ended, and what it wrote to its output or its log."""

    status: int
    said: str


def run_script(name: str, *arguments: object) -> Ended:
    """Run a script of ``workflow_scripts/`` within this process, as its command line does."""
    path = REPOSITORY / "workflow_scripts" / name
    said = io.StringIO()
    status: object = 0
    with (
        mock.patch.object(sys, "argv", [str(path), *map(str, arguments)]),
        mock.patch.object(sys, "path", [str(path.parent), *sys.path]),
        redirect_stdout(said),
        redirect_stderr(said),
    ):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except SystemExit as ended:
            status = ended.code
    return _ended(status, said.getvalue())


def run_call(call: Callable[[], object]) -> Ended:
    """Call the library as a script does, which turns a ``CissError`` into a line and status 1."""
    try:
        call()
    except CissError as error:
        return Ended(1, f"error: {error}\n")
    return Ended(0, "")


def dry_runs(folder: Path, lines: Iterable[Sequence[object]]) -> list[Ended]:
    """Run command lines of Snakemake in ``folder``, one after the other; starts one process."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "tests" / "dry_runs.py")],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        input=json.dumps([[str(word) for word in line] for line in lines]),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return [Ended(*result) for result in json.loads(done.stdout)]


def assert_refused(
    run: Callable[[], tuple[int, str]],
    words: Iterable[str],
    *folders: Path,
    may_leave: Iterable[str] = (),
) -> str:
    """Assert that ``run`` is refused by the standard; return its sentence.

    ``run`` returns the status and what was said. The sentence must contain each of ``words``.
    ``folders`` must hold the same before and after it, but for logs, benchmarks, and new files
    whose path below the folder matches one of the patterns ``may_leave``: progress to go on from.
    """
    before = [contents(folder) for folder in folders]
    status, said = run()
    sentence = assert_sentence(status, said, words)
    for folder, had in zip(folders, before, strict=True):
        has = contents(folder)
        new = {path for path in has.keys() - had.keys() if not _matches(path, may_leave)}
        assert not new, f"{sorted(new)} left in {folder}"
        lost = had.keys() - has.keys()
        assert not lost, f"{sorted(lost)} lost from {folder}"
        changed = [path for path in had if has[path] != had[path]]
        assert not changed, f"{changed} changed in {folder}"
    return sentence


def assert_sentence(status: int, said: str, words: Iterable[str]) -> str:
    """Assert that what was said is one sentence with ``words``; return it.

    Lines below it belong to it where they are indented, as those of a report are.
    """
    assert status not in (0, 70), said
    assert "Traceback" not in said, said
    starts = [match.end() for match in _SENTENCE.finditer(said)]
    assert len(starts) == 1, said
    first, *below = said[starts[0] :].splitlines()
    more = next((n for n, line in enumerate(below) if not line.startswith(" ")), len(below))
    sentence = "\n".join([first, *below[:more]])
    assert not _NOISE.search(sentence), sentence
    for word in words:
        assert word in sentence, f"{word!r} is not in: {sentence}"
    return sentence


def contents(folder: Path) -> dict[str, object]:
    """Return what a folder holds, by path: time and content of files, where links lead."""
    found: dict[str, object] = {}
    for parent, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if name not in _EXCEPTED)
        for name in [*names, *files]:
            path = Path(parent, name)
            key = path.relative_to(folder).as_posix()
            if path.suffix == ".log":
                continue
            if path.is_symlink():
                found[key] = str(path.readlink())
            elif path.is_file():
                content = blake2b(path.read_bytes()).hexdigest()
                found[key] = (path.stat().st_mtime_ns, content)
            else:
                found[key] = "folder"
    return found


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def _ended(status: object, said: str) -> Ended:
    """What the system makes of the object that ``sys.exit`` was given."""
    if status is None or isinstance(status, int):
        return Ended(status or 0, said)
    return Ended(1, f"{said}{status}\n")
