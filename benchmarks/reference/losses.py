"""Losses as class-incremental code bases compute them: on all full-resolution logits at once.

Each function takes the small logits of the student and of the teacher [B, C, h, w], labels
[B, H, W] and the number of old classes, upsamples, and returns the terms of the loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

VOID = 255

Terms = dict[str, Tensor]
#: (student's small logits, teacher's, labels, old classes) -> terms
Loss = Callable[[Tensor, Tensor, Tensor, int], Terms]


def upsample(maps: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(maps, size=labels.shape[1:], mode="bilinear", align_corners=False)


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=VOID, reduction="none").mean()


def distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    old = torch.log_softmax(logits[:, : teacher.shape[1]], dim=1)
    return -(torch.softmax(teacher, dim=1) * old).mean(dim=1).mean()


def ft(small: Tensor, teacher: Tensor, labels: Tensor, n_old: int) -> Terms:
    return {"classification": cross_entropy(upsample(small, labels), labels)}


def lwf(small: Tensor, teacher: Tensor, labels: Tensor, n_old: int) -> Terms:
    logits = upsample(small, labels)
    return {
        "classification": cross_entropy(logits, labels),
        "distillation": 100 * distillation(logits, upsample(teacher, labels)),
    }


def lwf_mc(small: Tensor, teacher: Tensor, labels: Tensor, n_old: int) -> Terms:
    logits, old = upsample(small, labels), upsample(teacher, labels)
    known = labels != VOID
    targets = torch.zeros_like(logits)
    targets.scatter_(1, (labels * known)[:, None], 1.0)
    per_class = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    classification = (per_class.sum(dim=1) * known).mean()
    kept = F.binary_cross_entropy_with_logits(logits[:, :n_old], torch.sigmoid(old))
    return {"classification": classification, "distillation": 10 * n_old * kept}


def mib(small: Tensor, teacher: Tensor, labels: Tensor, n_old: int) -> Terms:
    logits, old = upsample(small, labels), upsample(teacher, labels)
    # Classification: background is background or any old class.
    everything = torch.logsumexp(logits, dim=1)
    outputs = torch.zeros_like(logits)
    outputs[:, 0] = torch.logsumexp(logits[:, :n_old], dim=1) - everything
    outputs[:, n_old:] = logits[:, n_old:] - everything[:, None]
    shifted = labels.clone()
    shifted[shifted < n_old] = 0
    classification = F.nll_loss(outputs, shifted, ignore_index=VOID, reduction="none").mean()
    # Distillation: the teacher's background is background or any new class.
    everything = torch.logsumexp(logits, dim=1)
    unknown = torch.tensor([0, *range(n_old, logits.shape[1])], device=logits.device)
    background = torch.logsumexp(logits.index_select(1, unknown), dim=1) - everything
    classes = logits[:, 1:n_old] - everything[:, None]
    targets = torch.softmax(old, dim=1)
    kept = targets[:, 0] * background + (targets[:, 1:] * classes).sum(dim=1)
    return {"classification": classification, "distillation": -10 * (kept / n_old).mean()}


def plop(small: Tensor, teacher: Tensor, labels: Tensor, n_old: int) -> Terms:
    """Pseudo-labels and the cross-entropy on them; POD is ``local_pod``."""
    logits, old = upsample(small, labels), upsample(teacher, labels)
    probabilities = torch.softmax(old, dim=1)
    entropy = -(probabilities * torch.log(probabilities + 1e-8)).mean(dim=1) / math.log(n_old)
    uncertainty = entropy / math.log(logits.shape[1])
    hidden = labels < n_old
    confident = (uncertainty < 0.002) & hidden
    pseudo = labels.clone()
    pseudo[hidden] = VOID
    pseudo[confident] = probabilities.argmax(dim=1)[confident]
    share = confident.sum(dim=(1, 2)) / (hidden.sum(dim=(1, 2)) + 1e-6)
    per_pixel = F.cross_entropy(logits, pseudo, ignore_index=VOID, reduction="none")
    return {"classification": (share[:, None, None] * per_pixel).mean()}


LOSSES: dict[str, Loss] = {"ft": ft, "lwf": lwf, "lwf-mc": lwf_mc, "mib": mib, "plop": plop}


def local_pod(features: Tensor, teacher: Tensor) -> Tensor:
    """Embed both squared maps, cell after cell, and take the distance."""

    def embedding(maps: Tensor) -> Tensor:
        squared, parts = maps.square(), []
        for scale in (1, 2, 4):
            side = maps.shape[3] // scale
            for row in range(scale):
                for column in range(scale):
                    rows = slice(row * side, (row + 1) * side)
                    cell = squared[:, :, rows, column * side : (column + 1) * side]
                    parts += [cell.mean(dim=3).flatten(1), cell.mean(dim=2).flatten(1)]
        return torch.cat(parts, dim=1)

    return torch.linalg.vector_norm(embedding(features) - embedding(teacher), dim=1).mean()
