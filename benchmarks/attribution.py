"""Attribution of the background's channels: Captum with 50 steps against the closed form.

    python benchmarks/attribution.py --backbone resnet101 --crop 256 --device cuda

Joint: one mask for all new classes of an image, which Captum finds by 50 forward passes and the
closed form by one. Per class: a mask for each class; Captum is run for each of them again, on
every image that shows it, the closed form once for all. The same channels must come out. What
Captum takes for one class is timed on some of the classes; ratios compare the time a class.

Captum makes its passes one by one, or all steps in a batch, which is what the published script does
and takes less time, where the memory suffices. On a GPU that is too small, as many steps as fit.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import networks
from benchmarks.given import Given
from benchmarks.losses import seconds_on
from benchmarks.on_gpu import start
from benchmarks.reference.attribution import NAME, chosen_channels
from benchmarks.table import Row, alternate, at_least, compared, plain
from ciss.attribution import attribute, channel_mask, scores
from ciss.models import NetworkConfig, SegmentationNetwork

GROUP = "Attribution"
#: images of the closed form's batch, as the workflow has it; Captum gets one of them a turn
BATCH = 16
#: batches that share the pass of the zero image; in a step it is hundreds
BATCHES = 2


class Inputs(NamedTuple):
    """A network after step 0, and images that show all new classes."""

    network: SegmentationNetwork
    images: Tensor
    labels: Tensor
    new: range


def inputs(config: NetworkConfig, crop: int, n_new: int, device: str) -> Inputs:
    """Draw a network of 101 outputs, and images in which each new class has a block."""
    network = networks.drawn(config, [101]).to(device)
    new = range(101, 101 + n_new)
    # A block of the feature map's size a class, the others void.
    side = crop // config.output_stride
    cells = torch.full((side * side,), 255)
    cells[:n_new] = torch.tensor(list(new))
    stride = config.output_stride
    blocks = cells.reshape(side, side).repeat_interleave(stride, 0).repeat_interleave(stride, 1)
    labels = blocks[None].repeat(BATCH, 1, 1).to(device)
    return Inputs(network, networks.images(BATCH, crop).to(device), labels, new)


def ours(given: Inputs, grouping: str, images: int = BATCH, batches: int = 1) -> Tensor:
    """Choose channels for all new classes, bool [1 or n, C], from some equal batches."""
    batch = (given.images[:images], given.labels[:images])
    found = attribute(given.network, [batch] * batches, given.new)
    return channel_mask(scores(found, grouping=grouping), 0.25)


def published(given: Inputs, classes: list[int] | range, steps: int, at_once: int = 1) -> Tensor:
    image, label = given.images[:1], given.labels[:1]
    return chosen_channels(given.network, image, label, classes, steps, at_once).cpu()


def check(given: Inputs, steps: int, at_once: int) -> None:
    """End where other channels come out, jointly or for a class."""
    joint, of_class = ours(given, "joint", 1)[0], ours(given, "per_class", 1)[0]
    first = [given.new[0]]
    if not (
        torch.equal(published(given, given.new, steps), joint)
        and torch.equal(published(given, given.new, steps, at_once), joint)
        and torch.equal(published(given, first, steps, at_once), of_class)
    ):
        raise SystemExit("attribution: the channels differ")


def steps_that_fit(given: Inputs, steps: int) -> int:
    """How many of Captum's steps a GPU's memory takes at once."""
    at_once = steps
    while at_once > 1 and not _fits(given, steps, at_once):
        at_once //= 2
    return at_once


def _fits(given: Inputs, steps: int, at_once: int) -> bool:
    try:
        published(given, given.new, steps, at_once)
    except torch.OutOfMemoryError:
        return False
    return True


def measure(given: Inputs, what: str, rounds: int, steps: int = 50) -> Iterator[Row]:
    """Rows of the joint mask and of masks for each class."""
    device = given.images.device.type
    at_once = steps_that_fit(given, steps)
    if device == "cuda":
        torch.cuda.empty_cache()
    check(given, steps, at_once)
    classes = cycle(given.new)
    times = alternate(
        {
            "joint": partial(published, given, given.new, steps),
            "joint at once": partial(published, given, given.new, steps, at_once),
            "our joint": partial(ours, given, "joint", BATCH, BATCHES),
            "class": lambda: published(given, [next(classes)], steps),
            "class at once": lambda: published(given, [next(classes)], steps, at_once),
            "our classes": partial(ours, given, "per_class", BATCH, BATCHES),
        },
        rounds,
        seconds_on(device),
        warm_up=device == "cuda",
    )
    images, n_new = BATCH * BATCHES, len(given.new)
    ours_joint = [s / images for s in times["our joint"]]
    ours_class = [s / images / n_new for s in times["our classes"]]
    note = (
        f"Attribution: {what}; {NAME} with {steps} steps, one image; the closed form on "
        f"{BATCHES} batches of {BATCH}, the zero image included. Captum makes a pass for each step "
        f"('one by one') or for {at_once} steps in a batch; the published script puts all in one. "
        f"An image that shows all {n_new} new classes; one that shows k of them costs the "
        "published way k times the joint mask."
    )
    ways = [
        ("joint mask, an image", ours_joint, "joint", 50),
        (f"{n_new} classes, an image and class", ours_class, "class", 1000),
    ]
    for name, mine, way, aim in ways:
        for how, theirs in (("one by one", way), (f"{at_once} steps at once", f"{way} at once")):
            row = compared(
                GROUP, f"{name}; {how}", "ms", times[theirs], mine, scale=1000, note=note
            )
            yield at_least(row, aim)


def rows(what: Given) -> Iterator[Row]:
    """ResNet-101 at a size that Captum does in seconds on a CPU."""
    torch.set_num_threads(1)
    if what.tiny:
        yield from measure(inputs(networks.TINY, 64, 3, "cpu"), "tiny", 1, steps=4)
        return
    given = inputs(NetworkConfig("resnet101"), 128, 50, "cpu")
    yield from measure(given, "ResNet-101 at 128 × 128", min(what.rounds, 3))


def main(arguments: argparse.Namespace) -> None:
    start(arguments.device, arguments.threads)
    config = NetworkConfig(arguments.backbone)
    given = inputs(config, arguments.crop, arguments.classes, arguments.device)
    what = f"{arguments.backbone} at {arguments.crop} × {arguments.crop} on {arguments.device}"
    print(plain(list(measure(given, what, arguments.rounds, arguments.steps))))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet101")
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--classes", type=int, default=50, help="new classes")
    parser.add_argument("--steps", type=int, default=50, help="of Captum's integral")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
