"""What every benchmark shares: rows, taking turns, and the table that they are printed in."""

from __future__ import annotations

import gc
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ciss
from ciss.files import write_text

REPOSITORY = Path(__file__).resolve().parent.parent
#: what stands between these two lines of a document is replaced by the table
BEGIN, END = "<!-- figures of make bench: begin -->", "<!-- figures of make bench: end -->"
NOT_MEASURED = "not measured"
#: how a row's aim ends where it is missed
MISSED = "NOT met"


@dataclass(frozen=True)
class Row:
    """One line of the table: the published way of doing some work, and ours.

    A figure that is ``None`` was not measured; where there is no published way, ``published``
    and ``ratio`` are ``None``. ``ratio`` says how many times as good ours is: as fast, as small.
    """

    group: str
    what: str
    unit: str
    published: float | None = None
    ours: float | None = None
    ratio: float | None = None
    #: smallest and largest ratio of a round (of ours, where there is nothing to compare)
    spread: tuple[float, float] | None = None
    rounds: int = 0
    #: the aim, where there is one, and whether it is met: "≥ 50 ×: met", "< 5 s: NOT met"
    goal: str = ""
    #: sizes, and whatever else one must know to read the figures
    note: str = ""


def wall_seconds(work: Callable[[], Any]) -> float:
    """Seconds on the clock that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Seconds of CPU, user and system, in this process and those it waits for."""
    # Garbage of what ran before is not this work's.
    gc.collect()
    start = _used()
    work()
    return _used() - start


def _used() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def alternate(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    seconds: Callable[[Callable[[], Any]], float] = cpu_seconds,
    *,
    warm_up: bool = True,
) -> dict[str, list[float]]:
    """Give each way its turn in each round; return the seconds of each way by round.

    The round before the first warms up and is not counted.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1 if warm_up else 0, rounds):
        for name, work in ways.items():
            passed = seconds(work)
            if number >= 0:
                found[name].append(passed)
    return found


def compared(
    group: str,
    what: str,
    unit: str,
    published: Sequence[float],
    ours: Sequence[float],
    *,
    scale: float = 1.0,
    **more: str,
) -> Row:
    """Make the row of two ways that took turns: medians × ``scale``, and their ratio.

    ``published`` and ``ours`` are costs (seconds, bytes) by round.
    """
    ratios = [theirs / mine for theirs, mine in zip(published, ours, strict=True)]
    medians = statistics.median(published), statistics.median(ours)
    return Row(
        group,
        what,
        unit,
        scale * medians[0],
        scale * medians[1],
        medians[0] / medians[1],
        (min(ratios), max(ratios)),
        len(ratios),
        **more,
    )


def rate(row: Row, amount: float, unit: str) -> Row:
    """Turn the seconds of a row into ``amount`` a second."""
    published, ours = (None if s is None else amount / s for s in (row.published, row.ours))
    return Row(**{**asdict(row), "published": published, "ours": ours, "unit": unit})


def alone(
    group: str,
    what: str,
    unit: str,
    ours: Sequence[float],
    *,
    scale: float = 1.0,
    **more: str,
) -> Row:
    """Make the row of work that there is no published way of."""
    spread = (scale * min(ours), scale * max(ours))
    median = scale * statistics.median(ours)
    return Row(group, what, unit, None, median, None, spread, len(ours), **more)


def verdict(good: bool) -> str:
    """How an aim ends."""
    return "met" if good else MISSED


def at_least(row: Row, aim: float) -> Row:
    """The row with an aim: ours shall be ``aim`` times as good as the published way."""
    assert row.ratio is not None
    return replace(row, goal=f"≥ {aim:,g} ×: {verdict(row.ratio >= aim)}")


def below(row: Row, aim: float) -> Row:
    """The row with an aim: ours shall stay below it."""
    assert row.ours is not None
    return replace(row, goal=f"< {aim:,g} {row.unit}: {verdict(row.ours < aim)}")


def missing(group: str, whats: Iterable[str]) -> list[Row]:
    """Rows that say that nothing was measured."""
    return [Row(group, what, "") for what in whats]


def about(command: str) -> dict[str, Any]:
    """Say where and when figures were made: machine, versions, revision and ``command``."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "command": command,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("torch", "snakemake")},
        "revision": revision(),
    }


def revision() -> str:
    """What git calls the source; a copy without git's folder, or without git, has its version."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ciss.__version__
    return done.stdout.strip()


def spelled(arguments: Sequence[str]) -> str:
    """A benchmark's command for a document: of files outside the repository only the names."""
    program = Path(arguments[0]).resolve()
    parts = [str(program.relative_to(REPOSITORY)) if program.is_relative_to(REPOSITORY) else ""]
    for part in arguments[1:]:
        name, equals, path = part.rpartition("=")
        parts.append(f"{name}{equals}{Path(path).name}" if path.startswith("/") else part)
    return shlex.join(["python", *filter(None, parts)])


def cpu_name() -> str:
    """What the CPU calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def figure(value: float | None, *, absent: str = "") -> str:
    """Spell a figure with about three digits that mean something."""
    if value is None:
        return absent
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}"


def cells(row: Row) -> list[str]:
    """The row as the table shows it."""
    unit = f" {row.unit}" if row.unit else ""
    between = ""
    if row.spread is not None and row.rounds > 1:
        between = f"{figure(row.spread[0])} – {figure(row.spread[1])}"
    return [
        row.what,
        "" if row.published is None else figure(row.published) + unit,
        NOT_MEASURED if row.ours is None else figure(row.ours) + unit,
        "" if row.ratio is None else f"× {figure(row.ratio)}",
        between,
        str(row.rounds) if row.rounds else "",
        row.goal,
    ]


HEADER = ["", "published", "here", "ratio", "from – to", "rounds", "aim"]


def plain(rows: Sequence[Row]) -> str:
    """The table for a terminal."""
    lines = [HEADER, *[cells(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    text, group = [], None
    for line, row in zip(lines, [None, *rows], strict=True):
        if row is not None and row.group != group:
            group = row.group
            text += ["", group]
        spelled = [line[0].ljust(widths[0])]
        spelled += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        text.append("  ".join(spelled).rstrip())
    return "\n".join(text) + "\n"


def markdown(rows: Sequence[Row], where: Mapping[str, Any]) -> str:
    """The table for a document: a section a group, its notes below."""
    packages = ", ".join(f"{name} {number}" for name, number in where["packages"].items())
    text = [
        f"{where['date']}, {where['cpu']}, {where['cores']} cores (load {where['load']} at the "
        f"start), Python {where['python']}, {packages}, revision {where['revision']}:",
        "",
        f"    {where['command']}",
        "",
    ]
    return "\n".join(text) + f"\n{tables(rows)}"


def tables(rows: Sequence[Row]) -> str:
    """A table a group, its notes below."""
    text: list[str] = []
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group]
        # Columns that would be empty are left out.
        spelled = [cells(row) for row in members]
        shown = [
            n for n in range(len(HEADER)) if n in (0, 2) or any(line[n].strip() for line in spelled)
        ]
        text += [""] if text else []
        text.append(f"| {group} | " + " | ".join(HEADER[n] for n in shown[1:]) + " |")
        text.append("| --- |" + " ---: |" * (len(shown) - 1))
        text += ["| " + " | ".join(line[n] for n in shown) + " |" for line in spelled]
        notes = dict.fromkeys(row.note for row in members if row.note)
        text += ["", *[f"- {note}" for note in notes]] if notes else []
    return "\n".join(text) + "\n"


def write(folder: Path, rows: Sequence[Row], where: Mapping[str, Any]) -> None:
    """Write ``bench.json`` and ``bench.md``."""
    content = {**where, "rows": [asdict(row) for row in rows]}
    write_text(folder / "bench.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / "bench.md", markdown(rows, where))


def read(path: Path) -> list[Row]:
    """Read the rows of a JSON file with a list ``rows``; other fields of a row are passed over."""
    known = Row.__dataclass_fields__
    content = json.loads(path.read_text(encoding="utf-8"))
    return [
        Row(**{key: value for key, value in row.items() if key in known}) for row in content["rows"]
    ]


def into_document(document: Path, table: str, marks: tuple[str, str] = (BEGIN, END)) -> None:
    """Replace what stands between the two ``marks`` in a document."""
    text = document.read_text(encoding="utf-8")
    begin, end = marks
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{document} needs one line '{begin}' and one '{end}'")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    write_text(document, f"{before}{begin}\n\n{table}\n{end}{after}")
