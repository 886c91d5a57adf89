"""PLOP (Douillard et al., Learning without Forgetting for CISS, CVPR 2021)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ciss import distributed, plop
from ciss.methods.base import Batch
from ciss.methods.ft import FineTuning
from ciss.pixelwise import pixel_means


class PseudoLabelsLocalPod(FineTuning):
    """Cross-entropy on labels completed by a confident teacher, and local POD on feature maps.

    Options: ``pod_factor`` (backbone stages and pre-classifier map) and ``pod_logits_factor`` of
    the POD term; ``bins`` of the uncertainty histogram and ``lowest_threshold`` of the confidence
    thresholds; ``published_thresholds``, compute these with the published code's slip;
    ``distillation``, the weight of plain distillation on top (none in PLOP proper). ``compat``
    takes the published AWT code's values: its thresholds and a distillation of 10.
    """

    defaults: ClassVar[dict[str, Any]] = {
        "pod_factor": 0.01,
        "pod_logits_factor": 0.0005,
        "bins": 100,
        "lowest_threshold": 0.001,
        "published_thresholds": False,
        "distillation": 0.0,
        "compat": False,
    }
    published: ClassVar[dict[str, Any]] = {"published_thresholds": True, "distillation": 10.0}
    default_init: ClassVar[str] = "mib"
    completes_labels: ClassVar[bool] = True

    def __init__(self, options: Mapping[str, Any], n_old: int, n_new: int) -> None:
        super().__init__(options, n_old, n_new)
        self.needs_teacher = True
        self.thresholds: Tensor | None = None

    @torch.no_grad()
    def prepare(self, teacher: nn.Module | None, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Find each old class's threshold: the median of the teacher's uncertainty, one pass."""
        if teacher is None or self.thresholds is not None:
            return
        bins = self.options["bins"]
        histogram = torch.zeros(self.n_old, bins, dtype=torch.int64)
        for inputs, labels in batches:
            logits = teacher(inputs).upsampled
            counts = plop.uncertainty_histogram(logits, labels, self.n_old + self.n_new, bins)
            histogram = histogram.to(counts.device) + counts
        self.thresholds = plop.median_thresholds(
            distributed.total(histogram),
            self.options["lowest_threshold"],
            self.options["published_thresholds"],
        )

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on pseudo-labels, scaled for each image, and POD; step 0: the former."""
        if batch.teacher is None:
            return super().losses(batch)
        if self.thresholds is None:
            raise RuntimeError("PLOP's thresholds are missing: call prepare first")
        student, teacher = batch.student.upsampled, batch.teacher.upsampled
        labels, share = plop.pseudo_labels(
            batch.labels, teacher, self.thresholds, self.n_old + self.n_new
        )
        scale = share[:, None, None].expand(-1, labels.shape[1], 1)
        distilled = teacher if self.options["distillation"] else None
        terms = pixel_means(self._scaled, labels, student, distilled, scale)
        return {**terms, "pod": self._pod(batch)}

    def _scaled(
        self, labels: Tensor, logits: Tensor, teacher_logits: Tensor | None, scale: Tensor
    ) -> dict[str, Tensor]:
        """Fine-tuning's terms, the cross-entropy × ``scale`` [b, r, 1]."""
        terms = self.per_pixel(labels, logits, teacher_logits)
        return {**terms, "classification": terms["classification"] * scale}

    def _pod(self, batch: Batch) -> Tensor:
        """Local POD averaged over the maps, × √(current / new classes)."""
        student, teacher = batch.student, batch.teacher
        assert teacher is not None
        maps = [*zip(student.attentions, teacher.attentions, strict=True)]
        maps.append((student.pre_logits, teacher.pre_logits))
        terms = [self.options["pod_factor"] * plop.local_pod(ours, its) for ours, its in maps]
        folded = plop.fold_into_background(student.small_logits, self.n_old)
        logits_pod = plop.local_pod(folded, teacher.small_logits)
        terms.append(self.options["pod_logits_factor"] * logits_pod)
        schedule = math.sqrt((self.n_old + self.n_new) / self.n_new)
        return schedule * torch.stack(terms).mean()

    def state_dict(self) -> dict[str, Tensor]:
        """The thresholds, once known."""
        return {} if self.thresholds is None else {"thresholds": self.thresholds}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back the thresholds; ``prepare`` then skips its pass."""
        self.thresholds = state.get("thresholds")
