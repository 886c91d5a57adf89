"""Fine-tuning: cross-entropy on the new labels and nothing against forgetting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ciss.losses import cross_entropy, distillation, softmax_sums
from ciss.methods.base import Method


class FineTuning(Method):
    """Cross-entropy; optionally with a distillation term, as the published AWT code ran it.

    Options: ``distillation``, the weight of plain distillation (none in fine-tuning proper);
    ``compat`` takes the published AWT code's value of 10, which its option parser adds to every
    method that does not set one.
    """

    defaults: ClassVar[dict[str, Any]] = {"distillation": 0.0, "compat": False}
    published: ClassVar[dict[str, Any]] = {"distillation": 10.0}

    def __init__(self, options: Mapping[str, Any], n_old: int, n_new: int) -> None:
        super().__init__(options, n_old, n_new)
        self.needs_teacher = bool(self.options["distillation"])

    def per_pixel(
        self, labels: Tensor, logits: Tensor, teacher_logits: Tensor | None
    ) -> dict[str, Tensor]:
        """Cross-entropy and, where it has a weight, distillation."""
        weight = self.options["distillation"]
        if teacher_logits is None or not weight:
            return {"classification": cross_entropy(logits, labels)}
        sums = softmax_sums(logits, labels, teacher_logits)
        return {
            "classification": cross_entropy(logits, labels, sums),
            "distillation": weight * distillation(logits, teacher_logits, sums),
        }
