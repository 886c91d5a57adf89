"""Count how a model labels the test images of its step: the confusion matrix.

With --processes N, or started by torchrun, N processes share the images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import repository  # noqa: F401

from ciss import distributed, lineage, paths, scripting, splits
from ciss.checkpoint import load_model
from ciss.evaluation import evaluate
from ciss.flags import add_flags, at_least, from_flags
from ciss.labels import evaluation_lookup
from ciss.loading import EvaluationImages, evaluation_batches, shared_reading
from ciss.metrics import iou, mean_iou, write_confusion
from ciss.progress import Progress
from ciss.runtime import Runtime, log, start_torch


def main(arguments: argparse.Namespace) -> None:
    """Write the confusion matrix."""
    runtime = from_flags(arguments, Runtime)
    device = start_torch(runtime, same_sizes=arguments.mode == "crop")
    dataset = scripting.dataset_from(arguments)
    network, metadata = load_model(arguments.model)
    lineage.check_step(arguments.model, network, arguments.step)
    if not lineage.is_trained(metadata):
        log.warning("%s is a network before its training", arguments.model)
    lineage.check_classes(arguments.model, network, metadata, dataset)
    seen = range(1, network.n_classes)
    rows = splits.read_images(arguments.split, arguments.step, arguments.images)
    images = EvaluationImages(
        dataset.root,
        rows,
        evaluation_lookup(dataset.lookup, seen),
        arguments.crop,
        arguments.mode,
    )
    batches = evaluation_batches(images, arguments.batch, **shared_reading(runtime, device))
    confusion = evaluate(network, ((pixels, labels) for pixels, labels, _ in batches), device)
    if not distributed.is_main():
        return
    about = {
        "dataset": dataset.name,
        "step": arguments.step,
        "images": len(images),
        "list": arguments.images,
        "mode": arguments.mode,
        "crop": arguments.crop,
        "model": metadata,
    }
    # This job was ordered by somebody who knows that the training has ended.
    Progress(arguments.model.with_name(paths.PROGRESS), "").clear()
    write_confusion(arguments.output, confusion, dataset.classes[: network.n_classes], about)
    log.info("mIoU %.2f %% over %d images", mean_iou(iou(confusion)), len(images))


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    scripting.add_dataset_flags(parser)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--step", type=at_least(0), required=True)
    scripting.add_crop_flag(parser)
    parser.add_argument("--mode", required=True, help="crop or full")
    parser.add_argument("--images", default="test", help="list of the split: test or val")
    parser.add_argument("--batch", type=at_least(1), default=16, help="crops in a batch")
    parser.add_argument(
        "--output", type=scripting.output_file, required=True, help="confusion matrix (CSV)"
    )
    add_flags(parser, Runtime)
    scripting.run(main, parser, shared=True)
