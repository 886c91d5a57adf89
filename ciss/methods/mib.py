"""MiB (Cermelli et al., Modeling the Background, CVPR 2020)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ciss import losses
from ciss.methods.base import Batch, Method, pixel_mean


class ModelingTheBackground(Method):
    """Unbiased cross-entropy and unbiased distillation.

    Both account for what background means in a step: its labels hide old classes, and the
    teacher's background hides new ones. Options: ``distillation``, the weight (10 in the paper's
    VOC experiments).
    """

    defaults: ClassVar[dict[str, Any]] = {"distillation": 10.0}
    default_init: ClassVar[str] = "mib"

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Unbiased cross-entropy and distillation; plain cross-entropy at step 0."""
        logits = losses.full_precision(batch.student.logits)
        if batch.teacher is None:
            return {"classification": pixel_mean(losses.cross_entropy(logits, batch.labels))}
        sums = losses.log_sums(logits, self.n_old)
        classification = losses.unbiased_cross_entropy(logits, batch.labels, self.n_old, sums)
        distillation = losses.unbiased_distillation(logits, batch.teacher.logits, sums)
        return {
            "classification": pixel_mean(classification),
            "distillation": self.options["distillation"] * pixel_mean(distillation),
        }
