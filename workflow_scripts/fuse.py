"""Fuse the model that a step has trained with the model of the step before."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401

from ciss import lineage, paths, scripting
from ciss.checkpoint import load_model, save_model
from ciss.fusion import endpoint_share, fuse
from ciss.progress import Progress
from ciss.runtime import log, source_revision


def main(arguments: argparse.Namespace) -> None:
    """Write the fused model, which later steps start from."""
    old, _ = load_model(arguments.old)
    new, metadata = load_model(arguments.new)
    lineage.check_trained(arguments.new, metadata)
    lineage.check_made_with(arguments.new, arguments.old)
    fused = fuse(arguments.fusion, old, new)
    n_old, n_new = old.n_classes, new.n_classes - old.n_classes
    log.info("%s: %.4f of the new model", arguments.fusion, endpoint_share(n_new, n_old))
    about = {**metadata, "fusion": arguments.fusion, "source": source_revision()}
    save_model(arguments.output, fused, about)
    # This job was ordered by somebody who knows that the training has ended.
    Progress(arguments.new.with_name(paths.PROGRESS), "").clear()


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    parser.add_argument("--old", type=Path, required=True, help="model of the step before")
    parser.add_argument("--new", type=Path, required=True, help="model that the step has trained")
    parser.add_argument("--fusion", required=True, help="how they are fused: ewf")
    parser.add_argument(
        "--output", type=scripting.output_file, required=True, help="fused model to write"
    )
    scripting.run(main, parser)
