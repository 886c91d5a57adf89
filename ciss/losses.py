"""The methods' losses on logits, one value per pixel.

Every function takes logits of any floating type, computes in float32 (float64 stays float64), and
returns a map [B, H, W] that ``ciss.pixelwise.pixel_means`` averages, block by block. Labels are
int64 [B, H, W] in learning order; ``VOID`` pixels cost 0 in the losses on labels. Channels are
background, old classes, new classes; ``n_old`` counts the first two kinds.

Where a distillation is *divided by the number of old channels*, that is the published
implementations' average over classes, which the published weights (10, 100) assume.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.datasets.base import VOID
from ciss.pixelwise import full_precision


def label_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Pick each pixel's logit of its own label, 0 at void: [B, C, H, W] → [B, H, W].

    ``nll_loss`` is a gather with a void label whose gradient needs no scattered additions, so it
    is also fast with deterministic kernels on a GPU.
    """
    return -F.nll_loss(logits, labels, ignore_index=VOID, reduction="none")


def without_void(per_pixel: Tensor, labels: Tensor) -> Tensor:
    """Set void pixels to 0."""
    return per_pixel.masked_fill(labels == VOID, 0.0)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Softmax cross-entropy of each pixel, 0 at void."""
    return F.cross_entropy(full_precision(logits), labels, ignore_index=VOID, reduction="none")


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Sigmoid cross-entropy against the one-hot label, summed over classes, 0 at void.

    Σ_c softplus(z_c) − z_label is that sum without the one-hot tensor.
    """
    logits = full_precision(logits)
    sums = F.softplus(logits).sum(dim=1)
    return without_void(sums - label_logits(logits, labels), labels)


def distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy between the teacher's and the student's old classes, divided by their number.

    Li & Hoiem, Learning without Forgetting, at temperature 1. The student's new channels
    take no part. Labels play no role: void pixels count.
    """
    n_old = teacher_logits.shape[1]
    old = full_precision(logits[:, :n_old])
    target = full_precision(teacher_logits).softmax(dim=1)
    return (torch.logsumexp(old, dim=1) - (target * old).sum(dim=1)) / n_old


def binary_distillation(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Sigmoid cross-entropy of the old channels against the teacher's, summed over channels.

    The distillation of iCaRL (Rebuffi et al., 2017) as LWF-MC uses it; void pixels count.
    """
    old = full_precision(logits[:, : teacher_logits.shape[1]])
    target = full_precision(teacher_logits).sigmoid()
    return (F.softplus(old) - old * target).sum(dim=1)


class LogSums(NamedTuple):
    """log Σ exp over the old channels (background included) and over the new: both [B, H, W].

    Every normalisation in MiB's two losses follows from these two.
    """

    old: Tensor
    new: Tensor

    @property
    def all(self) -> Tensor:
        """Return log Σ exp over all channels."""
        return torch.logaddexp(self.old, self.new)


def log_sums(logits: Tensor, n_old: int) -> LogSums:
    """Compute the two log-sum-exps of ``logits`` [B, n_old + n_new, H, W]."""
    logits = full_precision(logits)
    return LogSums(logits[:, :n_old].logsumexp(dim=1), logits[:, n_old:].logsumexp(dim=1))


def unbiased_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    n_old: int,
    sums: LogSums | None = None,
    *,
    knows_old: bool = False,
) -> Tensor:
    """Cross-entropy in which background stands for background or any old class; 0 at void.

    Cermelli et al., Modeling the Background. A label of an old class counts as background, as
    published; with ``knows_old``, where exemplars bring such labels, the class stands for itself.
    ``sums`` may be given where they are known already.
    """
    logits = full_precision(logits)
    sums = sums or log_sums(logits, n_old)
    chosen = torch.where(
        labels < (1 if knows_old else n_old), sums.old, label_logits(logits, labels)
    )
    return without_void(sums.all - chosen, labels)


def unbiased_distillation(
    logits: Tensor, teacher_logits: Tensor, sums: LogSums | None = None
) -> Tensor:
    """Distillation in which the teacher's background stands for background or any new class.

    Cermelli et al., Modeling the Background, divided by the number of old channels. Void pixels
    count.
    """
    n_old = teacher_logits.shape[1]
    logits = full_precision(logits)
    sums = sums or log_sums(logits, n_old)
    target = full_precision(teacher_logits).softmax(dim=1)
    background = torch.logaddexp(logits[:, 0], sums.new)
    classes = (target[:, 1:] * logits[:, 1:n_old]).sum(dim=1)
    return (sums.all - target[:, 0] * background - classes) / n_old


def feature_distillation(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared difference of two feature maps: a scalar (Michieli & Zanuttigh, ILT)."""
    return F.mse_loss(full_precision(features), full_precision(teacher_features))
