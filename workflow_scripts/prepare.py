"""Bring data sets into place: download, unpack, convert and check them, or say what to do."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401

from ciss import scripting
from ciss.flags import at_least
from ciss.prepare import Target, explain, prepare
from ciss.runtime import log


def main(arguments: argparse.Namespace) -> None:
    """Prepare each data set, or only explain it."""
    sources = scripting.sources_from(arguments)
    for name, kind, root in arguments.entry:
        dataset = Target(name, kind, Path(root).expanduser(), name in arguments.subsets)
        if arguments.explain:
            log.info("%s\n", explain(dataset, sources))
        else:
            prepare(dataset, sources, arguments.workers)


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    parser.add_argument(
        "--entry",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "KIND", "ROOT"),
        help="a data set; may be given several times",
    )
    parser.add_argument(
        "--subsets",
        nargs="*",
        default=[],
        metavar="NAME",
        help="data sets of which a part of the release is meant",
    )
    parser.add_argument("--explain", action="store_true", help="change nothing, only say")
    parser.add_argument(
        "--workers", type=at_least(0), default=1, help="processes that convert masks"
    )
    scripting.add_source_flags(parser)
    scripting.run(main, parser)
