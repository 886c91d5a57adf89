"""Choose the images of each step of a scenario."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401

from ciss import scripting, splits
from ciss.index import read_index
from ciss.runtime import log
from ciss.scenarios import parse_scenario


def main(arguments: argparse.Namespace) -> None:
    """Write the split."""
    dataset = scripting.dataset_from(arguments)
    scenario = parse_scenario(arguments.scenario, dataset.n_classes, arguments.setup)
    rows = splits.split(read_index(arguments.index), dataset, scenario, arguments.steps)
    splits.write_split(arguments.output, rows)
    for step in arguments.steps:
        counts = [len(splits.select(rows, step, subset)) for subset in ("train", "test")]
        log.info("step %d: %d training and %d test images", step, *counts)
    log.info("hash %s", splits.split_hash(rows))


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    scripting.add_dataset_flags(parser)
    parser.add_argument("--index", type=Path, required=True, help="index of the dataset")
    parser.add_argument("--scenario", required=True, help="such as 15-1")
    parser.add_argument("--setup", required=True, help="overlapped or disjoint")
    parser.add_argument("--steps", type=int, nargs="+", required=True)
    parser.add_argument("--output", type=Path, required=True, help="split to write (CSV)")
    scripting.run(main, parser)
