"""Solve a step of a closed-form method: one pass over its images, and no training.

Step 0 takes the trained model of step 0, puts random features between its head and new classifiers,
and solves for these. A later step takes the model of the step before and the sums that it kept.
With --processes N, or started by torchrun, N processes share the images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import repository  # noqa: F401
import torch
from torch import Tensor

from ciss import distributed, lineage, methods, ridge, scripting, splits
from ciss.checkpoint import header_of, load_model, save_model
from ciss.datasets import Dataset
from ciss.errors import CissError
from ciss.flags import add_flags, add_option_flag, at_least, from_flags, options_from, seed
from ciss.labels import training_lookup
from ciss.loading import TrainingImages, shared_reading, single_pass
from ciss.models import SegmentationNetwork
from ciss.ridge import Ridge
from ciss.runtime import Runtime, log, source_revision, start_torch


def starting_point(
    arguments: argparse.Namespace, dataset: Dataset, features: int, device: torch.device
) -> tuple[SegmentationNetwork, Ridge]:
    """Return the network that gives the features, and the sums of the steps before.

    Raises ``CissError`` where the files are not of the step before, or not of one run.
    """
    network, metadata = load_model(arguments.model)
    lineage.check_step(arguments.model, network, max(arguments.step - 1, 0))
    new = arguments.new_classes if arguments.step else 0
    lineage.check_classes(arguments.model, network, metadata, dataset, new)
    if arguments.step == 0:
        if network.n_classes != 1 + arguments.new_classes:
            raise CissError(
                f"{arguments.model} has {network.n_classes - 1} classes, not --new-classes "
                f"{arguments.new_classes}; give the model of step 0 of this scenario"
            )
        others = network.shape.keys() & {"preallocated", "unknown"}
        if others:
            raise CissError(
                f"{arguments.model} is a step 0 with {others.pop()} classes beside the usual; give "
                f"one of objective {methods.describe(arguments.method).base_objective}"
            )
        channels, classes = network.config.head_channels, list(network.classes_per_step)
        expansion = ridge.random_expansion(features, channels, arguments.seed)
        nothing = torch.zeros(features, sum(classes))
        network = ridge.with_head(network, expansion, nothing, classes)
        return network.to(device), Ridge.empty(features, sum(classes), device)
    if arguments.ridge is None:
        raise CissError("a step after 0 needs --ridge of the step before")
    before = ridge.load_ridge(arguments.ridge, device)
    lineage.check_one_run(arguments.ridge, header_of(arguments.ridge)[1], arguments.model, metadata)
    if network.expansion is None or len(network.expansion) != len(before.gram):
        raise CissError(
            f"{arguments.model} does not have the {len(before.gram)} random features of "
            f"{arguments.ridge}; pass two files of one step"
        )
    if len(before.gram) != features:
        raise CissError(
            f"{arguments.ridge} is of {len(before.gram)} random features, but option features is "
            f"{features}; solve step 0 with as many, or leave the option as it was"
        )
    return network.to(device), before.widened(arguments.new_classes)


def main(arguments: argparse.Namespace) -> None:
    """Write the model and the sums."""
    runtime = from_flags(arguments, Runtime)
    device = start_torch(runtime, same_sizes=True)
    dataset = scripting.dataset_from(arguments)
    if not methods.describe(arguments.method).closed_form:
        raise CissError(
            f"method {arguments.method} is not solved in closed form; train.py trains it"
        )
    options = methods.create(arguments.method, options_from(arguments), 0, 1).options
    network, before = starting_point(arguments, dataset, options["features"], device)
    n_classes = len(before.count)
    new = range(n_classes - arguments.new_classes, n_classes)
    rows = splits.read_images(arguments.split, arguments.step, "train")
    lookup = training_lookup(dataset.lookup, new)
    images = TrainingImages(dataset.root, rows, lookup, arguments.crop, arguments.seed)

    reading = shared_reading(runtime, device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels, _ in single_pass(images, arguments.batch, **reading):
            yield pixels, labels

    uncertainty = options["uncertainty"] if arguments.step else None
    sums = ridge.accumulate(before, network, batches(), uncertainty)
    if not distributed.is_main():
        return
    phi = sums.solve(options["gamma"])
    classes = [*network.classes_per_step, *([arguments.new_classes] if arguments.step else [])]
    assert network.expansion is not None
    solved = ridge.with_head(network, network.expansion, phi, classes)
    about = {
        "dataset": dataset.name,
        "classes": dataset.classes[:n_classes],
        "order": arguments.order,
        "kind": arguments.kind,
        "background": arguments.background,
        "values": arguments.values,
        "void": arguments.void,
        "new_classes": arguments.new_classes,
        "step": arguments.step,
        "method": arguments.method,
        "options": options,
        "seed": arguments.seed,
        "recipe": {"crop": arguments.crop},
        "images": len(images),
        "processes": distributed.size(),
        "source": source_revision(),
    }
    ridge.save_ridge(arguments.ridge_out, sums, about)
    save_model(arguments.output, solved, about)
    for label, before_now, now in zip(
        range(n_classes), before.count.tolist(), sums.count.tolist(), strict=True
    ):
        log.info("%s: %d positions, %d in all", dataset.classes[label], now - before_now, now)
    log.info("mean squared error %.4f", sums.error(phi, options["gamma"]))


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    scripting.add_dataset_flags(parser)
    parser.add_argument("--model", type=Path, required=True, help="model of this step 0, or before")
    parser.add_argument("--ridge", type=Path, help="sums of the step before (steps after 0)")
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--step", type=at_least(0), required=True)
    parser.add_argument(
        "--new-classes", type=at_least(1), required=True, help="classes of this step"
    )
    parser.add_argument("--method", required=True, help="a closed-form method: cfs")
    add_option_flag(parser, "method")
    parser.add_argument("--seed", type=seed, required=True)
    scripting.add_crop_flag(parser, "side of the crops")
    parser.add_argument("--batch", type=at_least(1), default=16, help="images in a batch")
    parser.add_argument(
        "--output", type=scripting.output_file, required=True, help="model to write"
    )
    parser.add_argument(
        "--ridge-out", type=scripting.output_file, required=True, help="sums to write"
    )
    add_flags(parser, Runtime)
    scripting.run(main, parser, shared=True)
