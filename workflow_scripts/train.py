"""Train one step: step 0 from scratch or ImageNet weights, a later one from a widened network.

Interrupted by SIGTERM, SIGINT or SIGUSR1, it saves its progress and leaves with status 1;
the same command goes on from there. With --processes N, or started by torchrun, N processes share
every batch.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import repository  # noqa: F401
import pandas as pd
import torch
from torch import nn

from ciss import distributed, exemplars, freezing, lineage, methods, saliency, scripting, splits
from ciss.checkpoint import header_of, load_model, load_tensors, save_model, save_tensors
from ciss.datasets.base import UNKNOWN, Dataset
from ciss.errors import CissError
from ciss.files import remove_partial, write_text
from ciss.flags import add_flags, add_option_flag, at_least, from_flags, options_from, seed
from ciss.labels import training_lookup
from ciss.loading import Lookup, TrainingImages, batches_per_epoch, micro_batches
from ciss.methods.base import Method
from ciss.models import NetworkConfig, SegmentationNetwork, initialise
from ciss.models.pretrained import load_imagenet
from ciss.progress import Progress, identity
from ciss.runtime import Runtime, log, source_revision, start_torch, stop_request
from ciss.training import Recipe, Training, train


def starting_point(
    arguments: argparse.Namespace, dataset: Dataset
) -> tuple[SegmentationNetwork, SegmentationNetwork | None, Method]:
    """Return the network to train, its teacher and the method; at step 0 there is no teacher."""
    if arguments.step > 0:
        network, teacher = widened_and_teacher(arguments, dataset)
        return network, teacher, make_method(arguments, teacher.n_classes, arguments.new_classes)
    if not 0 < arguments.new_classes <= dataset.n_classes - arguments.preallocated:
        beside = f" and --preallocated {arguments.preallocated}" if arguments.preallocated else ""
        raise CissError(
            f"--new-classes {arguments.new_classes}{beside} do not fit dataset '{dataset.name}', "
            f"which has {dataset.n_classes} classes"
        )
    method = make_method(arguments, 0, 1 + arguments.new_classes)
    network = SegmentationNetwork(
        from_flags(arguments, NetworkConfig),
        [method.n_new],
        preallocated=arguments.preallocated,
        **method.network_extras,
    )
    initialise(network, arguments.seed)
    if arguments.weights is not None:
        log.info("%s", load_imagenet(network, arguments.weights))
    return network, None, method


def widened_and_teacher(
    arguments: argparse.Namespace, dataset: Dataset
) -> tuple[SegmentationNetwork, SegmentationNetwork]:
    """Read the files that a later step starts from.

    Raises ``CissError`` where they are not of the step before, or do not belong together.
    """
    init, before = arguments.init, arguments.teacher
    if init is None or before is None:
        raise CissError("a step after 0 needs --init and --teacher")
    network, (teacher, metadata) = load_model(init)[0], load_model(before)
    lineage.check_step(before, teacher, arguments.step - 1)
    lineage.check_classes(before, teacher, metadata, dataset, arguments.new_classes)
    lineage.check_start(init, network, before, teacher, arguments.new_classes)
    objective = methods.describe(arguments.method).base_objective
    if objective == methods.PREALLOCATED and teacher.future is None:
        raise CissError(
            f"{before} has no classifiers of classes to come, from which method "
            f"{arguments.method} starts; give a run of which step 0 has the objective {objective}"
        )
    return network, teacher


def make_method(arguments: argparse.Namespace, n_old: int, n_new: int) -> Method:
    """Return the method of a later step, or step 0's training under a base objective."""
    if arguments.step == 0:
        return methods.create_base(arguments.method, n_new, options_from(arguments))
    if methods.describe(arguments.method).closed_form:
        raise CissError(f"method {arguments.method} trains no later step; solve.py solves it")
    if arguments.importances is None and methods.describe(arguments.method).keeps_importances:
        raise CissError(f"method {arguments.method} needs --importances of the step before")
    return methods.create(arguments.method, options_from(arguments), n_old, n_new)


def importances_to(
    method: Method, path: Path, teacher_path: Path, teacher: nn.Module, device: torch.device
) -> None:
    """Give a method the importances and the parameters of the step before, on the device."""
    importances, about = load_tensors(path)
    lineage.check_one_run(path, about, teacher_path, header_of(teacher_path)[1]["metadata"])
    method.load_importances(
        {name: value.to(device) for name, value in importances.items()},
        {name: value.to(device) for name, value in teacher.named_parameters()},
    )


def check_extras(method: Method, network: SegmentationNetwork) -> None:
    """Raise ``CissError`` where the network is not what the method's step 0 makes."""
    extras = {name for name in ("unknown", "hidden") if network.shape.get(name)}
    wanted = {name for name, has in method.network_extras.items() if has}
    if wanted != extras:
        has, needs = (", ".join(sorted(names)) or "nothing" for names in (extras, wanted))
        raise CissError(
            f"beside the usual the network has {has}, and the method needs {needs}: start from "
            "the step 0 of the method's own objective and options"
        )
    if "unknown" in wanted and network.n_classes > UNKNOWN:
        raise CissError(
            f"{network.n_classes} classes leave no label for the unknown, {UNKNOWN}: choose fewer "
            "classes, or a method that does not need it"
        )


def exemplars_of(arguments: argparse.Namespace) -> pd.DataFrame | None:
    """Return the images of earlier steps that this one trains on again, if it has any."""
    if arguments.exemplars is None:
        return None
    return exemplars.select(exemplars.read_exemplars(arguments.exemplars), arguments.step)


def saliency_of(
    method: Method, arguments: argparse.Namespace, images: TrainingImages
) -> saliency.Saliency | None:
    """Return what says which background is unknown, for methods that tell it apart."""
    options = method.options
    if "unknown" not in method.network_extras:
        return None
    source = options["saliency"] if arguments.saliency_maps is None else arguments.saliency_maps
    found = saliency.saliency(str(source), options["saliency_threshold"])
    if isinstance(found, saliency.Maps):
        found.check(image for image, _ in images.pairs)
    return found


def facts(
    arguments: argparse.Namespace, recipe: Recipe, rows: pd.DataFrame, lookup: Lookup
) -> dict[str, Any]:
    """Return what decides the result: it names the progress and goes into the model's header.

    ``lookup`` is what the flags of the data set make of a mask's values: several spellings of one
    are one training.
    """
    return {
        "dataset": arguments.dataset,
        "classes": arguments.classes,
        "order": arguments.order,
        "data": arguments.data_state,
        "new_classes": arguments.new_classes,
        "labels": hashlib.sha256(lookup.tobytes()).hexdigest(),
        "step": arguments.step,
        "method": arguments.method,
        "options": options_from(arguments),
        "seed": arguments.seed,
        "recipe": asdict(recipe),
        "network": asdict(from_flags(arguments, NetworkConfig)) if arguments.step == 0 else None,
        "split": splits.split_hash(rows.assign(step=arguments.step, subset="train")),
        **({"preallocated": arguments.preallocated} if arguments.preallocated else {}),
    }


def main(arguments: argparse.Namespace) -> None:
    """Train and write the model, its history and, where the method keeps them, importances."""
    runtime, recipe = from_flags(arguments, Runtime), from_flags(arguments, Recipe)
    device = start_torch(runtime, same_sizes=True)
    torch.manual_seed(arguments.seed)
    dataset = scripting.dataset_from(arguments)
    rows = splits.read_images(arguments.split, arguments.step, "train")
    network, teacher, method = starting_point(arguments, dataset)
    made_with = lineage.made_with(arguments.teacher)
    n_old = 0 if teacher is None else teacher.n_classes
    new = range(max(n_old, 1), network.n_classes)
    lookup = training_lookup(dataset.lookup, new)
    images = TrainingImages(dataset.root, rows, lookup, recipe.crop, arguments.seed)
    remembered = exemplars_of(arguments)
    if remembered is not None:
        known = exemplars.lookups(dataset, remembered["known"], network.classes_per_step)
        images.remember(remembered, known)
        method.has_exemplars = True
        method.exemplar_confidence = arguments.memory_confidence
    check_extras(method, network)
    images.saliency = saliency_of(method, arguments, images)
    if arguments.importances is not None and teacher is not None:
        importances_to(method, arguments.importances, arguments.teacher, teacher, device)
    iterations = recipe.epochs * batches_per_epoch(len(images), recipe.batch)
    frozen = freezing.old_classifiers(network.classes_per_step) if arguments.freeze else []
    training = Training(network, teacher, method, recipe, iterations, device, frozen)
    # What `auto` means depends on the device: progress in another precision is another recipe's.
    precision = str(training.dtype).removeprefix("torch.")
    about = {**facts(arguments, recipe, rows, lookup), "precision": precision}
    if remembered is not None:
        about["exemplars"] = exemplars.exemplars_hash(remembered)
        if arguments.memory_confidence is not None:
            about["memory_confidence"] = arguments.memory_confidence
    if frozen:
        about["frozen"] = frozen
    names = ", ".join(dataset.classes[label] for label in new)
    log.info("step %d: %s, classes %s", arguments.step, arguments.method, names)
    log.info("%d images, %d iterations on %s in %s", len(images), iterations, device, precision)
    together = micro_batches(len(images), recipe.batch, recipe.accumulate)
    log.info(
        "batches of %d images, batch norm over %d of them; processes: %d",
        sum(together),
        min(together),
        distributed.size(),
    )
    if remembered is not None:
        log.info("half of each batch from %d images of earlier steps", len(remembered))
    progress = Progress(arguments.progress, identity({**about, "init": digest(arguments)}))
    for path in (arguments.output, arguments.history, arguments.importances_out):
        if path is not None:
            remove_partial(path)
    with stop_request(runtime.minutes) as stop:
        images.cache = scripting.cache_from(arguments, runtime.workers, stop)
        history = train(training, images, runtime, progress, stop)
        if not distributed.is_main():
            return
        metadata = {
            **about,
            "classes": dataset.classes[: network.n_classes],
            "kind": arguments.kind,
            "background": arguments.background,
            "values": arguments.values,
            "void": arguments.void,
            "images": len(images),
            "processes": distributed.size(),
            "bn_batch": min(together),
            "source": source_revision(),
            **made_with,
        }
        write_text(arguments.history, history.to_csv(index=False))
        if arguments.importances_out is not None:
            save_tensors(arguments.importances_out, method.importances(network), metadata)
        save_model(arguments.output, network, metadata)
        progress.finish()


def digest(arguments: argparse.Namespace) -> list[str]:
    """Return checksums of the files that a run starts from."""
    given = (arguments.init, arguments.teacher, arguments.importances, arguments.weights)
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in given if path is not None]


if __name__ == "__main__":
    parser = scripting.parser(__doc__)
    scripting.add_dataset_flags(parser)
    parser.add_argument("--split", type=Path, required=True)
    parser.add_argument("--step", type=at_least(0), required=True)
    parser.add_argument(
        "--method",
        required=True,
        help=f"at step 0 the objective: {', '.join(methods.BASE_OBJECTIVES)}",
    )
    add_option_flag(parser, "method")
    parser.add_argument(
        "--freeze",
        choices=methods.COMMON["freeze"][1:],
        help="what stays as the step before left it",
    )
    parser.add_argument(
        "--saliency-maps",
        type=Path,
        help="folder of maps, in place of the method's option saliency",
    )
    parser.add_argument("--seed", type=seed, required=True)
    parser.add_argument(
        "--new-classes", type=at_least(1), required=True, help="classes of this step"
    )
    parser.add_argument(
        "--preallocated",
        type=at_least(0),
        default=0,
        help="classes to come that have a classifier already (step 0)",
    )
    parser.add_argument("--init", type=Path, help="widened network to start from (steps after 0)")
    parser.add_argument("--teacher", type=Path, help="model of the step before (steps after 0)")
    parser.add_argument("--weights", type=Path, help="encoder to start from (step 0)")
    parser.add_argument("--exemplars", type=Path, help="images of earlier steps to train on again")
    parser.add_argument(
        "--memory-confidence",
        type=float,
        help="from which the teacher's class is the label of their background (default: never)",
    )
    parser.add_argument("--importances", type=Path, help="importances of the step before")
    parser.add_argument(
        "--importances-out", type=scripting.output_file, help="importances to write"
    )
    parser.add_argument(
        "--output", type=scripting.output_file, required=True, help="model to write"
    )
    parser.add_argument(
        "--history", type=scripting.output_file, required=True, help="table of epochs to write"
    )
    scripting.add_reading_flags(parser)
    add_flags(parser, NetworkConfig)
    add_flags(parser, Recipe)
    add_flags(parser, Runtime)
    scripting.run(main, parser, shared=True)
