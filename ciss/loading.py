"""Images and labels from the disk to batches of uint8, the same for every number of workers.

What is random about an image (crop, flip) is drawn from (seed, epoch, position), and an epoch's
order from (seed, epoch): nothing depends on which process loads what, or on an interruption.
Normalisation happens on the device, in batches (``to_network_input``).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ciss.errors import CissError

#: area of a training crop as a share of the image's area, and its width over its height
SCALE = (0.5, 2.0)
RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10

#: ImageNet's statistics, red, green, blue, in 0..1
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Pixels = npt.NDArray[np.uint8]
Lookup = npt.NDArray[np.uint8]
#: (top, left, height, width) in pixels
Box = tuple[int, int, int, int]
#: image uint8 [3, H, W], labels uint8 [H, W], position in the list
Sample = tuple[Pixels, Pixels, int]
#: images uint8 [B, 3, H, W], labels uint8 [B, H, W], positions int64 [B]
Batch = tuple[Tensor, Tensor, Tensor]

# Keeps the two uses of one seed apart. It comes first, as trailing zeros do not change a seed.
_ORDER, _AUGMENTATION = 0, 1


class TrainingImages(Dataset[Sample]):
    """Randomly cropped and flipped training images; asked for by (epoch, position).

    ``rows`` has the columns ``image`` and ``mask``, relative to ``root``; ``lookup`` is uint8[256]
    from raw mask values to training labels; samples are ``crop`` × ``crop`` pixels.
    """

    def __init__(
        self, root: Path, rows: pd.DataFrame, lookup: Lookup, crop: int, seed: int
    ) -> None:
        self.root = Path(root)
        self.pairs = _pairs(rows)
        self.lookup = lookup
        self.crop = crop
        self.seed = seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, position = key
        image, mask = _open_pair(self.root, self.pairs[position])
        rng = np.random.default_rng([_AUGMENTATION, self.seed, epoch, position])
        box = random_crop_box(rng, image.height, image.width)
        flip = bool(rng.random() < 0.5)
        pixels, values = crop_and_flip(image, mask, box, flip, self.crop)
        return pixels, self.lookup.take(values), position


class EvaluationImages(Dataset[Sample]):
    """Evaluation images; asked for by their position.

    ``mode`` "crop" resizes the short side to ``size`` and takes the central ``size`` × ``size``
    pixels, as the published tables do, which leaves the ends of a long image out; "full" keeps
    every image whole, at its own size.
    """

    def __init__(
        self, root: Path, rows: pd.DataFrame, lookup: Lookup, size: int, mode: str = "crop"
    ) -> None:
        if mode not in ("crop", "full"):
            raise CissError(f"evaluation mode '{mode}' is unknown; choose crop or full")
        self.root = Path(root)
        self.pairs = _pairs(rows)
        self.lookup = lookup
        self.size = size
        self.mode = mode

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, position: int) -> Sample:
        image, mask = _open_pair(self.root, self.pairs[position])
        if self.mode == "crop":
            image, mask = resize_and_centre(image, mask, self.size)
        return _planes(np.asarray(image)), self.lookup.take(np.asarray(mask)), position


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, position) keys in an order drawn from (seed, epoch).

    The images that do not fill a last batch are left out, as published; a list shorter than a
    batch makes one batch of all. A batch of one image would break batch normalisation: it is
    taken twice. ``batch`` counts the images of all processes together; with ``world_size``
    processes each takes every ``world_size``-th of them, and a batch that cannot be shared
    evenly repeats images from its beginning. ``start`` batches are skipped.
    """

    def __init__(
        self,
        n_images: int,
        batch: int,
        seed: int,
        epoch: int = 0,
        start: int = 0,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.n_images = n_images
        self.batch = batch
        self.seed = seed
        self.epoch = epoch
        self.start = start
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return max(batches_per_epoch(self.n_images, self.batch) - self.start, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        rng = np.random.default_rng([_ORDER, self.seed, epoch])
        order = rng.permutation(self.n_images)
        for number in range(self.start, batches_per_epoch(self.n_images, self.batch)):
            chosen = order[number * self.batch : (number + 1) * self.batch]
            size = max(len(chosen), 2)
            size += -size % self.world_size
            shared = np.resize(chosen, size)[self.rank :: self.world_size]
            yield [(epoch, int(position)) for position in shared]


class TrainingBatches:
    """Epochs of training batches from worker processes that live from epoch to epoch.

    Only one epoch may be iterated at a time. ``pin`` puts batches in page-locked memory, from
    which the copy to a GPU need not wait.
    """

    def __init__(
        self,
        images: TrainingImages,
        batch: int,
        *,
        workers: int = 0,
        pin: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.sampler = EpochBatches(
            len(images), batch, images.seed, rank=rank, world_size=world_size
        )
        self.loader = _loader(images, self.sampler, workers, pin, persistent=True)

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return batches_per_epoch(self.sampler.n_images, self.sampler.batch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of ``epoch`` from number ``start`` on.

        Raises ``CissError`` with the file's name where an image cannot be read.
        """
        self.sampler.epoch, self.sampler.start = epoch, start
        return _unwrapped(self.loader)


def training_batches(
    images: TrainingImages,
    batch: int,
    epoch: int,
    *,
    workers: int = 0,
    start: int = 0,
    pin: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of a single epoch; for several, keep a ``TrainingBatches``."""
    sampler = EpochBatches(len(images), batch, images.seed, epoch, start)
    return _unwrapped(_loader(images, sampler, workers, pin, persistent=False))


def evaluation_batches(
    images: EvaluationImages,
    batch: int,
    *,
    workers: int = 0,
    pin: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yield all images in order, each exactly once over all processes.

    The last batch may be smaller. Whole images differ in size and come one by one.
    """
    positions = range(rank, len(images), world_size)
    size = 1 if images.mode == "full" else batch
    batches = [list(positions[first : first + size]) for first in range(0, len(positions), size)]
    return _unwrapped(_loader(images, batches, workers, pin, persistent=False))


def batches_per_epoch(n_images: int, batch: int) -> int:
    """Return the number of optimiser iterations in an epoch over ``n_images`` images."""
    return max(n_images // batch, 1)


def to_network_input(images: Tensor) -> Tensor:
    """Normalise uint8 [B, 3, H, W] with ImageNet's statistics to float32, on its device."""
    mean, std = _statistics(images.device)
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


@cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """``MEAN`` and ``STD`` as [3, 1, 1]; made once, as each copy to a GPU waits for its work."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))
    return mean, std


def random_crop_box(rng: np.random.Generator, height: int, width: int) -> Box:
    """Draw the box of a random resized crop: (top, left, height, width).

    The area is uniform in ``SCALE`` (a share of the image's area), the ratio log-uniform in
    ``RATIO``. Boxes larger than the image are rejected; after ``CROP_TRIES`` of them the box is
    the largest central one with a ratio within ``RATIO``.
    """
    draws = rng.random((CROP_TRIES, 2))
    areas = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * draws[:, 0])
    ratios = np.exp(np.log(RATIO[0]) + np.log(RATIO[1] / RATIO[0]) * draws[:, 1])
    widths = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    heights = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    place = rng.random(2)
    if fits.any():
        first = int(np.argmax(fits))
        box_height, box_width = int(heights[first]), int(widths[first])
        top = int(place[0] * (height - box_height + 1))
        left = int(place[1] * (width - box_width + 1))
        return top, left, box_height, box_width
    box_height = min(height, round(width / RATIO[0]))
    box_width = min(width, round(height * RATIO[1]))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def crop_and_flip(
    image: Image.Image, mask: Image.Image, box: Box, flip: bool, crop: int
) -> tuple[Pixels, Pixels]:
    """Cut ``box`` out, resize it to ``crop`` × ``crop`` and mirror it when ``flip``.

    The image is resampled bilinearly (antialiased), the mask nearest. Returns uint8
    [3, crop, crop] and uint8 [crop, crop], the latter of raw mask values.
    """
    top, left, height, width = box
    corners = (left, top, left + width, top + height)
    size = (crop, crop)
    pixels = np.asarray(image.crop(corners).resize(size, Image.Resampling.BILINEAR))
    values = np.asarray(mask.crop(corners).resize(size, Image.Resampling.NEAREST))
    if flip:
        pixels, values = pixels[:, ::-1], values[:, ::-1]
    return _planes(pixels), np.ascontiguousarray(values)


def resize_and_centre(
    image: Image.Image, mask: Image.Image, size: int
) -> tuple[Image.Image, Image.Image]:
    """Resize the short side to ``size`` and cut out the central ``size`` × ``size`` pixels."""
    short = min(image.size)
    scaled = (size * image.width // short, size * image.height // short)
    left, top = (round((length - size) / 2) for length in scaled)
    corners = (left, top, left + size, top + size)
    return (
        image.resize(scaled, Image.Resampling.BILINEAR).crop(corners),
        mask.resize(scaled, Image.Resampling.NEAREST).crop(corners),
    )


class _Guarded(Dataset[Any]):
    """Loads a batch, or returns the ``CissError`` that kept it from doing so.

    Raised in a worker process, the error would reach the user wrapped in that process's traceback.
    """

    def __init__(self, images: Dataset[Sample]) -> None:
        self.images = images

    def __getitem__(self, key: Any) -> Sample:
        return self.images[key]

    def __getitems__(self, keys: Sequence[Any]) -> list[Sample] | CissError:
        try:
            return [self.images[key] for key in keys]
        except CissError as error:
            return error


def _loader(
    images: Dataset[Sample], batches: Any, workers: int, pin: bool, *, persistent: bool
) -> DataLoader[Any]:
    return DataLoader(
        _Guarded(images),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin,
        persistent_workers=persistent and workers > 0,
        worker_init_fn=_outlive_first_sigterm,
        # Its own generator: otherwise each epoch would draw from the global random state.
        generator=torch.Generator().manual_seed(0),
    )


def _outlive_first_sigterm(worker: int) -> None:
    """Let a worker process go on after one SIGTERM; a second one ends it.

    Batch systems signal every process of a job. The training process then saves its progress;
    a worker that dies at once would break it off in the middle of an iteration.
    """
    del worker
    signal.signal(signal.SIGTERM, lambda number, _: signal.signal(number, signal.SIG_DFL))


def _collate(samples: list[Sample] | CissError) -> Batch | CissError:
    if isinstance(samples, CissError):
        return samples
    images, labels, positions = zip(*samples, strict=True)
    return (
        torch.from_numpy(np.stack(images)),
        torch.from_numpy(np.stack(labels)),
        torch.tensor(positions, dtype=torch.int64),
    )


def _unwrapped(loader: DataLoader[Any]) -> Iterator[Batch]:
    for batch in loader:
        if isinstance(batch, CissError):
            # Raising ``batch`` itself would tie it to this frame in a cycle, and the worker
            # processes would end only when the garbage collector finds it.
            raise CissError(str(batch))
        # Page-locking turns a tuple into a list.
        images, labels, positions = batch
        yield images, labels, positions


def _pairs(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["image"], rows["mask"], strict=True))


def _open_pair(root: Path, pair: tuple[str, str]) -> tuple[Image.Image, Image.Image]:
    image = _decode(root / pair[0])
    # Decoding does not convert the mask: its palette indices are the labels.
    return image if image.mode == "RGB" else image.convert("RGB"), _decode(root / pair[1])


def _decode(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        reason = getattr(error, "strerror", None) or error
        raise CissError(
            f"cannot read {path}: {reason}; it has changed or was damaged since the dataset was "
            "indexed: restore it, or delete the index to have everything checked again"
        ) from error


def _planes(pixels: Pixels) -> Pixels:
    """Turn [H, W, 3] into a contiguous [3, H, W]."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))
