"""Attribute the background classifier's channels on the images of the next step's classes.

With --processes N, or started by torchrun, N processes share the images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import repository  # noqa: F401
from torch import Tensor

from ciss import distributed, lineage, scripting, splits
from ciss.attribution import attribute, save_attribution
from ciss.checkpoint import load_model
from ciss.flags import add_flags, at_least, from_flags
from ciss.labels import training_lookup
from ciss.loading import EvaluationImages, evaluation_batches, shared_reading, to_network_input
from ciss.runtime import Runtime, log, source_revision, start_torch


def main(arguments: argparse.Namespace) -> None:
    """Write the attribution, from which masks for every option can be made."""
    runtime = from_flags(arguments, Runtime)
    device = start_torch(runtime, same_sizes=True)
    dataset = scripting.dataset_from(arguments)
    network, metadata = load_model(arguments.model)
    lineage.check_step(arguments.model, network, arguments.step - 1)
    lineage.check_trained(arguments.model, metadata)
    lineage.check_classes(arguments.model, network, metadata, dataset, arguments.new_classes)
    made_with = lineage.made_with(arguments.model)
    new = range(network.n_classes, network.n_classes + arguments.new_classes)
    rows = splits.read_images(arguments.split, arguments.step, "train")
    # The published code attributes random crops; whole centres make the result repeatable.
    lookup = training_lookup(dataset.lookup, new)
    images = EvaluationImages(dataset.root, rows, lookup, arguments.crop)

    reading = shared_reading(runtime, device)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels, _ in evaluation_batches(images, arguments.batch, **reading):
            yield to_network_input(pixels.to(device)), labels.to(device).long()

    made = attribute(
        network.to(device), batches(), new, method=arguments.method, n_steps=arguments.n_steps
    )
    if not distributed.is_main():
        return
    save_attribution(
        arguments.output,
        made,
        {
            "method": arguments.method,
            "crop": arguments.crop,
            "source": source_revision(),
            **made_with,
        },
    )
    for label, count in zip(new, made.count.tolist(), strict=True):
        log.info("%s: %d of %d images", dataset.classes[label], count, len(images))


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    scripting.add_dataset_flags(parser)
    parser.add_argument("--model", type=Path, required=True, help="model of the step before")
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--step", type=at_least(1), required=True, help="the step that will learn")
    parser.add_argument(
        "--new-classes", type=at_least(1), required=True, help="classes it will learn"
    )
    scripting.add_crop_flag(parser)
    parser.add_argument("--method", default="closed_form", help="closed_form or captum")
    parser.add_argument(
        "--n-steps", type=at_least(1), default=50, help="steps of captum's integral"
    )
    parser.add_argument("--batch", type=at_least(1), default=16, help="images in a batch")
    parser.add_argument(
        "--output", type=scripting.output_file, required=True, help="attribution to write"
    )
    add_flags(parser, Runtime)
    scripting.run(main, parser, shared=True)
