"""LWF-MC (Rebuffi et al., iCaRL, CVPR 2017, without exemplars)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ciss.losses import (
    binary_cross_entropy,
    binary_distillation,
    distillation,
    sigmoid_sums,
)
from ciss.methods.base import Method


class MultiClassLearningWithoutForgetting(Method):
    """One sigmoid per class: binary cross-entropy and binary distillation of the old outputs.

    Options: ``distillation``, the weight of the binary distillation, summed over old channels (10
    in MiB's and AWT's experiments); ``softmax_distillation``, the weight of plain distillation on
    top (none in LWF-MC proper); ``compat`` takes the published AWT code's 10 for the latter.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "distillation": 10.0,
        "softmax_distillation": 0.0,
        "compat": False,
    }
    published: ClassVar[dict[str, Any]] = {"softmax_distillation": 10.0}
    base_objective: ClassVar[str] = "bce"
    sigmoid_outputs: ClassVar[bool] = True

    def per_pixel(
        self, labels: Tensor, logits: Tensor, teacher_logits: Tensor | None
    ) -> dict[str, Tensor]:
        """Binary cross-entropy and, with a teacher, the distillations."""
        sums = sigmoid_sums(logits, labels, teacher_logits)
        terms = {"classification": binary_cross_entropy(logits, labels, sums)}
        if teacher_logits is not None:
            binary, softmax = self.options["distillation"], self.options["softmax_distillation"]
            terms["distillation"] = binary * binary_distillation(logits, teacher_logits, sums)
            if softmax:
                terms["softmax_distillation"] = softmax * distillation(logits, teacher_logits)
        return terms
