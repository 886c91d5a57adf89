"""One training iteration of each method, as published and here.

    python benchmarks/training.py --backbone resnet50 --crop 512 --methods mib plop

Forward pass of student and teacher, losses, backward pass, optimiser's step; the same network,
batch and precision. After an iteration both must have the same loss and the same parameters. The
larger the network, the less of an iteration the losses are: on a CPU a small one is timed.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import networks
from benchmarks.given import Given
from benchmarks.losses import CLASSES
from benchmarks.reference import training as reference
from benchmarks.table import Row, alternate, compared, plain
from ciss import methods
from ciss.datasets.base import UNKNOWN
from ciss.models import NetworkConfig, SegmentationNetwork
from ciss.runtime import keep_memory
from ciss.training import Recipe, Training

GROUP = "One training iteration"
LR = 1e-3


def begin(
    name: str, config: NetworkConfig, classes: tuple[int, int], batch: int, crop: int
) -> networks.Step:
    """Draw the networks of a method's step and a batch; ``classes``: old and new outputs."""
    keep_memory()  # as every job does on a CPU
    step = networks.step(config, classes, batch, crop, **networks.extras_of(name, *classes))
    if methods.method_class(name).has_unknown:
        upper = step.labels[:, : crop // 2]
        upper[upper == 0] = UNKNOWN
        with torch.no_grad():
            for each in (step.network, step.teacher):
                for classifier in (*each.classifiers, each.origin):
                    # Large logits have one and the same sigmoid, of which none is the largest.
                    classifier.weight.mul_(0.1)
    return step


def ours(name: str, step: networks.Step) -> Training:
    n_old = step.teacher.n_classes
    method = methods.create(name, {}, n_old, step.network.n_classes - n_old)
    method.load_importances(step.importances, dict(step.teacher.named_parameters()))
    method.load_state_dict({"thresholds": torch.full((n_old,), 0.002)} if name == "plop" else {})
    recipe = Recipe(epochs=1, lr=LR, batch=len(step.images), crop=step.images.shape[2])
    network, teacher = copy.deepcopy(step.network), copy.deepcopy(step.teacher)
    # Few of many iterations: the learning rate hardly falls.
    return Training(network, teacher, method, recipe, 10**6, torch.device("cpu"))


def published(name: str, step: networks.Step) -> reference.Training:
    network, teacher = copy.deepcopy(step.network), copy.deepcopy(step.teacher)
    return reference.Training(name, network, teacher, LR, step.importances)


def check(name: str, step: networks.Step, mine: Training, theirs: reference.Training) -> None:
    """Train both on the batch once; end where loss or parameters differ."""
    terms, _ = mine.update(step.images, step.labels)
    loss = float(sum(term for key, term in terms.items() if key != "penalty"))
    expected = theirs.update(step.images, step.labels)
    before = _flat(step.network)
    moved, expected_move = _flat(mine.network) - before, _flat(theirs.network) - before
    difference = float((moved - expected_move).norm() / expected_move.norm())
    if abs(loss - expected) > 1e-4 * abs(expected) or difference > 1e-3:
        raise SystemExit(f"{name}: {loss} and {expected} differ, parameters by {difference:.1e}")


def _flat(network: SegmentationNetwork) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


def measure(name: str, step: networks.Step, rounds: int) -> Row:
    """Time an iteration of a method."""
    mine, theirs = ours(name, step), published(name, step)
    check(name, step, mine, theirs)
    times = alternate(
        {
            "published": lambda: theirs.update(step.images, step.labels),
            "ours": lambda: mine.update(step.images, step.labels),
        },
        rounds,
        warm_up=False,
    )
    batch, crop = len(step.images), step.images.shape[2]
    old, new = step.network.classes_per_step
    return compared(
        GROUP,
        f"{name}, {old} + {new} classes",
        "ms",
        times["published"],
        times["ours"],
        scale=1000,
        note=f"Iteration: {step.network.config.backbone}, batch {batch}, crop {crop}, float32.",
    )


def rows(what: Given) -> Iterator[Row]:
    """All methods with VOC 15-5's classes, MiB also with ADE 100-50's."""
    torch.set_num_threads(1)
    config = networks.TINY if what.tiny else NetworkConfig("resnet18")
    batch, crop = (2, 64) if what.tiny else (2, 256)
    for name in methods.trained_names():
        if name in reference.NAMES:
            yield measure(name, begin(name, config, (16, 5), batch, crop), what.rounds)
    yield measure("mib", begin("mib", config, CLASSES["ade"], batch, crop), what.rounds)


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads)
    old, new = arguments.classes
    config, sizes = NetworkConfig(arguments.backbone), ((old, new), arguments.batch, arguments.crop)
    steps = {name: begin(name, config, *sizes) for name in arguments.methods}
    print(plain([measure(name, step, arguments.rounds) for name, step in steps.items()]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=reference.NAMES, choices=reference.NAMES)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--classes", nargs=2, type=int, default=(16, 5), help="old and new outputs")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
