"""Losses at full resolution without the full-resolution logits.

A network's logits are upsampled to the images' size before a loss looks at them: with 151 classes,
512 × 512 pixels and a batch of 24 they take 3.8 GB, and almost every step of a loss as much again.
Here they are made block by block, some rows of an image at a time, and used while they are in the
processor's cache: for the losses, and at once for their gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
        vertical, horizontal, below = self._interpolation(rows)
        # Autocast would round a matrix product to half precision.
        with torch.autocast(maps.device.type, enabled=False):
            # Few of the small rows lie under a block: widened first, they are a little work.
            return vertical @ (maps[:, :, below] @ horizontal.T)

    def add_adjoint(self, gradient: Tensor, slope: Tensor, images: slice, rows: slice) -> None:
        """Add to ``gradient`` [B, N, h, w] that of the maps, ``slope`` being that of a block."""
        if self.maps.shape[2:] == self.size:
            gradient[images, :, rows] += slope
            return
        vertical, horizontal, below = self._interpolation(rows)
        with torch.autocast(slope.device.type, enabled=False):
            gradient[images, :, below] += (vertical.T @ slope) @ horizontal

    def _interpolation(self, rows: slice) -> tuple[Tensor, Tensor, slice]:
        """Matrices [r, s] and [W, w] that make ``rows`` of some of the small ones, and which."""
        (height, width), (tall, wide) = self.maps.shape[2:], self.size
        dtype, device = full_precision(self.maps[:0]).dtype, self.maps.device
        below = _rows_below(rows, height, tall)
        vertical = interpolation(height, tall, dtype, device)[rows, below]
        return vertical, interpolation(width, wide, dtype, device), below


_LOST_GRADIENT = (
    "a function of pixels uses a tensor beside the student's logits that wants a gradient, which "
    "it would not get; compute that term elsewhere, or detach the tensor"
)

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
    The means are differentiable with respect to the student's maps, and to nothing else: a
    ``RuntimeError`` says so where ``per_pixel`` uses another tensor that wants a gradient.
    """
    work = _Work(per_pixel, labels, student, teacher, others)
    if not torch.is_grad_enabled():
        return work.means()
    # Blocks of these are cut where nothing is differentiated.
    for given in (*others, *([] if teacher is None else [teacher.maps])):
        if given.requires_grad:
            raise RuntimeError(_LOST_GRADIENT)
    if not student.maps.requires_grad:
        return work.means()
    names: list[str] = []
    means: tuple[Tensor, ...] = _Means.apply(student.maps, work, names)
    return dict(zip(names, means, strict=True))


class _Work(NamedTuple):
    """The arguments of ``pixel_means``."""

    per_pixel: PerPixel
    labels: Tensor
    student: Upsampled
    teacher: Upsampled | None
    others: tuple[Tensor, ...]

    def means(
        self, gradient: Tensor | None = None, weights: Tensor | float = 1.0
    ) -> dict[str, Tensor]:
        """Compute the means; write into ``gradient`` [B, N, h, w] that of their weighted sum."""
        names: Iterable[str] = ()
        sums = torch.zeros((), device=self.labels.device)
        for images, rows in _blocks(self.student):
            with torch.no_grad():
                ours = self.student.block(images, rows)
                its = None if self.teacher is None else self.teacher.block(images, rows)
            more = [other[images, rows] for other in self.others]
            with torch.set_grad_enabled(gradient is not None):
                ours.requires_grad_(gradient is not None)
                maps = self.per_pixel(self.labels[images, rows], ours, its, *more)
                names, values = maps, torch.stack([each.sum() for each in maps.values()])
                # Some blocks may have none of the pixels that a function looks for.
                if gradient is not None and values.requires_grad:
                    _check_ends(values, ours)
                    (slope,) = torch.autograd.grad((values * weights).sum(), ours)
                    self.student.add_adjoint(gradient, slope, images, rows)
            sums = sums + values.detach()
        if gradient is not None:
            gradient /= self.labels.numel()
        return dict(zip(names, (sums / self.labels.numel()).unbind(), strict=True))


class _Means(torch.autograd.Function):
    """``pixel_means``, which takes the gradient of a block's terms while the block is there.

    A training asks for that of the terms' sum, or a multiple of it. Only for another combination
    are the blocks made again.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, work: _Work, names: list[str]) -> tuple[Tensor, ...]:
        gradient = torch.zeros_like(maps, dtype=full_precision(maps[:0]).dtype)
        means = work.means(gradient)
        names.extend(means)
        ctx.work = work
        ctx.save_for_backward(gradient)
        # Views of one tensor could not be changed in place.
        return tuple(mean.clone() for mean in means.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        work: _Work = ctx.work
        if _all_equal(outer):
            gradient = gradient * outer[0]
        else:
            gradient = torch.zeros_like(gradient)
            work.means(gradient, torch.stack(outer))
        return gradient.to(work.student.maps.dtype), None, None


def _all_equal(values: Sequence[Tensor]) -> bool:
    """Tell whether all of some scalars are equal, the GPU unasked where they are one in memory.

    They are where a sum is differentiated.
    """
    first, *rest = values
    return all(each.data_ptr() == first.data_ptr() or torch.equal(each, first) for each in rest)


def _check_ends(values: Tensor, logits: Tensor) -> None:
    """Raise ``RuntimeError`` where ``values`` are differentiable by more than ``logits``."""
    ahead, seen = [values.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if getattr(node, "variable", logits) is not logits:
            raise RuntimeError(_LOST_GRADIENT)
        ahead += [following for following, _ in node.next_functions]


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
    (classes,) = pixel_maps(lambda block: (largest_channel(block),), logits)
    return classes


def largest_channel(values: Tensor) -> Tensor:
    """Return the channel of the largest value, the first of equal ones: [B, N, …] to [B, …]."""
    if values.device.type != "cpu":
        return values.max(dim=1).indices
    # On a CPU `max` is not vectorised where it finds indices, and takes four times as long.
    channels = values.shape[1]
    from_behind = torch.arange(channels, 0, -1, dtype=values.dtype)
    is_largest = torch.eq(values, values.amax(dim=1, keepdim=True), out=torch.empty_like(values))
    found = is_largest.mul_(from_behind.view(-1, *[1] * (values.dim() - 2))).amax(dim=1)
    # Of values that are no numbers none is the largest.
    return channels - found.clamp(min=1).long()


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
