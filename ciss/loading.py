"""Images and labels from the disk to batches of uint8, the same for every number of workers.

What is random about an image (crop, flip) is drawn from (seed, epoch, position), and an epoch's
order from (seed, epoch): nothing depends on which worker loads what, or on an interruption.
Normalisation happens on the device, in batches (``to_network_input``).

Workers are threads. Decoding, resizing and copying hold no lock of Python's, and a batch is written
where the training reads it (on its way to a GPU, in page-locked memory). Worker processes would
have to hand it over through shared memory, whose pages cost more than the images in them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from ciss import distributed
from ciss.datasets.base import BACKGROUND, UNKNOWN
from ciss.errors import CissError
from ciss.image_cache import ImageCache
from ciss.images import Pixels, read_pair, resize, resize_nearest
from ciss.runtime import Runtime
from ciss.saliency import Mask, Saliency

#: area of a training crop as a share of the image's area, and its width over its height
SCALE = (0.5, 2.0)
RATIO = (3 / 4, 4 / 3)
CROP_TRIES = 10

#: ImageNet's statistics, red, green, blue, in 0..1
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

Lookup = npt.NDArray[np.uint8]
#: (top, left, height, width) in pixels
Box = tuple[int, int, int, int]
#: epoch, position, and for an exemplar how many times the epoch has had it before
Key = tuple[int, ...]
#: image uint8 [3, H, W] (channels last in memory), labels uint8 [H, W], position in the list
Sample = tuple[Pixels, Pixels, int]
#: images uint8 [B, 3, H, W] (channels last in memory), labels uint8 [B, H, W], positions int64 [B]
Batch = tuple[Tensor, Tensor, Tensor]

#: batches that each worker is ahead of the training
_AHEAD = 2

# Keeps the uses of one seed apart. It comes first, as trailing zeros do not change a seed.
_ORDER, _AUGMENTATION, _EXEMPLARS = 0, 1, 2


_T = TypeVar("_T")


class Reading(TypedDict):
    """How a process reads its share of the images."""

    #: threads that read ahead
    workers: int
    #: whether batches go into page-locked memory
    pin: bool
    rank: int
    world_size: int


class Images(Protocol):
    """Whatever gives a sample for each of its keys."""

    def __getitem__(self, key: Any, /) -> Sample: ...


class TrainingImages:
    """Randomly cropped and flipped training images; asked for by (epoch, position).

    ``rows`` has the columns ``image`` and ``mask``, relative to ``root``; ``lookup`` is uint8[256]
    from raw mask values to training labels; samples are ``crop`` × ``crop`` pixels. With a
    ``cache`` nothing is decoded; the samples are the same. Exemplars stand behind the step's own
    images, which ``len`` counts.
    """

    cache: ImageCache | None = None
    #: what of the background is labelled ``UNKNOWN``, for methods that tell it apart
    saliency: Saliency | None = None

    def __init__(
        self, root: Path, rows: pd.DataFrame, lookup: Lookup, crop: int, seed: int
    ) -> None:
        self.root = Path(root)
        self.pairs = _pairs(rows)
        self.lookup = lookup
        self.crop = crop
        self.seed = seed
        #: tables like ``lookup``, one for each exemplar
        self.exemplar_lookups: list[Lookup] = []

    def __len__(self) -> int:
        return len(self.pairs) - len(self.exemplar_lookups)

    def remember(self, rows: pd.DataFrame, lookups: Sequence[Lookup]) -> None:
        """Add exemplars, each with a table of what is known of its labels."""
        self.pairs += _pairs(rows)
        self.exemplar_lookups += lookups

    def __getitem__(self, key: Key) -> Sample:
        epoch, position, *again = key
        beyond = position - len(self)
        lookup = self.lookup if beyond < 0 else self.exemplar_lookups[beyond]
        pair = self.pairs[position]
        read = self.cache.read_pair(pair) if self.cache else read_pair(self.root, pair)
        rng = np.random.default_rng([_AUGMENTATION, self.seed, epoch, position, *again])
        box = random_crop_box(rng, *read[1].shape)
        flip = bool(rng.random() < 0.5)
        salient = None if self.saliency is None else self.saliency(read[0], pair[0], box)
        pixels, labels = crop_and_flip(*read, box, flip, self.crop, lookup, salient)
        return pixels, labels, position


class EvaluationImages:
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
        pixels, values = read_pair(self.root, self.pairs[position])
        if self.mode == "crop":
            pixels, values = resize_and_centre(pixels, values, self.size)
        return pixels.transpose(2, 0, 1), self.lookup.take(values), position


@dataclass(frozen=True)
class Share:
    """This process's part of every batch, which may come in several micro-batches."""

    #: images of this process in each micro-batch
    sizes: tuple[int, ...]
    #: images in a batch, over all processes and micro-batches
    batch: int


def micro_batches(n_images: int, batch: int, accumulate: int) -> list[int]:
    """Split the images of a batch into micro-batches: the number of images of each.

    ``batch`` images make ``accumulate`` micro-batches. Where a list is shorter than a batch, those
    of its one batch are no larger, and none is of a single image, which would break batch
    normalisation.
    """
    size = min(n_images, batch)
    largest = batch // accumulate
    count = max(min(-(-size // largest), size // 2), 1)
    return [len(part) for part in np.array_split(np.empty(max(size, 2)), count)]


def deal(
    n_images: int, batch: int, accumulate: int = 1, *, rank: int = 0, world_size: int = 1
) -> Share:
    """Deal each micro-batch over the processes: shares differ by one image at most.

    Raises ``CissError`` where a process would have none.
    """
    whole = micro_batches(n_images, batch, accumulate)
    if min(whole) < world_size:
        raise CissError(
            f"{min(whole)} images, which are trained on at once of a batch of {sum(whole)}, cannot "
            f"be shared by {world_size} processes; set runtime.gpus to {min(whole)} or less (this "
            "changes no result)"
        )
    sizes = tuple(len(range(rank, size, world_size)) for size in whole)
    return Share(sizes, sum(whole))


class EpochBatches:
    """Batches of (epoch, position) keys in an order drawn from (seed, epoch).

    The images that do not fill a last batch are left out, as published; a list shorter than a
    batch makes one batch of all. A batch of one image would break batch normalisation: it is
    taken twice. ``batch`` counts the images of all processes together; with ``world_size``
    processes each takes every ``world_size``-th image of each micro-batch (see ``deal``).
    ``start`` batches are skipped.

    With ``exemplars``, which stand behind the images, half of every micro-batch is of them, in the
    place of as many images: an epoch has as many batches as without. They come in turns, each
    before any comes again, in an order drawn for the epoch.
    """

    def __init__(
        self,
        n_images: int,
        batch: int,
        seed: int,
        epoch: int = 0,
        start: int = 0,
        *,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        exemplars: int = 0,
    ) -> None:
        self.exemplars = exemplars
        self.n_images = n_images
        self.batch = batch
        self.seed = seed
        self.epoch = epoch
        self.start = start
        self.accumulate = accumulate
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return max(batches_per_epoch(self.n_images, self.batch) - self.start, 0)

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        rng = np.random.default_rng([_ORDER, self.seed, epoch])
        order = rng.permutation(self.n_images)
        sizes = micro_batches(self.n_images, self.batch, self.accumulate)
        remembered = self._remembered(self.start * sum(size // 2 for size in sizes))
        for number in range(self.start, batches_per_epoch(self.n_images, self.batch)):
            chosen = order[number * self.batch : (number + 1) * self.batch]
            whole: list[Key] = [
                (epoch, position) for position in np.resize(chosen, sum(sizes)).tolist()
            ]
            keys: list[Key] = []
            for size in sizes:
                part, whole = whole[:size], whole[size:]
                if self.exemplars:
                    part[size - size // 2 :] = [next(remembered) for _ in range(size // 2)]
                keys += part[self.rank :: self.world_size]
            yield keys

    def _remembered(self, skipped: int) -> Iterator[Key]:
        """Yield keys of exemplars without end, from number ``skipped`` of the epoch on."""
        rng = np.random.default_rng([_EXEMPLARS, self.seed, self.epoch])
        for again in count():
            order = rng.permutation(self.exemplars) + self.n_images
            passed, skipped = skipped, max(skipped - self.exemplars, 0)
            for position in order[passed:].tolist():
                yield self.epoch, position, again


class TrainingBatches:
    """Epochs of training batches, read ahead by ``workers`` threads; by none, when asked for.

    ``pin`` puts batches in page-locked memory, from which the copy to a GPU need not wait. With
    ``world_size`` processes, each gets its share of every batch.
    """

    def __init__(
        self,
        images: TrainingImages,
        batch: int,
        *,
        workers: int = 0,
        pin: bool = False,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.images = images
        self.batch = batch
        self.workers = workers
        self.pin = pin
        self._places = {"accumulate": accumulate, "rank": rank, "world_size": world_size}
        self.share = deal(len(images), batch, **self._places)

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch."""
        return batches_per_epoch(len(self.images), self.batch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of ``epoch`` from number ``start`` on.

        Raises ``CissError`` with the file's name where an image cannot be read.
        """
        keys = EpochBatches(
            len(self.images),
            self.batch,
            self.images.seed,
            epoch,
            start,
            exemplars=len(self.images.exemplar_lookups),
            **self._places,
        )
        return _loaded(self.images, keys, self.workers, self.pin)


def shared_reading(runtime: Runtime, device: torch.device) -> Reading:
    """Return the keywords of the functions below for this process of a job."""
    return {
        "workers": runtime.workers,
        "pin": device.type == "cuda",
        "rank": distributed.rank(),
        "world_size": distributed.size(),
    }


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

    The last batch may be smaller. Whole images differ in size and come one by one. Processes take
    turns with whole batches: the network sees the same batches whatever their number, and its
    outputs have the same bits.
    """
    batches = _in_order(range(len(images)), 1 if images.mode == "full" else batch)
    return _loaded(images, batches[rank::world_size], workers, pin)


def single_pass(
    images: TrainingImages,
    batch: int,
    *,
    workers: int = 0,
    pin: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[Batch]:
    """Yield every training image once, cropped and flipped as in the first epoch, in their order.

    The last batch may be smaller. Processes take turns with whole batches.
    """
    batches = _in_order([(0, position) for position in range(len(images))], batch)
    return _loaded(images, batches[rank::world_size], workers, pin)


def _in_order(keys: Sequence[_T], size: int) -> list[list[_T]]:
    """Cut keys into batches; the last one may be smaller."""
    return [list(keys[first : first + size]) for first in range(0, len(keys), size)]


def batches_per_epoch(n_images: int, batch: int) -> int:
    """Return the number of optimiser iterations in an epoch over ``n_images`` images."""
    return max(n_images // batch, 1)


def to_network_input(images: Tensor) -> Tensor:
    """Normalise uint8 [B, 3, H, W] with ImageNet's statistics to float32, on its device.

    Whatever the order in memory of the images is, that of the result is [B, 3, H, W].
    """
    mean, std = _statistics(images.device)
    if images.device.type == "cpu":
        planes = _empty(images.shape, np.float32).copy_(images)
    else:
        planes = images.to(torch.float32, memory_format=torch.contiguous_format)
    return planes.div_(255).sub_(mean).div_(std)


def to_network_labels(labels: Tensor) -> Tensor:
    """Turn labels, uint8 [B, H, W], into the losses' int64, on their device."""
    if labels.device.type == "cpu":
        return _empty(labels.shape, np.int64).copy_(labels)
    return labels.long()


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
    image: Pixels,
    values: Pixels,
    box: Box,
    flip: bool,
    crop: int,
    lookup: Lookup | None = None,
    salient: Mask | None = None,
) -> tuple[Pixels, Pixels]:
    """Cut ``box`` out, resize it to ``crop`` × ``crop`` and mirror it when ``flip``.

    ``image`` is uint8 [H, W, 3], ``values`` uint8 [H, W], which become labels by ``lookup``;
    background that is ``salient``, bool of the box's size, becomes ``UNKNOWN``. The image is
    resampled bilinearly (antialiased), the labels nearest, both with exactly Pillow's results.
    Returns uint8 [3, crop, crop] (channels last in memory) and uint8 [crop, crop].
    """
    top, left, height, width = box
    rows, columns = slice(top, top + height), slice(left, left + width)
    pixels = resize(image[rows, columns], crop, flip)
    cut = values[rows, columns]
    # Before they are resized: a cut-out is mostly smaller than the crop.
    labels = cut if lookup is None else lookup.take(cut)
    if salient is not None:
        labels = np.where(salient & (labels == BACKGROUND), np.uint8(UNKNOWN), labels)
    return pixels.transpose(2, 0, 1), resize_nearest(labels, crop, flip)


def resize_and_centre(image: Pixels, values: Pixels, size: int) -> tuple[Pixels, Pixels]:
    """Resize the short side to ``size`` and cut out the central ``size`` × ``size`` pixels.

    ``image`` is uint8 [H, W, 3], ``values`` uint8 [H, W]; returns the same, smaller.
    """
    height, width = values.shape
    short = min(height, width)
    scaled = (size * width // short, size * height // short)
    left, top = (round((length - size) / 2) for length in scaled)
    corners = (left, top, left + size, top + size)
    resized = Image.fromarray(image).resize(scaled, Image.Resampling.BILINEAR)
    nearest = Image.fromarray(values).resize(scaled, Image.Resampling.NEAREST)
    return np.asarray(resized.crop(corners)), np.asarray(nearest.crop(corners))


def load_batch(images: Images, keys: Sequence[Any], pin: bool = False) -> Batch:
    """Load images of one size into a batch; ``pin`` puts it in page-locked memory."""
    positions = torch.empty(len(keys), dtype=torch.int64)
    for number, key in enumerate(keys):
        image, labels, positions[number] = images[key]
        # A training crop lies in memory as decoded, channels last: it is copied as it lies.
        image = image.transpose(1, 2, 0)
        if number == 0:
            all_images, all_labels = (
                _empty((len(keys), *a.shape), np.uint8, pin) for a in (image, labels)
            )
            into_images, into_labels = all_images.numpy(), all_labels.numpy()
        into_images[number], into_labels[number] = image, labels
    return all_images.permute(0, 3, 1, 2), all_labels, positions


def _empty(shape: Sequence[int], dtype: type[np.generic], pin: bool = False) -> Tensor:
    empty = torch.from_numpy(np.empty(0 if pin else shape, dtype))
    # Not PyTorch's own: NumPy asks the system for huge pages. The usual ones, each of them given
    # and cleared by the system, take longer than what is written into them.
    return empty.new_empty(shape, pin_memory=True) if pin else empty


def _loaded(
    images: Images, batches: Iterable[Sequence[Any]], workers: int, pin: bool
) -> Iterator[Batch]:
    """Yield the batches of the given keys in their order, read ahead by ``workers`` threads."""
    if workers == 0:
        for keys in batches:
            yield load_batch(images, keys, pin)
        return
    waiting: deque[Future[Batch]] = deque()
    with ThreadPoolExecutor(workers, "images") as pool:
        try:
            for keys in batches:
                waiting.append(pool.submit(load_batch, images, keys, pin))
                if len(waiting) > _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # Also where the reader breaks off: what nobody will read need not be loaded.
            pool.shutdown(wait=True, cancel_futures=True)


def _pairs(rows: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(rows["image"], rows["mask"], strict=True))
