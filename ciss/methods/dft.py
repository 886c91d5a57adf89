"""DFT* (Zhang et al., Revisiting Continual Semantic Segmentation, arXiv 2508.04267, 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from ciss.losses import cross_entropy
from ciss.methods.base import Batch, Method
from ciss.models import SegmentationNetwork


class DirectFineTuningStar(Method):
    """Cross-entropy over the classes that there are and those to come, on frozen features.

    Step 0 trains a classifier for every class that will come, which sees nothing but negatives.
    Later steps train the new classes' and those of the classes to come; encoder, head, and the
    classifiers of earlier steps, background's included, stay as they are.
    """

    base_objective: ClassVar[str] = "ce-preallocated"
    only_adds: ClassVar[bool] = True

    def __init__(self, options: Mapping[str, Any], n_old: int, n_new: int) -> None:
        super().__init__(options, n_old, n_new)
        self.needs_teacher = False

    def trained(self, network: nn.Module) -> Mapping[str, float] | None:
        """At step 0 everything, later the newest classifier and those of the classes to come."""
        if self.n_old == 0:
            return None
        assert isinstance(network, SegmentationNetwork)
        trained = {f"cls.{len(network.classifiers) - 1}": 1.0}
        return trained if network.future is None else {**trained, "future": 1.0}

    def per_pixel(
        self, labels: Tensor, logits: Tensor, teacher_logits: Tensor | None
    ) -> dict[str, Tensor]:
        """Cross-entropy over all outputs."""
        return {"classification": cross_entropy(logits, labels)}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy with the logits of the classes to come."""
        return super().losses(replace(batch, student=batch.student.allocated))
