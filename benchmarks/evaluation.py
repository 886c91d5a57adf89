"""Evaluation: blocks of rows of the logits against all logits of a batch.

    python benchmarks/evaluation.py --backbone resnet101 --crop 512 --device cuda --images 64

Both get the same batches and count the same pixels; a pixel whose two largest logits are equal up
to rounding may fall either way.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import networks
from benchmarks.given import Given
from benchmarks.losses import seconds_on
from benchmarks.on_gpu import start
from benchmarks.reference.evaluation import confusion_matrix
from benchmarks.table import Row, alternate, compared, plain
from ciss.evaluation import evaluate
from ciss.models import NetworkConfig
from ciss.runtime import keep_memory

GROUP = "Evaluation"
BATCH = 16
#: share of the pixels that may fall either way; a GPU may sum in another order for each way
CLOSE = {"cpu": 1e-4, "cuda": 1e-3}


def measure(
    config: NetworkConfig, classes: int, images: int, crop: int, device: str, rounds: int
) -> Row:
    """Time an image of the test images."""
    place = torch.device(device)
    keep_memory()  # as every job does on a CPU
    network = networks.drawn(config, [classes]).to(place)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, crop, crop), dtype=torch.uint8, generator=generator)
    labels = networks.labels(images, crop, range(1, classes)).to(torch.uint8)
    batches = list(zip(pixels.split(BATCH), labels.split(BATCH), strict=True))
    expected = torch.from_numpy(confusion_matrix(network, batches, place))
    moved = (evaluate(network, batches, place) - expected).abs().sum() / 2
    if moved > CLOSE[place.type] * expected.sum():
        raise SystemExit(f"evaluation: the counts differ in {int(moved)} pixels")
    times = alternate(
        {
            "published": lambda: confusion_matrix(network, batches, place),
            "ours": lambda: evaluate(network, batches, place),
        },
        rounds,
        seconds_on(device),
        warm_up=False,
    )
    return compared(
        GROUP,
        f"{classes} classes, an image",
        "ms",
        times["published"],
        times["ours"],
        scale=1000 / images,
        note=f"Evaluation: {config.backbone}, {images} crops of {crop} in memory, batches of "
        f"{min(BATCH, images)}; reading them is not part of it.",
    )


def rows(what: Given) -> Iterator[Row]:
    """A small network with the classes of VOC and of ADE."""
    torch.set_num_threads(1)
    config = networks.TINY if what.tiny else NetworkConfig("resnet18")
    images, crop = (3, 32) if what.tiny else (BATCH, 256)
    for classes in (21, 151):
        yield measure(config, classes, images, crop, "cpu", what.rounds)


def main(arguments: argparse.Namespace) -> None:
    start(arguments.device, arguments.threads)
    config = NetworkConfig(arguments.backbone)
    sizes = (arguments.images, arguments.crop, arguments.device, arguments.rounds)
    print(plain([measure(config, classes, *sizes) for classes in arguments.classes]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--classes", nargs="+", type=int, default=[21, 151])
    parser.add_argument("--images", type=int, default=BATCH)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
