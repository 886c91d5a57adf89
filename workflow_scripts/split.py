"""Choose the images of each step of a scenario."""

from __future__ import annotations

import argparse
from pathlib import Path

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
    for (step, subset), count in rows.groupby(["step", "subset"]).size().items():
        log.info("step %d: %d %s images", step, count, subset)
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
