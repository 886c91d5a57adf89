"""The methods' losses on logits, one value per pixel.

Every function takes logits of any floating type, computes in float32 (float64 stays float64), and
returns a map [B, H, W] that ``ciss.pixelwise.pixel_means`` averages, block by block. Labels are
int64 [B, H, W] in learning order; ``VOID`` pixels cost 0 in the losses on labels. Channels are
background, old classes, new classes; ``n_old`` counts the first two kinds.

Each takes ``sums`` of the same logits, labels and teacher where several losses share them.

Where a distillation is *divided by the number of old channels*, that is the published
implementations' average over classes, which the published weights (10, 100) assume.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ciss.datasets.base import VOID
from ciss.pixelwise import full_precision


class Sums(NamedTuple):
    """What the losses need of each pixel's logits, [B, H, W] each; ``None`` where not asked for.

    Sums over channels are log Σ exp for losses of a softmax, Σ softplus for those of sigmoids.
    """

    #: sum over all channels
    all: Tensor
    #: sum over the old channels, background included
    old: Tensor
    #: sum over the new channels; ``None`` where all are old
    new: Tensor | None
    #: the logit of the pixel's label, 0 at void
    label: Tensor | None
    #: the background's logit
    background: Tensor
    #: the teacher's probability of background
    target: Tensor | None
    #: Σ over the old classes, without background, of the teacher's probability × the logit
    expected: Tensor | None


def softmax_sums(
    logits: Tensor,
    labels: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    n_old: int | None = None,
) -> Sums:
    """Look at ``logits`` [B, n_old + n_new, H, W] once for all the losses of a softmax.

    ``n_old`` is the teacher's number of channels where there is one, else all of them by default.
    """
    targets = None if teacher_logits is None else full_precision(teacher_logits).softmax(dim=1)
    old, new, *rest = _sums_of(_log_sum_exp, logits, labels, targets, n_old)
    return Sums(old if new is None else torch.logaddexp(old, new), old, new, *rest)


def sigmoid_sums(
    logits: Tensor, labels: Tensor | None = None, teacher_logits: Tensor | None = None
) -> Sums:
    """The same for the losses of sigmoids."""
    targets = None if teacher_logits is None else full_precision(teacher_logits).sigmoid()
    old, new, *rest = _sums_of(_sum_softplus, logits, labels, targets, None)
    return Sums(old if new is None else old + new, old, new, *rest)


#: logits [B, C, H, W] to a sum over their channels [B, H, W] and its derivatives by each of them
_Kind = Callable[[Tensor], tuple[Tensor, Tensor]]


def _log_sum_exp(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log Σ exp. PyTorch makes probabilities in one pass; the largest of them is max − the sum."""
    probabilities = logits.softmax(dim=1)
    return logits.amax(dim=1) - probabilities.amax(dim=1).log(), probabilities


def _sum_softplus(logits: Tensor) -> tuple[Tensor, Tensor]:
    return F.softplus(logits).sum(dim=1), logits.sigmoid()


def _sums_of(
    kind: _Kind,
    logits: Tensor,
    labels: Tensor | None,
    targets: Tensor | None,
    n_old: int | None,
) -> tuple[Any, ...]:
    if n_old is None:
        n_old = logits.shape[1] if targets is None else targets.shape[1]
    # PyTorch's gradient of the label's logit refuses channels that lie side by side in memory.
    logits = full_precision(logits).contiguous()
    old, new, label, background, expected = _Sums.apply(logits, labels, targets, n_old, kind)
    return old, new, label, background, None if targets is None else targets[:, 0], expected


class _Sums(torch.autograd.Function):
    """Sums over channels, and one gradient for all of them.

    Autograd would make a tensor as large as the logits of each of them and add these up: most of
    what a loss costs then.
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor | None,
        targets: Tensor | None,
        n_old: int,
        kind: _Kind,
    ) -> tuple[Tensor | None, ...]:
        old, by_old = kind(logits[:, :n_old])
        new, by_new = kind(logits[:, n_old:]) if n_old < logits.shape[1] else (None, None)
        label = expected = None
        if labels is not None:
            label = -F.nll_loss(logits, labels, ignore_index=VOID, reduction="none")
        if targets is not None:
            expected = (targets[:, 1:] * logits[:, 1:n_old]).sum(dim=1)
        ctx.save_for_backward(logits, by_old, by_new, labels, targets)
        return old, new, label, logits[:, 0].clone(), expected

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        old: Tensor,
        new: Tensor | None,
        label: Tensor | None,
        background: Tensor,
        expected: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        logits, by_old, by_new, labels, targets = ctx.saved_tensors
        n_old = by_old.shape[1]
        if label is None:
            gradient = torch.zeros_like(logits)
        else:
            # Unlike scattered additions also fast with deterministic kernels on a GPU.
            gradient = torch.ops.aten.nll_loss2d_backward(
                -label, logits, labels, None, 0, VOID, label.new_zeros(())
            )
        gradient[:, :n_old].addcmul_(by_old, old[:, None])
        if new is not None:
            gradient[:, n_old:].addcmul_(by_new, new[:, None])
        if expected is not None:
            gradient[:, 1:n_old].addcmul_(targets[:, 1:], expected[:, None])
        gradient[:, 0] += background
        return gradient, None, None, None, None


def without_void(per_pixel: Tensor, labels: Tensor) -> Tensor:
    """Set void pixels to 0."""
    return per_pixel.masked_fill(labels == VOID, 0.0)


def cross_entropy(logits: Tensor, labels: Tensor, sums: Sums | None = None) -> Tensor:
    """Softmax cross-entropy of each pixel, 0 at void."""
    if sums is None:
        return F.cross_entropy(full_precision(logits), labels, ignore_index=VOID, reduction="none")
    assert sums.label is not None
    return without_void(sums.all - sums.label, labels)


def binary_cross_entropy(logits: Tensor, labels: Tensor, sums: Sums | None = None) -> Tensor:
    """Sigmoid cross-entropy against the one-hot label, summed over classes, 0 at void.

    Σ_c softplus(z_c) − z_label is that sum without the one-hot tensor.
    """
    sums = sums or sigmoid_sums(logits, labels)
    assert sums.label is not None
    return without_void(sums.all - sums.label, labels)


def distillation(logits: Tensor, teacher_logits: Tensor, sums: Sums | None = None) -> Tensor:
    """Cross-entropy between the teacher's and the student's old classes, divided by their number.

    Li & Hoiem, Learning without Forgetting, at temperature 1. The student's new channels
    take no part. Labels play no role: void pixels count.
    """
    sums = sums or softmax_sums(logits, None, teacher_logits)
    return (sums.old - _expected_logit(sums, sums.background)) / teacher_logits.shape[1]


def binary_distillation(logits: Tensor, teacher_logits: Tensor, sums: Sums | None = None) -> Tensor:
    """Sigmoid cross-entropy of the old channels against the teacher's, summed over channels.

    The distillation of iCaRL (Rebuffi et al., 2017) as LWF-MC uses it; void pixels count.
    """
    sums = sums or sigmoid_sums(logits, None, teacher_logits)
    return sums.old - _expected_logit(sums, sums.background)


def unbiased_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    n_old: int,
    sums: Sums | None = None,
    *,
    knows_old: bool = False,
) -> Tensor:
    """Cross-entropy in which background stands for background or any old class; 0 at void.

    Cermelli et al., Modeling the Background. A label of an old class counts as background, as
    published; with ``knows_old``, where exemplars bring such labels, the class stands for itself.
    """
    sums = sums or softmax_sums(logits, labels, n_old=n_old)
    assert sums.label is not None
    chosen = torch.where(labels < (1 if knows_old else n_old), sums.old, sums.label)
    return without_void(sums.all - chosen, labels)


def unbiased_distillation(
    logits: Tensor, teacher_logits: Tensor, sums: Sums | None = None
) -> Tensor:
    """Distillation in which the teacher's background stands for background or any new class.

    Cermelli et al., Modeling the Background, divided by the number of old channels. Void pixels
    count.
    """
    sums = sums or softmax_sums(logits, None, teacher_logits)
    background = sums.background
    if sums.new is not None:
        background = torch.logaddexp(background, sums.new)
    return (sums.all - _expected_logit(sums, background)) / teacher_logits.shape[1]


def _expected_logit(sums: Sums, background: Tensor) -> Tensor:
    """Mean of the logits under the teacher's probabilities, ``background`` that of the first."""
    assert sums.target is not None
    assert sums.expected is not None
    return sums.target * background + sums.expected


def feature_distillation(features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared difference of two feature maps: a scalar (Michieli & Zanuttigh, ILT)."""
    return F.mse_loss(full_precision(features), full_precision(teacher_features))
