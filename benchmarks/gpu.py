"""Everything that is measured on a GPU, without Snakemake: a section at a time, into one JSON file.

    python benchmarks/gpu.py --minutes 9                     what is missing, until time is up
    python benchmarks/gpu.py --only training-voc-24 --again
    python benchmarks/gpu.py --device cpu --tiny --output /tmp/gpu.json     whether it runs at all
    python benchmarks/gpu.py --docs                          figures into docs/benchmarks.md

The file is written after every row. Run again, it goes on with the sections that it lacks or that
another device made; then those are tried again that ended before their end, because they failed,
time was up, or the program was killed: the file says which, and has the rows that they made. No
section needs another.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.on_gpu import (
    Machine,
    Section,
    correctness,
    inference,
    jobs,
    losses,
    start,
    training,
    variants,
)
from benchmarks.table import (
    MISSED,
    NOT_MEASURED,
    REPOSITORY,
    Row,
    into_document,
    missing,
    plain,
    revision,
    spelled,
    tables,
)
from ciss.files import write_text

#: in the order in which they are run: what others rest on first, what compiles last
SECTIONS: dict[str, Section] = {
    "correctness": correctness.rows,
    "same-bits": jobs.same_bits,
    "parity": jobs.parity,
    "several-processes": jobs.several,
    "training-voc-24": training.section("voc", 24),
    "training-ade-24": training.section("ade", 24),
    "losses": losses.rows,
    "training-voc-12": training.section("voc", 12),
    "training-ade-12": training.section("ade", 12),
    "attribution": inference.attribution_rows,
    "evaluation": inference.evaluation_rows,
    "start": jobs.starting,
    "losses-compiled": losses.compiled_rows,
    "variants": variants.rows,
}
#: what `make bench` shows of them beside its own rows
SHOWN = (
    "training-voc-24",
    "training-ade-24",
    "losses",
    "training-voc-12",
    "training-ade-12",
    "attribution",
    "evaluation",
)
#: why a section ended of which nothing more is known
KILLED = "the program was ended in this section"
TIME_UP = "time was up in this section"
OUTPUT = REPOSITORY / "benchmarks" / "gpu.json"
BEGIN = "<!-- figures of benchmarks/gpu.py: begin -->"
END = "<!-- figures of benchmarks/gpu.py: end -->"


def about(device: torch.device, tiny: bool, command: str) -> dict[str, Any]:
    """Say where and when sections are measured, and of which source."""
    is_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if is_gpu else platform.processor()
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": name or platform.machine(),
        "tiny": tiny,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "revision": revision(),
        "command": command,
    }


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The sections of a file, none where there is no file."""
    if not path.is_file():
        return {}
    sections: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["sections"]
    return sections


def write(path: Path, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Write sections, in the order of ``SECTIONS``, and the rows that ``make bench`` shows."""
    ordered = {name: sections[name] for name in SECTIONS if name in sections}
    rows: list[dict[str, Any]] = []
    for name in SHOWN:
        counts = name in ordered and not ordered[name]["tiny"]
        rows += ordered[name]["rows"] if counts else [asdict(r) for r in missing("GPU", [name])]
    content = {"sections": ordered, "rows": rows}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def to_measure(
    chosen: Iterable[str], sections: Mapping[str, Mapping[str, Any]], where: Mapping[str, Any]
) -> list[str]:
    """Of the ``chosen``, sections that are missing, then those that ended before their end.

    What was only tried out, or on another device than ``where``, is missing too.
    """
    same = {
        name: section
        for name, section in sections.items()
        if all(section[key] == where[key] for key in ("tiny", "device"))
    }
    names = list(chosen)
    ended = [name for name in names if name in same and same[name]["error"]]
    return [name for name in names if name not in same] + ended


def keep(
    path: Path,
    sections: dict[str, dict[str, Any]],
    name: str,
    where: Mapping[str, Any],
    rows: list[Row],
    error: str,
    *,
    begun: float,
) -> None:
    """Put what a section that began at ``begun`` has come to among ``sections``, and write them."""
    seconds = round(time.monotonic() - begun, 1)
    found = [asdict(row) for row in rows]
    sections[name] = {**where, "seconds": seconds, "error": error, "rows": found}
    write(path, sections)


def run_section(
    name: str, machine: Machine, note: Callable[[list[Row], str], None], end: float = math.inf
) -> str:
    """Measure one section, until ``end`` of the clock; returns why it ended before its own.

    ``note`` is given its rows after each of them, and what to say of a section that ends there.
    """
    rows: list[Row] = []
    try:
        for row in SECTIONS[name](machine):
            print(*plain([row]).splitlines()[3:], flush=True)
            rows.append(row)
            note(rows, KILLED)
            if time.monotonic() > end:
                note(rows, TIME_UP)
                return TIME_UP
    except (Exception, SystemExit):
        error = traceback.format_exc()
        note(rows, error)
        return error
    finally:
        machine.clear()
    note(rows, "")
    return ""


def measure(arguments: argparse.Namespace, command: str) -> int:
    """Measure what is missing; returns the exit status."""
    begun = time.monotonic()
    end = begun + 60 * arguments.minutes if arguments.minutes else math.inf
    # On a CPU it is only tried out, beside whatever else runs.
    device = start(arguments.device, arguments.threads or 1 + (arguments.device != "cpu"))
    sections = read(arguments.output)
    where = about(device, arguments.tiny, command)
    chosen = arguments.only or SECTIONS
    failed = []
    for name in chosen if arguments.again else to_measure(chosen, sections, where):
        if time.monotonic() > end:
            print(f"time is up before {name}; the same command goes on with it")
            return 3
        print(f"\n[{time.monotonic() - begun:4.0f} s] {name}", flush=True)
        with TemporaryDirectory(prefix="ciss-gpu-") as folder:
            machine = Machine(
                device,
                arguments.tiny,
                arguments.rounds,
                Path(folder),
                arguments.workers,
                arguments.cases,
            )
            note = partial(keep, arguments.output, sections, name, where, begun=time.monotonic())
            error = run_section(name, machine, note, end)
        if error == TIME_UP:
            print(f"time was up in {name}; the same command goes on, and tries it again at the end")
            return 3
        if error:
            failed.append(name)
            print(error, flush=True)
    missed = [
        row["what"] for s in sections.values() for row in s["rows"] if row["goal"].endswith(MISSED)
    ]
    print(f"\nwritten to {arguments.output}; aims that are not met: {len(missed)}")
    print("\n".join(missed))
    if failed:
        print(f"failed, and tried again by the same command: {', '.join(failed)}")
    return 1 if failed else 0


def markdown(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """The sections for a document; those that are missing say so."""
    text = []
    for name in SECTIONS:
        section = sections.get(name)
        if section is None or section["tiny"]:
            text += [f"**{name}**: {NOT_MEASURED}.", ""]
            continue
        rows = [Row(**row) for row in section["rows"]]
        ended = f" {_ended(section['error'])}" if section["error"] else ""
        text += [
            f"**{name}**: {section['date']}, {section['device']}, torch {section['torch']}, CUDA "
            f"{section['cuda']}, {section['cores']} CPU cores, revision {section['revision']}, "
            f"{section['seconds']:.0f} s, `{section['command']}`.{ended}",
            "",
            tables(rows),
        ]
    return "\n".join(text).strip() + "\n"


def _ended(error: str) -> str:
    """Say in a document why a section lacks rows."""
    why = error if error in (KILLED, TIME_UP) else error.strip().splitlines()[-1]
    return f"It ended before its end: {why}."


def main(arguments: argparse.Namespace) -> int:
    """Measure, or write the figures into the page of benchmarks."""
    if arguments.docs:
        page = REPOSITORY / "docs" / "benchmarks.md"
        into_document(page, markdown(read(arguments.output)), (BEGIN, END))
        return 0
    return measure(arguments, spelled(sys.argv))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections alone")
    made.add_argument("--again", action="store_true", help="sections that are there too")
    made.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu to try it out")
    made.add_argument("--tiny", action="store_true", help="smallest sizes: no figure is of use")
    made.add_argument("--rounds", type=int, default=3, help="turns of each way (default: 3)")
    made.add_argument("--minutes", type=float, default=0, help="stop after the first row then")
    made.add_argument(
        "--threads", type=int, help="CPU threads of PyTorch (default: 2; 1 with --device cpu)"
    )
    made.add_argument("--workers", type=int, default=8, help="threads that read images")
    made.add_argument("--cases", type=Path, help="folder of parity cases with a manifest.json")
    made.add_argument("--output", type=Path, default=OUTPUT, help="file of the figures")
    made.add_argument("--docs", action="store_true", help="put the figures in docs/benchmarks.md")
    return made


if __name__ == "__main__":
    sys.exit(main(parser().parse_args()))
