"""Check every image and mask of a dataset, and tabulate which classes each mask shows."""

from __future__ import annotations

import argparse

import repository  # noqa: F401

from ciss import scripting
from ciss.flags import at_least
from ciss.index import build_index, write_index
from ciss.runtime import log, stop_request


def main(arguments: argparse.Namespace) -> None:
    """Write the index."""
    dataset = scripting.dataset_from(arguments)
    beside = arguments.output.with_suffix
    progress = beside(".progress")
    with stop_request() as request:
        index = build_index(
            dataset,
            workers=arguments.workers,
            is_subset=arguments.subset,
            progress=progress,
            full_report=beside(".problems.txt"),
            stop=lambda: request.reason,
        )
        write_index(arguments.output, index)
    # Not before: a disk that is full now must not cost the pass over all masks.
    progress.unlink(missing_ok=True)
    for subset, images in index.groupby("subset", sort=False).size().items():
        log.info("%s: %d images", subset, images)


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    scripting.add_dataset_flags(parser)
    scripting.add_files_flag(parser)
    parser.add_argument(
        "--subset", action="store_true", help="a part of a published release is meant"
    )
    parser.add_argument(
        "--output", type=scripting.output_file, required=True, help="index to write (CSV)"
    )
    parser.add_argument("--workers", type=at_least(0), default=1, help="processes that read masks")
    scripting.run(main, parser)
