"""Choose the images of earlier steps that the later steps of a scenario train on again."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401
import pandas as pd

from ciss import exemplars, scripting, splits
from ciss.flags import at_least, seed
from ciss.index import read_index
from ciss.runtime import log
from ciss.scenarios import SETUPS, parse_scenario


def main(arguments: argparse.Namespace) -> None:
    """Write the exemplars of all later steps."""
    dataset = scripting.dataset_from(arguments)
    scenario = parse_scenario(arguments.scenario, dataset.n_classes, arguments.setup)
    rows = pd.concat([splits.read_split(path) for path in arguments.splits], ignore_index=True)
    index = read_index(arguments.index)
    table = exemplars.choose(index, dataset, scenario, rows, arguments.images, arguments.seed)
    exemplars.write_exemplars(arguments.output, table)
    for step in range(1, scenario.n_steps):
        part = exemplars.select(table, step)
        counts = part["chosen_for"].value_counts()
        seen = len(scenario.seen_classes(step - 1))
        fewest = 0 if len(counts) < seen else counts.min()
        log.info(
            "step %d: %d images for %d classes, %d to %d for each",
            *(step, len(part), seen, fewest, counts.max()),
        )


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    scripting.add_dataset_flags(parser)
    parser.add_argument("--index", type=Path, required=True, help="index of the dataset")
    parser.add_argument(
        "--splits", type=Path, nargs="+", required=True, help="splits of step 0 and of later steps"
    )
    parser.add_argument("--scenario", required=True, help="such as 15-1")
    parser.add_argument("--setup", required=True, help=", ".join(SETUPS))
    parser.add_argument("--images", type=at_least(1), required=True, help="images in the memory")
    parser.add_argument("--seed", type=seed, required=True)
    parser.add_argument(
        "--output", type=scripting.output_file, required=True, help="exemplars to write (CSV)"
    )
    scripting.run(main, parser)
