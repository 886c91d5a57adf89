"""Images a second and core of the input path, against a plain torchvision pipeline.

    python benchmarks/input.py --kind voc --root /data/PascalVOC12
    python benchmarks/input.py --kind camvid --root /data/CamVid

Pipelines take turns in one run on one thread; the figures are medians over the rounds of the CPU
time that a batch costs, so that other work on the machine disturbs them little. The files are in
the system's cache after the first round.

- plain: Pillow and torchvision with the published transforms, one image at a time as in a
  ``Dataset``: RandomResizedCrop, flip, ToTensor, Normalize; labels through a NumPy table.
- published: the same, labels through a Python function for each pixel, as in the published code.
- ciss: this project's path, decoding every time.
- ciss, cached: the same from the cache of decoded images (``runtime.cache``).

Two ends are timed. "to the device": what the CPU does where a GPU trains. The plain pipelines end
with float32 images and int64 labels, ciss with bytes, which the GPU normalises. "float32": ciss
normalises and converts on this CPU too, so that all end with the same tensors.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ciss import images as reading
from ciss.datasets import list_images, open_dataset
from ciss.image_cache import ImageCache, cached_images
from ciss.labels import training_lookup
from ciss.loading import (
    MEAN,
    RATIO,
    SCALE,
    STD,
    Batch,
    TrainingBatches,
    TrainingImages,
    load_batch,
    random_crop_box,
    to_network_input,
    to_network_labels,
)

BATCH = 24
Tensors = tuple[torch.Tensor, torch.Tensor]


def torchvision_transforms() -> Any:
    """Import torchvision's transforms, also where its compiled part does not fit this torch."""
    try:
        from torchvision import transforms
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
        global _operators
        _operators = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _operators.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        from torchvision import transforms
    return transforms


class PlainImages(Dataset[Tensors]):
    """What one writes with Pillow and torchvision: float32 [3, H, W] and int64 [H, W]."""

    def __init__(
        self, root: Path, pairs: list[tuple[str, str]], lookup: Any, crop: int, per_pixel: bool
    ) -> None:
        self.transforms = torchvision_transforms()
        self.root, self.pairs, self.crop, self.per_pixel = root, pairs, crop, per_pixel
        self.table = torch.from_numpy(lookup.astype(np.int64))
        self.order = {value: int(label) for value, label in enumerate(lookup)}
        self.kept = [value for value, label in self.order.items() if label != 0]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Tensors:
        functional = self.transforms.functional
        image_path, mask_path = self.pairs[number]
        image = Image.open(self.root / image_path).convert("RGB")
        mask = Image.open(self.root / mask_path)
        box = self.transforms.RandomResizedCrop.get_params(image, SCALE, RATIO)
        size, modes = (self.crop, self.crop), self.transforms.InterpolationMode
        image = functional.resized_crop(image, *box, size, modes.BILINEAR)
        mask = functional.resized_crop(mask, *box, size, modes.NEAREST)
        if torch.rand(()) < 0.5:
            image, mask = functional.hflip(image), functional.hflip(mask)
        pixels = functional.normalize(functional.to_tensor(image), MEAN, STD)
        labels = torch.from_numpy(np.array(mask))
        if self.per_pixel:
            labels.apply_(lambda value: self.order[value] if value in self.kept else 0)
            return pixels, labels.long()
        return pixels, self.table[labels.long()]

    def batch(self, numbers: Sequence[int]) -> Tensors:
        samples = [self[number] for number in numbers]
        return torch.stack([s[0] for s in samples]), torch.stack([s[1] for s in samples])


def on_this_cpu(batch: Batch) -> Tensors:
    return to_network_input(batch[0]), to_network_labels(batch[1])


def cpu_ms(work: Callable[[int], object], turn: int, images: int) -> float:
    """Return the CPU time of this process, in ms an image; freeing the result is part of it."""
    start = time.process_time()
    work(turn)
    return 1000 * (time.process_time() - start) / images


def alternate(
    pipelines: dict[str, Callable[[int], object]], rounds: int, images: int = BATCH
) -> dict[str, float]:
    """Give each pipeline its turn in each round; return the median ms an image of each."""
    found: dict[str, list[float]] = {name: [] for name in pipelines}
    for number in range(-1, rounds):  # the round before the first warms up
        for name, pipeline in pipelines.items():
            ms = cpu_ms(pipeline, max(number, 0), images)
            if number >= 0:
                found[name].append(ms)
    return {name: statistics.median(values) for name, values in found.items()}


def pipelines(
    root: Path, pairs: list[tuple[str, str]], lookup: Any, crop: int, cache: ImageCache
) -> dict[str, Callable[[int], object]]:
    plain = {
        name: PlainImages(root, pairs, lookup, crop, per_pixel)
        for name, per_pixel in (("plain", False), ("published", True))
    }
    rows = pd.DataFrame(pairs, columns=["image", "mask"])
    ours, cached = (TrainingImages(root, rows, lookup, crop, seed=0) for _ in range(2))
    cached.cache = cache

    def numbers(turn: int) -> list[int]:
        return [(turn * BATCH + number) % len(pairs) for number in range(BATCH)]

    def batch(images: TrainingImages, turn: int) -> Batch:
        return load_batch(images, [(turn, number) for number in numbers(turn)])

    return {
        "plain": lambda turn: plain["plain"].batch(numbers(turn)),
        "published": lambda turn: plain["published"].batch(numbers(turn)),
        "ciss, to the device": lambda turn: batch(ours, turn),
        "ciss, cached, to the device": lambda turn: batch(cached, turn),
        "ciss, float32": lambda turn: on_this_cpu(batch(ours, turn)),
        "ciss, cached, float32": lambda turn: on_this_cpu(batch(cached, turn)),
    }


def parts(
    root: Path, pairs: list[tuple[str, str]], lookup: Any, crop: int, rounds: int
) -> dict[str, float]:
    """Return the ms an image of each part of our path, on the first images."""
    pairs = pairs[:BATCH]
    decoded = [reading.read_pair(root, pair) for pair in pairs]
    rng = np.random.default_rng(0)
    boxes = [random_crop_box(rng, *mask.shape) for _, mask in decoded]
    cut = [
        (
            image[top : top + height, left : left + width],
            mask[top : top + height, left : left + width],
        )
        for (image, mask), (top, left, height, width) in zip(decoded, boxes, strict=True)
    ]
    rows = pd.DataFrame(pairs, columns=["image", "mask"])
    images = TrainingImages(root, rows, lookup, crop, seed=0)
    as_pillow = [Image.fromarray(image) for image, _ in cut]
    samples = [images[0, number] for number in range(len(pairs))]
    batch = load_batch(samples, range(len(pairs)))
    return alternate(
        {
            "read both files": lambda _: [
                (root / path).read_bytes() for pair in pairs for path in pair
            ],
            "read and decode the image": lambda _: [
                reading.read_image(root / image) for image, _ in pairs
            ],
            "  the same by Pillow": lambda _: [
                np.asarray(Image.open(root / image).convert("RGB")) for image, _ in pairs
            ],
            "read and decode the mask": lambda _: [
                reading.read_mask(root / mask) for _, mask in pairs
            ],
            "  the same by Pillow alone": lambda _: [
                np.asarray(Image.open(root / mask)) for _, mask in pairs
            ],
            "look labels up": lambda _: [lookup.take(mask) for _, mask in decoded],
            "draw the crop": lambda turn: [
                random_crop_box(np.random.default_rng([1, 0, turn, number]), 375, 500)
                for number in range(len(pairs))
            ],
            "resize the image (half of them mirrored)": lambda _: [
                reading.resize(image, crop, flip=number % 2 == 0)
                for number, (image, _) in enumerate(cut)
            ],
            "  resized by Pillow": lambda _: [
                np.asarray(image.resize((crop, crop), Image.Resampling.BILINEAR))
                for image in as_pillow
            ],
            "resize the labels": lambda _: [reading.resize_nearest(mask, crop) for _, mask in cut],
            "stack into a batch": lambda _: load_batch(samples, range(len(pairs))),
            "normalise (GPU's work where there is one)": lambda _: to_network_input(batch[0]),
            "labels to int64 (the same)": lambda _: to_network_labels(batch[1]),
        },
        rounds,
        len(pairs),
    )


def through_a_worker(batches: Callable[[int], Iterator[Any]], few: int, many: int) -> float:
    """Return the CPU time, in ms an image, of a worker and the process that it serves.

    Starting it costs the same for few and many batches and is taken out.
    """

    def used(count: int) -> float:
        start = _all_processes()
        for _ in batches(count):
            pass
        return _all_processes() - start

    return 1000 * (used(many) - used(few)) / ((many - few) * BATCH)


def _all_processes() -> float:
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def workers(
    root: Path, pairs: list[tuple[str, str]], lookup: Any, crop: int, rounds: int
) -> dict[str, float]:
    """Return the ms an image where one worker reads ahead; the hand-over is part of it."""
    few, many = 2, 8
    table = pd.DataFrame(pairs, columns=["image", "mask"])

    def plain(count: int) -> Iterator[Any]:
        chosen = [pairs[number % len(pairs)] for number in range(count * BATCH)]
        return iter(
            DataLoader(
                PlainImages(root, chosen, lookup, crop, False), batch_size=BATCH, num_workers=1
            )
        )

    def ours(count: int) -> Iterator[Any]:
        chosen = pd.concat([table] * (1 + count * BATCH // len(table))).head(count * BATCH)
        return TrainingBatches(
            TrainingImages(root, chosen, lookup, crop, 0), BATCH, workers=1
        ).epoch(0)

    found: dict[str, list[float]] = {"plain": [], "ciss": []}
    for _ in range(rounds):
        found["plain"].append(through_a_worker(plain, few, many))
        found["ciss"].append(through_a_worker(ours, few, many))
    return {name: statistics.median(values) for name, values in found.items()}


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    dataset = open_dataset(arguments.kind, arguments.kind, arguments.root)
    pairs = list_images(dataset)["train"][: arguments.images]
    half = range(1, 1 + len(dataset.classes) // 2)
    lookup = training_lookup(dataset.lookup, half)
    sizes = [Image.open(arguments.root / image).size for image, _ in pairs]
    width, height = (round(statistics.mean(side)) for side in zip(*sizes, strict=True))
    print(f"{len(pairs)} images of {arguments.kind}, mean size {width} × {height}, one thread")
    with tempfile.TemporaryDirectory() as folder:
        cache = write_cache(Path(folder), arguments.root, pairs, sizes)
        for crop in arguments.crops:
            report(arguments, pairs, lookup, crop, cache)


def write_cache(
    folder: Path, root: Path, pairs: list[tuple[str, str]], sizes: list[tuple[int, int]]
) -> ImageCache:
    """Write the images to a cache as a training does, and print what that takes."""
    index = pd.DataFrame(pairs, columns=["image", "mask"]).assign(subset="train")
    index[["width", "height"]] = sizes
    start = time.process_time()
    cache = cached_images(folder, "benchmark", root, index)
    if cache is None:
        sys.exit("no room for the cache of decoded images")
    ms, size = 1000 * (time.process_time() - start) / len(pairs), cache.path.stat().st_size
    print(f"writing the cache: {ms:.3f} ms and {size / len(pairs) / 1e6:.3f} MB an image")
    return cache


def report(
    arguments: argparse.Namespace,
    pairs: list[tuple[str, str]],
    lookup: Any,
    crop: int,
    cache: ImageCache,
) -> None:
    print(f"\ncrop {crop}: pipelines in turn, medians of {arguments.rounds} rounds of CPU time")
    found = alternate(pipelines(arguments.root, pairs, lookup, crop, cache), arguments.rounds)
    print(f"  {'':34}{'ms/image':>10}{'images/s':>10}{'x plain':>10}{'x published':>13}")
    for name, ms in found.items():
        times = (found[base] / ms for base in ("plain", "published"))
        print(f"  {name:34}{ms:10.3f}{1000 / ms:10.0f}" + "".join(f"{t:11.1f}" for t in times))
    found = workers(arguments.root, pairs, lookup, crop, max(arguments.rounds // 3, 1))
    print(
        "  read ahead by one worker, hand-over included: plain (a process) "
        f"{found['plain']:.3f}, ciss (a thread) {found['ciss']:.3f} ms/image, "
        f"x {found['plain'] / found['ciss']:.1f}"
    )
    print("  parts of ciss' path, ms/image")
    for name, ms in parts(arguments.root, pairs, lookup, crop, arguments.rounds).items():
        print(f"    {name:44}{ms:8.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--kind", default="voc", help="its layout (default: voc)")
    parser.add_argument("--crops", type=int, nargs="+", default=[512, 256])
    parser.add_argument("--images", type=int, default=240, help="images to use (default: 240)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each (default: 9)")
    main(parser.parse_args())
