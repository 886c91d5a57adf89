"""Labels by the model of the step before: old classes where labels say background."""

from __future__ import annotations

import torch
from torch import Tensor

from ciss.datasets.base import BACKGROUND, UNKNOWN
from ciss.pixelwise import Upsampled, largest_channel, pixel_maps


def completed(
    labels: Tensor,
    teacher_logits: Upsampled,
    confidence: float,
    *,
    sigmoid: bool = False,
    unknown: bool = False,
) -> Tensor:
    """Replace background in ``labels`` [B, H, W] by the old class that the teacher is sure of.

    ``teacher_logits``: [B, N, H, W] of background and old classes. The teacher is sure where the
    largest of its outputs is an old class's and at least ``confidence``: of a softmax, or with
    ``sigmoid`` of one sigmoid a class. With ``unknown`` the last channel is that of the unknown,
    which is no class, and what is labelled so is completed as background is (Cha et al., SSUL,
    NeurIPS 2021).
    """

    def predict(logits: Tensor) -> tuple[Tensor, Tensor]:
        # Of logits, not of sigmoids: those of large logits are all 1 in float32.
        largest, predicted = logits.amax(dim=1), largest_channel(logits)
        score = largest.sigmoid() if sigmoid else (largest - logits.logsumexp(dim=1)).exp()
        return score, predicted

    score, predicted = pixel_maps(predict, teacher_logits)
    old = (predicted != BACKGROUND) & (score >= confidence)
    open_to = labels == BACKGROUND
    if unknown:
        old &= predicted != teacher_logits.maps.shape[1] - 1
        open_to |= labels == UNKNOWN
    return torch.where(old & open_to, predicted, labels)
