"""Losses at full resolution without the full-resolution logits.

A network's logits are upsampled to the images' size before a loss looks at them: with 151 classes,
512 × 512 pixels and a batch of 24 they take 3.8 GB, and almost every step of a loss as much again.
Here they are made block by block, some rows of an image at a time, used while they are in the
processor's cache, and made again in the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

#: values in a block of upsampled logits: 8 MB in float32 fit the cache of a CPU; a GPU wants each
#: of its kernels to have something to do
BLOCK = {"cpu": 2**21, "cuda": 2**24}


class Upsampled(NamedTuple):
    """Logits at the images' size, not computed yet: ``maps`` [B, N, h, w] for ``size`` (H, W)."""

    maps: Tensor
    size: tuple[int, int]

    @classmethod
    def of(cls, logits: Tensor) -> Upsampled:
        """Take logits [B, N, H, W] that are at the images' size already."""
        return cls(logits, (logits.shape[2], logits.shape[3]))

    def block(self, images: slice, rows: slice) -> Tensor:
        """Compute some rows of some images: [b, N, r, W], in float32 or, as ``maps``, float64."""
        maps = full_precision(self.maps[images])
        if maps.shape[2:] == self.size:
            return maps[:, :, rows]
        (height, width), (tall, wide) = maps.shape[2:], self.size
        vertical = interpolation(height, tall, maps.dtype, maps.device)
        horizontal = interpolation(width, wide, maps.dtype, maps.device)
        # Few of the small rows lie under a block: widened first, they are a fraction of the work.
        below = _rows_below(rows, height, tall)
        # Autocast would round a matrix product to half precision.
        with torch.autocast(maps.device.type, enabled=False):
            return vertical[rows, below] @ (maps[:, :, below] @ horizontal.T)


#: (labels [b, r, W], student's logits [b, N, r, W], the teacher's or None, …) -> maps [b, r, W]
PerPixel = Callable[..., Mapping[str, Tensor]]


def pixel_means(
    per_pixel: PerPixel,
    labels: Tensor,
    student: Upsampled,
    teacher: Upsampled | None = None,
    *others: Tensor,
) -> dict[str, Tensor]:
    """Average each map that ``per_pixel`` returns over all pixels, void ones included.

    ``labels``: [B, H, W] int64; ``others``: [B, H, …], given to ``per_pixel`` after the logits.
    The means are differentiable with respect to the student's maps. Nothing of full resolution is
    kept: the backward pass computes each block again.
    """

    def sums(maps: Tensor, images: slice, rows: slice) -> dict[str, Tensor]:
        ours = Upsampled(maps, student.size).block(slice(None), rows)
        its = None if teacher is None else teacher.block(images, rows)
        more = [other[images, rows] for other in others]
        found = per_pixel(labels[images, rows], ours, its, *more)
        return {name: values.sum() for name, values in found.items()}

    places = list(_blocks(student))
    # Cut once: each block's gradient is then of its images alone, not of a whole batch of zeros.
    together = places[0][0].stop
    pieces = student.maps.split(together)
    parts = [
        checkpoint(
            sums,
            pieces[images.start // together],
            images,
            rows,
            use_reentrant=False,
            preserve_rng_state=False,
        )
        for images, rows in places
    ]
    return {
        name: torch.stack([part[name] for part in parts]).sum() / labels.numel()
        for name in parts[0]
    }


def pixel_maps(
    function: Callable[[Tensor], tuple[Tensor, ...]], logits: Upsampled
) -> tuple[Tensor, ...]:
    """Apply ``function`` ([b, N, r, W] to tensors [b, r, W]) block by block; returns [B, H, W]."""
    results: list[Tensor] = []
    for images, rows in _blocks(logits):
        values = function(logits.block(images, rows))
        if not results:
            shape = (len(logits.maps), *logits.size)
            results = [value.new_empty(shape) for value in values]
        for result, value in zip(results, values, strict=True):
            result[images, rows] = value
    return tuple(results)


def predict(logits: Upsampled) -> Tensor:
    """Return the class of the largest logit of each pixel, int64 [B, H, W]."""
    # On a CPU `argmax` takes four times as long.
    (classes,) = pixel_maps(lambda block: (block.max(dim=1).indices,), logits)
    return classes


def full_precision(values: Tensor) -> Tensor:
    """Return ``values`` in float32, or as they are where they are float64."""
    return values if values.dtype == torch.float64 else values.float()


@lru_cache(maxsize=64)
def interpolation(small: int, large: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Bilinear interpolation along one axis as a matrix, [large, small]; corners not aligned.

    As a product with two such matrices, upsampling takes a small part of a loss's time, and it is
    deterministic on a GPU, its backward pass too.
    """
    with torch.inference_mode(False), torch.no_grad():
        position = (torch.arange(large, dtype=torch.float64) + 0.5) * (small / large) - 0.5
        position = position.clamp(0, small - 1)
        distance = (position[:, None] - torch.arange(small)).abs()
        return (1 - distance).clamp(min=0).to(dtype).to(device)


def _rows_below(rows: slice, small: int, large: int) -> slice:
    """Rows of the small maps that ``rows`` of the large ones are interpolated from."""
    start, stop, _ = rows.indices(large)
    first, last = ((row + 0.5) * (small / large) - 0.5 for row in (start, stop - 1))
    return slice(max(math.floor(first), 0), math.floor(last) + 2)


def _blocks(logits: Upsampled) -> Iterator[tuple[slice, slice]]:
    """Cut images and rows into blocks of about ``BLOCK`` values: whole images, or parts of one."""
    (batch, channels), (height, width) = logits.maps.shape[:2], logits.size
    budget = BLOCK.get(logits.maps.device.type, BLOCK["cpu"])
    rows = min(max(budget // (channels * width), 1), height)
    images = min(max(budget // (channels * width * height), 1), batch)
    for image in range(0, batch, images):
        for row in range(0, height, rows):
            yield slice(image, image + images), slice(row, row + rows)
