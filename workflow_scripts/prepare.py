"""Bring data sets into place: download, unpack, convert and check them, or say what to do."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import repository  # noqa: F401

from ciss import scripting
from ciss.prepare import Sources, Target, explain, prepare
from ciss.runtime import log


def main(arguments: argparse.Namespace) -> None:
    """Prepare each data set, or only explain it."""
    sources = Sources(arguments.archives, arguments.mirror, dict(arguments.checksums))
    for name, kind, root in arguments.entry:
        dataset = Target(name, kind, Path(root).expanduser())
        if arguments.explain:
            log.info("%s\n", explain(dataset, sources))
        else:
            prepare(dataset, sources, arguments.workers)


def checksum(text: str) -> tuple[str, str]:
    """Read ``NAME=SHA256``."""
    name, _, digest = text.rpartition("=")
    if not name or not re.fullmatch("[0-9a-fA-F]{64}", digest):
        raise argparse.ArgumentTypeError(f"'{text}' is not FILE=SHA256 with 64 hexadecimal digits")
    return name, digest.lower()


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
    parser.add_argument("--explain", action="store_true", help="change nothing, only say")
    parser.add_argument("--archives", type=Path, default=Path("data/archives"), help="their folder")
    parser.add_argument("--mirror", default="", help="address or folder in place of the servers")
    parser.add_argument(
        "--checksums",
        type=checksum,
        nargs="*",
        default=[],
        metavar="FILE=SHA256",
        help="digests to expect in place of the published ones",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes that convert masks")
    scripting.run(main, parser)
