"""Check every image and mask of a dataset, and tabulate which classes each mask shows."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401

from ciss import scripting
from ciss.index import build_index, write_index
from ciss.runtime import log


def main(arguments: argparse.Namespace) -> None:
    """Write the index."""
    index = build_index(scripting.dataset_from(arguments), workers=arguments.workers)
    write_index(arguments.output, index)
    log.info("indexed %d images", len(index))


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    scripting.add_dataset_flags(parser)
    parser.add_argument("--output", type=Path, required=True, help="index to write (CSV)")
    parser.add_argument("--workers", type=int, default=1, help="processes that read masks")
    scripting.run(main, parser)
