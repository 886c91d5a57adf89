"""Choose the images of each step of a scenario."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401

from ciss import scripting, splits
from ciss.files import write_text
from ciss.flags import at_least
from ciss.index import read_index
from ciss.runtime import log
from ciss.scenarios import SETUPS, parse_scenario


def main(arguments: argparse.Namespace) -> None:
    """Write the split."""
    dataset = scripting.dataset_from(arguments)
    scenario = parse_scenario(arguments.scenario, dataset.n_classes, arguments.setup)
    rows = splits.split(read_index(arguments.index), dataset, scenario, arguments.steps)
    lists = splits.manifest(rows)
    splits.write_split(arguments.output, rows)
    if arguments.manifest is not None:
        write_text(arguments.manifest, lists.to_csv(index=False, lineterminator="\n"))
    for step, subset, images, sha256 in lists.itertuples(index=False):
        log.info("step %d: %d %s images, SHA-256 of their names %s", step, images, subset, sha256)
    log.info("SHA-256 of the split: %s", splits.split_hash(rows))


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    scripting.add_dataset_flags(parser)
    parser.add_argument("--index", type=Path, required=True, help="index of the dataset")
    parser.add_argument("--scenario", required=True, help="such as 15-1")
    parser.add_argument("--setup", required=True, help=", ".join(SETUPS))
    parser.add_argument("--steps", type=at_least(0), nargs="+", required=True)
    parser.add_argument(
        "--output", type=scripting.output_file, required=True, help="split to write (CSV)"
    )
    parser.add_argument(
        "--manifest", type=scripting.output_file, help="counts and hashes of its lists (CSV)"
    )
    scripting.run(main, parser)
