"""LWF-MC (Rebuffi et al., iCaRL, CVPR 2017, without exemplars)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ciss.losses import binary_cross_entropy, binary_distillation
from ciss.methods.base import Batch, Method, pixel_mean
from ciss.methods.ft import add_distillation


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

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy and, with a teacher, the distillations."""
        logits = batch.student.logits
        terms = {"classification": pixel_mean(binary_cross_entropy(logits, batch.labels))}
        if batch.teacher is not None:
            per_pixel = binary_distillation(logits, batch.teacher.logits)
            terms["distillation"] = self.options["distillation"] * pixel_mean(per_pixel)
        weight = self.options["softmax_distillation"]
        add_distillation(terms, batch, weight, name="softmax_distillation")
        return terms
