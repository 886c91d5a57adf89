"""MiB (Cermelli et al., Modeling the Background, CVPR 2020)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ciss import losses
from ciss.methods.base import Method


class ModelingTheBackground(Method):
    """Unbiased cross-entropy and unbiased distillation.

    Both account for what background means in a step: its labels hide old classes, and the
    teacher's background hides new ones. Options: ``distillation``, the weight (10 in the paper's
    VOC experiments).
    """

    defaults: ClassVar[dict[str, Any]] = {"distillation": 10.0}
    default_init: ClassVar[str] = "mib"

    def per_pixel(
        self, labels: Tensor, logits: Tensor, teacher_logits: Tensor | None
    ) -> dict[str, Tensor]:
        """Unbiased cross-entropy and distillation; plain cross-entropy at step 0."""
        if teacher_logits is None:
            return {"classification": losses.cross_entropy(logits, labels)}
        sums = losses.softmax_sums(logits, labels, teacher_logits)
        distillation = losses.unbiased_distillation(logits, teacher_logits, sums)
        return {
            "classification": losses.unbiased_cross_entropy(
                logits, labels, self.n_old, sums, knows_old=self.has_exemplars
            ),
            "distillation": self.options["distillation"] * distillation,
        }
