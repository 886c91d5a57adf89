"""Generate the `shapes` dataset: coloured shapes on textured ground, in VOC's layout."""

from __future__ import annotations

import argparse

import repository  # noqa: F401

from ciss import scripting
from ciss.datasets import open_dataset
from ciss.datasets.shapes import generate
from ciss.fingerprint import write_generated
from ciss.flags import at_least, seed


def main(arguments: argparse.Namespace) -> None:
    """Write the images, masks and lists."""
    generate(
        arguments.root,
        train=arguments.train,
        val=arguments.val,
        size=arguments.size,
        seed=arguments.seed,
        workers=arguments.workers,
    )
    write_generated(open_dataset(arguments.root.name, "shapes", arguments.root))


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    parser.add_argument(
        "--root", type=scripting.output_folder, required=True, help="folder to write"
    )
    parser.add_argument("--train", type=at_least(1), required=True, help="training images")
    parser.add_argument("--val", type=at_least(1), required=True, help="validation images")
    parser.add_argument("--size", type=at_least(1), required=True, help="side of an image, pixels")
    parser.add_argument("--seed", type=seed, required=True)
    parser.add_argument("--workers", type=at_least(0), default=1, help="processes that draw")
    scripting.run(main, parser)
