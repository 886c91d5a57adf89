"""SSUL (Cha et al., Semantic Segmentation with Unknown Label, NeurIPS 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ciss.datasets.base import UNKNOWN, VOID
from ciss.losses import binary_cross_entropy
from ciss.methods.base import Batch, Method
from ciss.models import SegmentationNetwork
from ciss.pixelwise import pixel_means
from ciss.pseudo_labels import completed


class SegmentationWithUnknownLabel(Method):
    """Sigmoid outputs, an unknown beside the background, a frozen network and pseudo-labels.

    Options: ``saliency``, what of the background is unknown: ``builtin``, a folder of maps, or
    ``none`` for all of it; ``saliency_threshold`` of the built-in maps, a multiple of their mean;
    ``confidence`` from which the teacher's class is a label (0.7); ``lr_factor``, what the rate of
    the new and the unknown's classifiers is of ``recipe.later.lr``, and ``background_lr_factor``,
    the background's rate as a share of theirs; ``heads``, ``linear`` classifiers as the other
    methods have, or ``conv``: a 3×3 convolution before each, whose batch norm is frozen after step
    0. ``compat`` takes the published SSUL code's, the latter.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "saliency": "builtin",
        "saliency_threshold": 1.5,
        "confidence": 0.7,
        "lr_factor": 10.0,
        "background_lr_factor": 1e-4,
        "heads": "linear",
        "compat": False,
    }
    choices: ClassVar[dict[str, list[str]]] = {"heads": ["linear", "conv"]}
    published: ClassVar[dict[str, Any]] = {"heads": "conv"}
    default_init: ClassVar[str] = "copy"
    base_objective: ClassVar[str] = "ssul"
    completes_labels: ClassVar[bool] = True
    has_unknown: ClassVar[bool] = True
    base_options: ClassVar[tuple[str, ...]] = (
        "saliency",
        "saliency_threshold",
        "heads",
        "compat",
    )

    def __init__(self, options: Mapping[str, Any], n_old: int, n_new: int) -> None:
        super().__init__(options, n_old, n_new)
        self.network_extras = {"unknown": True, "hidden": self.options["heads"] == "conv"}

    def trained(self, network: nn.Module) -> Mapping[str, float] | None:
        """Everything at step 0; later the classifiers of new classes, unknown and background."""
        if not self.n_old:
            return None
        assert isinstance(network, SegmentationNetwork)
        rate = self.options["lr_factor"]
        background = rate * self.options["background_lr_factor"]
        newest = len(network.classifiers) - 1
        parts = {f"cls.{newest}": rate, "unknown": rate, "cls.0": background}
        if network.hidden is not None:
            # The convolution, which comes before its norm.
            parts |= {f"hidden.{newest}.0": rate, "unknown_hidden.0": rate}
            parts |= {"hidden.0.0": background}
        return parts

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Binary cross-entropy on labels that the teacher completes.

        An image's mean is over its pixels with a label, not over all: a void pixel counts for
        nothing.
        """
        labels = batch.labels
        if batch.teacher is not None:
            confidence = self.options["confidence"]
            teacher = batch.teacher.upsampled_with_unknown
            labels = completed(labels, teacher, confidence, sigmoid=True, unknown=True)
        labelled = (labels != VOID).sum(dim=(1, 2), keepdim=True).clamp(min=1)
        scale = (labels[0].numel() / labelled).expand(-1, labels.shape[1], 1)
        student = batch.student.upsampled_with_unknown
        return pixel_means(self._scaled, labels, student, None, scale)

    def _scaled(
        self, labels: Tensor, logits: Tensor, teacher_logits: None, scale: Tensor
    ) -> dict[str, Tensor]:
        terms = self.per_pixel(labels, logits, teacher_logits)
        return {name: term * scale for name, term in terms.items()}

    def per_pixel(
        self, labels: Tensor, logits: Tensor, teacher_logits: Tensor | None
    ) -> dict[str, Tensor]:
        """Sigmoid cross-entropy, summed over the classes and the unknown, the last channel."""
        outputs = torch.where(labels == UNKNOWN, logits.shape[1] - 1, labels)
        return {"classification": binary_cross_entropy(logits, outputs)}
