"""What PLOP (Douillard et al., CVPR 2021) is made of: local POD and confident pseudo-labels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ciss.datasets.base import VOID
from ciss.pixelwise import Upsampled, full_precision, largest_channel, pixel_maps

#: a map is pooled whole, in 2×2 and in 4×4 cells (the paper's Local POD)
SCALES = (1, 2, 4)


def local_pod(features: Tensor, teacher_features: Tensor, scales: Sequence[int] = SCALES) -> Tensor:
    """Distance of two feature maps [B, C, h, w] in local POD embeddings: a scalar.

    The embedding of a squared map holds, for each cell of each scale, its means over width and
    its means over height; the distance is Euclidean, averaged over the batch. Pooling
    is linear, so the difference of the squares is pooled, once instead of twice.
    """
    difference = full_precision(features).square() - full_precision(teacher_features).square()
    pooled = [part for scale in scales for part in pool_cells(difference, scale)]
    # vector_norm's gradient at 0 is 0: a student that equals its teacher trains on
    return torch.linalg.vector_norm(torch.cat(pooled, dim=1), dim=1).mean()


def pool_cells(maps: Tensor, scale: int) -> list[Tensor]:
    """Means over the width and over the height of the cells of ``maps`` [B, C, h, w], flat.

    Cells are squares of ⌊w / scale⌋ positions from the upper left, scale × scale of them, as
    published: what they do not reach is left out, and a map that is wider than high cuts the
    lowest ones off. Two tensors [B, …] for all cells together, or in that case for each cell.
    """
    side = maps.shape[3] // scale
    covered = maps[:, :, : scale * side, : scale * side]
    if covered.shape[2] < scale * side:
        cells = [cell for row in covered.split(side, dim=2) for cell in row.split(side, dim=3)]
        return [half.flatten(1) for cell in cells for half in (cell.mean(dim=3), cell.mean(dim=2))]
    grid = covered.unflatten(2, (scale, side)).unflatten(4, (scale, side))
    return [grid.mean(dim=5).flatten(1), grid.mean(dim=3).flatten(1)]


def fold_into_background(logits: Tensor, n_old: int) -> Tensor:
    """Add the new classes' logits to background's: [B, n_old + n_new, h, w] → [B, n_old, h, w]."""
    logits = full_precision(logits)
    background = logits[:, :1] + logits[:, n_old:].sum(dim=1, keepdim=True)
    return torch.cat([background, logits[:, 1:n_old]], dim=1)


def old_predictions(teacher_logits: Upsampled, n_outputs: int) -> tuple[Tensor, Tensor]:
    """Uncertainty (float) and class (int64) of the teacher's predictions, both [B, H, W].

    The uncertainty is PLOP's as published: the entropy's *mean* over the old classes, over the
    logarithms of the number of old and of all (``n_outputs``) classes. It is not the entropy in
    [0, 1]: with 16 old classes it stays below 0.022, in the first three of 100 bins. Every
    published result of PLOP rests on it.
    """
    n_old = teacher_logits.maps.shape[1]

    def predict(logits: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = logits.softmax(dim=1)
        mean = -(probabilities + 1e-8).log_().mul_(probabilities).mean(dim=1)
        return mean / math.log(n_old) / math.log(n_outputs), largest_channel(probabilities)

    uncertainty, predicted = pixel_maps(predict, teacher_logits)
    return uncertainty, predicted


def uncertainty_histogram(
    teacher_logits: Upsampled, labels: Tensor, n_outputs: int, bins: int
) -> Tensor:
    """Count background pixels by predicted old class and uncertainty: [n_old, bins] int64.

    Bins are equal parts of [0, 1]; the last takes what lies above.
    """
    n_old = teacher_logits.maps.shape[1]
    uncertainty, predicted = old_predictions(teacher_logits, n_outputs)
    bin_index = (uncertainty * bins).long().clamp_(max=bins - 1)
    slot = torch.where(labels == 0, predicted * bins + bin_index, n_old * bins)
    counts = torch.bincount(slot.flatten(), minlength=n_old * bins + 1)
    return counts[:-1].reshape(n_old, bins)


def median_thresholds(histogram: Tensor, lowest: float, published: bool = False) -> Tensor:
    """Median uncertainty of each old class, at least ``lowest``: [n_old] float32.

    ``histogram``: [n_old, bins]; the median is interpolated within its bin, and is ``lowest`` for
    a class that was never predicted.

    ``published`` repeats a slip of the published code: while it looks for the median, it adds up
    the bins' indices instead of their counts. Unless the median lies in the first bin the
    threshold is then too low, too high, infinite (all pixels count as confident) or NaN (none).
    """
    counts = histogram.double()
    half = counts.sum(dim=1, keepdim=True) / 2
    bins = counts.shape[1]
    lower = [i / bins for i in range(bins)]
    if published:
        # its arithmetic in floats included: 0.29 · 100 is bin 28, and a search that fails ends
        # in the last bin with all indices added
        counts = counts[:, [int(low * bins) for low in lower]]
        passed = [0.0]
        for low in lower:
            passed.append(passed[-1] + low * bins)
        before = torch.tensor(passed, dtype=counts.dtype, device=counts.device)
        before = before.expand(len(counts), -1)
        counts = torch.cat([counts, counts[:, -1:]], dim=1)
        lower.append(lower[-1])
    else:
        before = (histogram.cumsum(dim=1) - histogram).double()
    reached = counts + before >= half
    reached[:, -1] = True
    median_bin = reached.int().argmax(dim=1, keepdim=True)
    inside = (half - before.gather(1, median_bin)) / counts.gather(1, median_bin)
    edges = torch.tensor(lower, dtype=counts.dtype, device=counts.device)
    medians = (edges[median_bin] + inside / bins).clamp(min=lowest)
    return torch.where(half > 0, medians, lowest).squeeze(1).float()


def pseudo_labels(
    labels: Tensor, teacher_logits: Upsampled, thresholds: Tensor, n_outputs: int
) -> tuple[Tensor, Tensor]:
    """Replace background by what the teacher is confident of.

    Returns labels [B, H, W], void where the teacher is not confident, and the share [B] of each
    image's background pixels where it is (the paper's ν). The share is 0 for an image without
    background, as published: such an image does not train the classifier. An old class that is
    labelled, as in an exemplar, stays.
    """
    old = labels == 0
    uncertainty, predicted = old_predictions(teacher_logits, n_outputs)
    confident = old & (uncertainty < thresholds[predicted])
    result = torch.where(confident, predicted, labels.masked_fill(old, VOID))
    share = confident.sum(dim=(1, 2)) / (old.sum(dim=(1, 2)) + 1e-6)
    return result, share
