"""ILT (Michieli & Zanuttigh, Incremental Learning Techniques, ICCV-W 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from ciss.losses import feature_distillation
from ciss.methods.base import Batch
from ciss.methods.lwf import LearningWithoutForgetting


class IncrementalLearningTechniques(LearningWithoutForgetting):
    """Cross-entropy, distillation of the old probabilities and of the encoder's output.

    Options: ``distillation`` and ``feature_distillation``, the weights (100 each in MiB's and
    AWT's experiments).
    """

    defaults: ClassVar[dict[str, Any]] = {"distillation": 100.0, "feature_distillation": 100.0}

    def __init__(self, options: Mapping[str, Any], n_old: int, n_new: int) -> None:
        super().__init__(options, n_old, n_new)
        self.needs_teacher |= bool(self.options["feature_distillation"])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Add the mean squared difference of the encoder's outputs."""
        terms = super().losses(batch)
        if batch.teacher is not None:
            difference = feature_distillation(batch.student.body, batch.teacher.body)
            terms["features"] = self.options["feature_distillation"] * difference
        return terms
