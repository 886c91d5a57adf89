"""Attribution of the background's channels: Captum with 50 steps against the closed form.

    python benchmarks/attribution.py --backbone resnet101 --crop 256 --device cuda

Joint: one mask for all new classes of an image, which Captum finds by 50 forward passes and the
closed form by one. Per class: a mask for each class; Captum is run for each of them again, on
every image that shows it, the closed form once for all. The same channels must come out. What
Captum takes for one class is timed on some of the classes; ratios compare the time a class.
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
from benchmarks.reference.attribution import NAME, chosen_channels
from benchmarks.table import Row, alternate, at_least, compared, plain
from ciss.attribution import attribute, channel_mask, scores
from ciss.models import NetworkConfig, SegmentationNetwork
from ciss.runtime import Runtime, start_torch

GROUP = "Attribution"
#: images of the closed form's batch; Captum gets one of them a turn
BATCH = 8


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


def ours(given: Inputs, grouping: str, images: int = BATCH) -> Tensor:
    """Choose channels for all new classes, bool [1 or n, C], from one batch."""
    batch = (given.images[:images], given.labels[:images])
    found = attribute(given.network, [batch], given.new)
    return channel_mask(scores(found, grouping=grouping), 0.25)


def published(given: Inputs, classes: list[int] | range, steps: int) -> Tensor:
    return chosen_channels(given.network, given.images[:1], given.labels[:1], classes, steps).cpu()


def check(given: Inputs, steps: int) -> None:
    """End where other channels come out, jointly or for a class."""
    same = torch.equal(published(given, given.new, steps), ours(given, "joint", 1)[0])
    first = given.new[0]
    if not (same and torch.equal(published(given, [first], steps), ours(given, "per_class", 1)[0])):
        raise SystemExit("attribution: the channels differ")


def measure(given: Inputs, what: str, rounds: int, steps: int = 50) -> Iterator[Row]:
    """Rows of the joint mask and of masks for each class."""
    device = given.images.device.type
    check(given, steps)
    classes = cycle(given.new)
    times = alternate(
        {
            "joint": partial(published, given, given.new, steps),
            "our joint": partial(ours, given, "joint"),
            "class": lambda: published(given, [next(classes)], steps),
            "our classes": partial(ours, given, "per_class"),
        },
        rounds,
        seconds_on(device),
        warm_up=device == "cuda",
    )
    ours_joint = [s / BATCH for s in times["our joint"]]
    ours_class = [s / BATCH / len(given.new) for s in times["our classes"]]
    note = (
        f"Attribution: {what}; {NAME} with {steps} steps, one image; the closed form on a batch of "
        f"{BATCH}, the zero image included. An image that shows all {len(given.new)} new classes; "
        "one that shows k of them costs the published way k times the joint mask."
    )
    joint = compared(
        GROUP, "joint mask, an image", "ms", times["joint"], ours_joint, scale=1000, note=note
    )
    yield at_least(joint, 50)
    of_each = compared(
        GROUP,
        f"{len(given.new)} classes, an image and class",
        "ms",
        times["class"],
        ours_class,
        scale=1000,
        note=note,
    )
    yield at_least(of_each, 1000)


def rows(what: Given) -> Iterator[Row]:
    """ResNet-101 at a size that Captum does in seconds on a CPU."""
    torch.set_num_threads(1)
    if what.tiny:
        yield from measure(inputs(networks.TINY, 64, 3, "cpu"), "tiny", 1, steps=4)
        return
    given = inputs(NetworkConfig("resnet101"), 128, 50, "cpu")
    yield from measure(given, "ResNet-101 at 128 × 128", min(what.rounds, 3))


def main(arguments: argparse.Namespace) -> None:
    # As the scripts have it: float32 means float32.
    start_torch(Runtime(device=arguments.device, threads=arguments.threads), same_sizes=True)
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
