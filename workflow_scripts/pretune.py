"""Learn a step's new classifiers on the frozen model of the step before, to start training from.

Interrupted by SIGTERM, SIGINT or SIGUSR1, it saves its progress and leaves with status 1;
the same command goes on from there. With --processes N, or started by torchrun, N processes share
every batch.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict
from pathlib import Path

import repository  # noqa: F401
import torch

from ciss import distributed, lineage, scripting, splits
from ciss.checkpoint import load_model
from ciss.files import remove_partial
from ciss.flags import add_flags, add_option_flag, at_least, from_flags, options_from, seed
from ciss.labels import training_lookup
from ciss.loading import TrainingImages, batches_per_epoch
from ciss.models import widened
from ciss.pretuning import learned, pretuning, save_classifiers
from ciss.progress import Progress, identity
from ciss.runtime import Runtime, log, source_revision, start_torch, stop_request
from ciss.training import Recipe, train
from ciss.transfer import draw_of


def main(arguments: argparse.Namespace) -> None:
    """Write the learned classifiers of the new classes and of the background."""
    runtime, recipe = from_flags(arguments, Runtime), from_flags(arguments, Recipe)
    device = start_torch(runtime, same_sizes=True)
    torch.manual_seed(arguments.seed)
    dataset = scripting.dataset_from(arguments)
    rows = splits.read_images(arguments.split, arguments.step, "train")
    before, metadata = load_model(arguments.model)
    lineage.check_step(arguments.model, before, arguments.step - 1)
    lineage.check_trained(arguments.model, metadata)
    lineage.check_classes(arguments.model, before, metadata, dataset, arguments.new_classes)
    made_with = lineage.made_with(arguments.model)
    network = widened(before, arguments.new_classes, draw_of(arguments.seed, arguments.step))
    new = range(before.n_classes, network.n_classes)
    lookup = training_lookup(dataset.lookup, new)
    images = TrainingImages(dataset.root, rows, lookup, recipe.crop, arguments.seed)
    name, options = arguments.initialisation, options_from(arguments)
    iterations = recipe.epochs * batches_per_epoch(len(images), recipe.batch)
    training = pretuning(network, name, options, recipe, iterations, device)
    about = {
        "dataset": arguments.dataset,
        "data": arguments.data_state,
        "labels": hashlib.sha256(lookup.tobytes()).hexdigest(),
        "split": splits.split_hash(rows.assign(step=arguments.step, subset="train")),
        "step": arguments.step,
        "initialisation": name,
        "options": options,
        "seed": arguments.seed,
        "recipe": asdict(recipe),
        "precision": str(training.dtype).removeprefix("torch."),
        "model": hashlib.sha256(arguments.model.read_bytes()).hexdigest(),
    }
    log.info("step %d: %s of %s", arguments.step, name, ", ".join(dataset.classes[i] for i in new))
    log.info("%d images, %d iterations on %s", len(images), iterations, device)
    progress = Progress(arguments.progress, identity(about))
    remove_partial(arguments.output)
    with stop_request(runtime.minutes) as stop:
        images.cache = scripting.cache_from(arguments, runtime.workers, stop)
        train(training, images, runtime, progress, stop)
        if distributed.is_main():
            about |= {"images": len(images), "source": source_revision(), **made_with}
            save_classifiers(arguments.output, learned(training), about)
            progress.finish()


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    scripting.add_dataset_flags(parser)
    parser.add_argument("--model", type=Path, required=True, help="model of the step before")
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--step", type=at_least(1), required=True, help="the step that will learn")
    parser.add_argument(
        "--new-classes", type=at_least(1), required=True, help="classes it will learn"
    )
    parser.add_argument("--initialisation", required=True, help="one that is learned: nest")
    add_option_flag(parser, "initialisation")
    parser.add_argument("--seed", type=seed, required=True)
    parser.add_argument(
        "--output", type=scripting.output_file, required=True, help="classifiers to write"
    )
    scripting.add_reading_flags(parser)
    add_flags(parser, Recipe)
    add_flags(parser, Runtime)
    scripting.run(main, parser, shared=True)
