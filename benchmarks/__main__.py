"""One table of speed and memory: ours against the published way, in alternating runs.

    make bench
    make bench ROOT=/data/PascalVOC12
    python -m benchmarks --only attribution training

Without ``--root`` images are generated. The rows are printed as they are measured; table and JSON
are written at the end. Each benchmark is a command of its own too, with more options. Figures of a
GPU are those that ``benchmarks/gpu.py`` wrote (``--gpu``).
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# Before torch is imported: everything is timed on one thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.given import Given, given
from benchmarks.table import (
    REPOSITORY,
    Row,
    about,
    into_document,
    markdown,
    missing,
    plain,
    read,
    write,
)
from ciss.runtime import keep_memory

#: modules of this folder with a function ``rows``, in the order of the table
BENCHMARKS = (
    "data",
    "input",
    "training",
    "losses",
    "attribution",
    "evaluation",
    "transfer",
    "workflow",
)

#: what ``benchmarks/gpu.py`` measures
GPU_GROUP = "GPU"
GPU_ROWS = (
    "losses at full resolution: time and memory",
    "training at batch 12 and 24, VOC and ADE: images/s, FLOPs utilisation, memory",
    "training against plain cross-entropy on random tensors",
    "attribution",
    "evaluation",
)
GPU_JSON = REPOSITORY / "benchmarks" / "gpu.json"


def measured(names: Sequence[str], what: Given) -> Iterator[Row]:
    """Yield the rows of the named benchmarks, each as soon as it is there."""
    for name in names:
        yield from importlib.import_module(f"benchmarks.{name}").rows(what)


def gpu_rows(path: Path) -> list[Row]:
    """Rows that ``benchmarks/gpu.py`` wrote, or that nothing was measured."""
    return read(path) if path.is_file() else missing(GPU_GROUP, GPU_ROWS)


def main(arguments: argparse.Namespace) -> None:
    command = f"make bench{f' ROOT={arguments.root}' if arguments.root else ''}"
    if arguments.only or arguments.rounds != ROUNDS:
        command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    where, start = about(command), time.perf_counter()
    keep_memory()  # as every job does on a CPU; the published ways profit as much
    rows: list[Row] = []
    with given(arguments.root, arguments.kind, arguments.rounds) as what:
        for row in measured(arguments.only or BENCHMARKS, what):
            print(f"[{time.perf_counter() - start:4.0f} s]", *plain([row]).splitlines()[2:])
            rows.append(row)
    rows += gpu_rows(arguments.gpu)
    print(f"\n{plain(rows)}")
    if arguments.output is not None:
        write(arguments.output, rows, where)
        print(f"written to {arguments.output}/bench.json and bench.md")
    if arguments.docs:
        into_document(REPOSITORY / "docs" / "benchmarks.md", markdown(rows, where))


ROUNDS = 5

if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, help="folder of images (default: generated ones)")
    parser.add_argument("--kind", default="voc", help="layout of --root (default: voc)")
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, help="these benchmarks alone")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help=f"turns of each way (default: {ROUNDS})"
    )
    parser.add_argument("--gpu", type=Path, default=GPU_JSON, help="figures of a GPU")
    parser.add_argument("--output", type=Path, help="folder for bench.json and bench.md")
    parser.add_argument("--docs", action="store_true", help="put the table in docs/benchmarks.md")
    main(parser.parse_args())
