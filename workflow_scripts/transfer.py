"""Widen a model by a step's new classes and initialise their classifier."""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401

from ciss import lineage, paths, scripting, transfer
from ciss.attribution import load_attribution
from ciss.checkpoint import load_model, save_model
from ciss.flags import add_option_flag, at_least, options_from, seed
from ciss.models import widened
from ciss.pretuning import load_classifiers
from ciss.progress import Progress
from ciss.runtime import log, source_revision


def main(arguments: argparse.Namespace) -> None:
    """Write the network that the step's training starts from."""
    network, metadata = load_model(arguments.model)
    lineage.check_step(arguments.model, network, arguments.step - 1)
    lineage.check_trained(arguments.model, metadata)
    for path in (arguments.attribution, arguments.pretuned):
        if path is not None:
            lineage.check_made_with(path, arguments.model)
    draw = transfer.draw_of(arguments.seed, arguments.step)
    wider = widened(network, arguments.new_classes, draw)
    given = None if arguments.attribution is None else load_attribution(arguments.attribution)
    learned = None if arguments.pretuned is None else load_classifiers(arguments.pretuned)
    options = options_from(arguments)
    masks = transfer.initialise(wider, arguments.initialisation, options, given, draw, learned)
    if masks is not None:
        log.info("channels moved for each class: %s", masks.sum(1).tolist())
    about = {
        "initialisation": arguments.initialisation,
        "options": options,
        "seed": arguments.seed,
        "step": arguments.step,
        "before": metadata,
        "source": source_revision(),
    }
    save_model(arguments.output, wider, about)
    if arguments.pretuned is not None:
        # This job was ordered by somebody who knows that the pre-tuning has ended.
        name = paths.PRETUNING_PROGRESS.format(name=arguments.pretuned.stem)
        Progress(arguments.pretuned.with_name(name), "").clear()


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model of the step before")
    parser.add_argument("--attribution", type=Path, help="attribution for this step's classes")
    parser.add_argument("--pretuned", type=Path, help="classifiers that pretune.py has learned")
    parser.add_argument("--new-classes", type=at_least(1), required=True)
    parser.add_argument("--step", type=at_least(1), required=True)
    parser.add_argument("--seed", type=seed, required=True)
    parser.add_argument("--initialisation", required=True, help="random, mib, awt …")
    add_option_flag(parser, "initialisation")
    parser.add_argument(
        "--output", type=scripting.output_file, required=True, help="network to write"
    )
    scripting.run(main, parser)
