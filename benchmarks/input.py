"""Images a second and core of the input path, against a plain torchvision pipeline.

    python benchmarks/input.py --kind voc --root /data/PascalVOC12
    python benchmarks/input.py --kind camvid --root /data/CamVid
    python benchmarks/input.py                                     # generated images

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
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import table
from benchmarks.given import Given, given
from benchmarks.reference.input import PlainImages, Tensors, torchvision_transforms
from benchmarks.table import Row
from ciss import images as reading
from ciss.datasets import Dataset, list_images
from ciss.image_cache import ImageCache, cached_images
from ciss.labels import training_lookup
from ciss.loading import (
    Batch,
    TrainingBatches,
    TrainingImages,
    crop_and_flip,
    load_batch,
    random_crop_box,
    to_network_input,
    to_network_labels,
)

__all__ = ["torchvision_transforms"]

GROUP = "Input"
BATCH = 24


def on_this_cpu(batch: Batch) -> Tensors:
    return to_network_input(batch[0]), to_network_labels(batch[1])


def alternate(
    pipelines: dict[str, Callable[[int], object]], rounds: int, images: int = BATCH
) -> dict[str, list[float]]:
    """Give each pipeline its turn in each round; return the CPU ms an image of each by round."""
    turns = dict.fromkeys(pipelines, -1)

    def turn(name: str) -> object:
        turns[name] += 1
        return pipelines[name](turns[name])

    found = table.alternate({name: lambda n=name: turn(n) for name in pipelines}, rounds)
    return {name: [1000 * s / images for s in seconds] for name, seconds in found.items()}


def check(root: Path, pairs: list[tuple[str, str]], lookup: Any, crop: int) -> None:
    """End where the published way and ours make other tensors of the same cut-outs."""
    published = PlainImages(root, pairs, lookup, crop, per_pixel=True)
    for number, (image_path, mask_path) in enumerate(pairs):
        rng, flip = np.random.default_rng(number), number % 2 == 1
        image, mask = Image.open(root / image_path).convert("RGB"), Image.open(root / mask_path)
        box = random_crop_box(rng, image.height, image.width)
        expected = published.augmented(image, mask, box, flip)
        pixels, labels = crop_and_flip(
            *reading.read_pair(root, (image_path, mask_path)), box, flip, crop, lookup
        )
        ours = to_network_input(torch.from_numpy(pixels.copy())[None])[0], torch.from_numpy(labels)
        if not (
            torch.allclose(ours[0], expected[0], atol=1e-5) and torch.equal(ours[1], expected[1])
        ):
            raise SystemExit(f"{image_path} comes out differently")


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
    found = alternate(
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
    return medians(found)


def medians(found: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in found.items()}


def through_a_worker(batches: Callable[[int], Iterator[Any]], few: int, many: int) -> float:
    """Return the CPU time, in ms an image, of a worker and the process that it serves.

    Starting it costs the same for few and many batches and is taken out.
    """

    def used(count: int) -> float:
        return table.cpu_seconds(lambda: deque(batches(count), maxlen=0))

    return 1000 * (used(many) - used(few)) / ((many - few) * BATCH)


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
    return medians(found)


def labels_of_half(dataset: Dataset) -> Any:
    """Labels as a step has them: half of the classes are known."""
    return training_lookup(dataset.lookup, range(1, 1 + len(dataset.classes) // 2))


def rows(what: Given) -> Iterator[Row]:
    """Images a second and core: decoded and augmented, to the device and to float32."""
    torch.set_num_threads(1)
    root, crop = what.dataset.root, 64 if what.tiny else 512
    pairs, lookup = list_images(what.dataset)["train"][:240], labels_of_half(what.dataset)
    check(root, pairs[:4], lookup, crop)
    with tempfile.TemporaryDirectory(dir=what.folder) as folder:
        cache, _ = write_cache(Path(folder), root, pairs)
        found = alternate(pipelines(root, pairs, lookup, crop, cache), what.rounds)
    note = f"Input: images a second of one core's CPU time, batches of {BATCH} at {crop} pixels; "
    note += '"to the device": bytes, which a GPU turns into float32.'
    names = {
        "ciss, to the device": "to the device",
        "ciss, cached, to the device": "to the device, decoded before",
        "ciss, float32": "to float32",
    }
    for name, shown in names.items():
        row = table.compared(GROUP, shown, "", found["published"], found[name], note=note)
        yield table.rate(row, 1000, "images/s")


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with given(arguments.root, arguments.kind, arguments.rounds) as what:
        root, lookup = what.dataset.root, labels_of_half(what.dataset)
        pairs = list_images(what.dataset)["train"][: arguments.images]
        width, height = (
            round(statistics.mean(side)) for side in zip(*sizes(root, pairs), strict=True)
        )
        print(
            f"{len(pairs)} images of {what.dataset.kind}, mean size {width} × {height}, one thread"
        )
        with tempfile.TemporaryDirectory() as folder:
            cache, ms = write_cache(Path(folder), root, pairs)
            megabytes = cache.path.stat().st_size / len(pairs) / 1e6
            print(f"writing the cache: {ms:.3f} ms and {megabytes:.3f} MB an image")
            for crop in arguments.crops:
                check(root, pairs[:4], lookup, crop)
                report(root, pairs, lookup, crop, cache, arguments.rounds)


def sizes(root: Path, pairs: list[tuple[str, str]]) -> list[tuple[int, int]]:
    return [Image.open(root / image).size for image, _ in pairs]


def write_cache(folder: Path, root: Path, pairs: list[tuple[str, str]]) -> tuple[ImageCache, float]:
    """Write the images to a cache as a training does; also return the CPU ms an image."""
    index = pd.DataFrame(pairs, columns=["image", "mask"]).assign(subset="train")
    index[["width", "height"]] = sizes(root, pairs)
    start = time.process_time()
    cache = cached_images(folder, "benchmark", root, index)
    if cache is None:
        sys.exit("no room for the cache of decoded images")
    return cache, 1000 * (time.process_time() - start) / len(pairs)


def report(
    root: Path,
    pairs: list[tuple[str, str]],
    lookup: Any,
    crop: int,
    cache: ImageCache,
    rounds: int,
) -> None:
    print(f"\ncrop {crop}: pipelines in turn, medians of {rounds} rounds of CPU time")
    found = medians(alternate(pipelines(root, pairs, lookup, crop, cache), rounds))
    print(f"  {'':34}{'ms/image':>10}{'images/s':>10}{'x plain':>10}{'x published':>13}")
    for name, ms in found.items():
        times = (found[base] / ms for base in ("plain", "published"))
        print(f"  {name:34}{ms:10.3f}{1000 / ms:10.0f}" + "".join(f"{t:11.1f}" for t in times))
    found = workers(root, pairs, lookup, crop, max(rounds // 3, 1))
    print(
        "  read ahead by one worker, hand-over included: plain (a process) "
        f"{found['plain']:.3f}, ciss (a thread) {found['ciss']:.3f} ms/image, "
        f"x {found['plain'] / found['ciss']:.1f}"
    )
    print("  parts of ciss' path, ms/image")
    for name, ms in parts(root, pairs, lookup, crop, rounds).items():
        print(f"    {name:44}{ms:8.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, help="the data set's folder")
    parser.add_argument("--kind", default="voc", help="its layout (default: voc)")
    parser.add_argument("--crops", type=int, nargs="+", default=[512, 256])
    parser.add_argument("--images", type=int, default=240, help="images to use (default: 240)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each (default: 9)")
    main(parser.parse_args())
