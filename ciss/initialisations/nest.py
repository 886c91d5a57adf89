"""``nest``: new classifiers are learned transformations of all old ones.

Xie et al., Early Preparation Pays Off, ECCV 2024, arXiv 2407.14142. With W the old weights
[C, N], background included: a new class has the weight (M ∘ W) P, M its importance of each channel
of each old class [C, N], P its projection [N]; the background keeps its own, (m ∘ w₀) p.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciss import distributed
from ciss.errors import CissError
from ciss.initialisations.base import Classifiers, Learner
from ciss.models.network import SegmentationNetwork

NEEDS_ATTRIBUTION = False
NEEDS_PRETUNING = True
OPTIONS: dict[str, Any] = {
    # the paper's for VOC; config.yaml has those for ADE20K
    "epochs": 5,
    "lr": 0.001,
    # SGD as in the training that follows
    "momentum": 0.9,
    "weight_decay": 0.0001,
}


class Transformation(Learner):
    """M, P and a bias for each new class, m and p for the background; the old weights are fixed."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__(network)
        channels = self.old_weight.shape[1]
        new = self.old_weight.new_empty
        #: M [n, N, C] and P [n, N]; what `start` finds replaces these
        self.importance = nn.Parameter(new(self.n_new, self.n_old, channels).fill_(1.0))
        self.projection = nn.Parameter(new(self.n_new, self.n_old).fill_(1 / self.n_old))
        self.bias = nn.Parameter(self.old_bias[:1].repeat(self.n_new))
        self.background_importance = nn.Parameter(new(channels).fill_(1.0))
        self.background_projection = nn.Parameter(new(()).fill_(1.0))

    @torch.no_grad()
    def start(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Start from how the new classes look to the old classifiers (``similarity``).

        Raises ``CissError`` when no image shows a new class. One that none shows starts as all new
        classes together.
        """
        shape = (self.n_new, self.n_old, self.old_weight.shape[1])
        sums = torch.zeros(shape, dtype=torch.float64, device=self.old_weight.device)
        pixels = torch.zeros(self.n_new, dtype=torch.int64, device=self.old_weight.device)
        for features, labels in batches:
            counts = pixels_of(labels, features.shape[-2:], self.n_old, self.n_new)
            pixels += counts.sum(dim=(0, 2, 3))
            with torch.autocast(features.device.type, enabled=False):
                for index, chosen in enumerate(counts.unbind(1)):
                    sums[index] += similarity(features, chosen, self.old_weight)
        sums, pixels = distributed.total(sums), distributed.total(pixels)
        if not pixels.any():
            raise CissError(
                "no image shows any of the step's new classes; there is nothing to start from"
            )
        everything = sums.sum(dim=0) / pixels.sum()
        for index, count in enumerate(pixels.tolist()):
            mean = sums[index] / count if count else everything
            self.importance[index] = mean
            self.projection[index] = mean.sum(dim=1).softmax(dim=0)

    def classifiers(self) -> Classifiers:
        """Return (M ∘ W) P and b of the new classes, (m ∘ w₀) p and its old bias of background."""
        return Classifiers(
            weight=torch.einsum("njc,jc,nj->nc", self.importance, self.old_weight, self.projection),
            bias=self.bias,
            background_weight=self.background_importance
            * self.old_weight[0]
            * self.background_projection,
            background_bias=self.old_bias[0],
        )


def learner(network: SegmentationNetwork, options: Mapping[str, Any]) -> Learner:
    """Return what learns the newest classifier of the widened ``network``."""
    return Transformation(network)


def pixels_of(labels: Tensor, size: torch.Size, first: int, n_new: int) -> Tensor:
    """Count the pixels of each new class behind each position of a feature map.

    ``labels``: int64 [B, H, W], the new classes are ``first`` … ``first + n_new - 1``; pixel y lies
    behind position ⌊y·h/H⌋ of ``size`` = (h, w). Returns int64 [B, n_new, h, w].
    """
    (height, width), (h, w) = labels.shape[1:], size
    new = (labels >= first) & (labels < first + n_new)
    image, row, column = new.nonzero(as_tuple=True)
    which = labels[new] - first
    place = ((image * n_new + which) * h + row * h // height) * w + column * w // width
    counts = torch.bincount(place, minlength=len(labels) * n_new * h * w)
    return counts.view(len(labels), n_new, h, w)


def similarity(features: Tensor, counts: Tensor, old_weight: Tensor) -> Tensor:
    """Sum over a class's pixels which channels speak for which old class, weighted by how much.

    ``features`` [B, C, h, w], ``counts`` [B, h, w] pixels of the class behind each position,
    ``old_weight`` W [N, C]. With p a pixel's features scaled to length 1 and s = softmax(W p), a
    pixel adds s_j where W_jc p_c > 0. Returns float64 [N, C].
    """
    shown = counts > 0
    p = F.normalize(features.movedim(1, -1)[shown], dim=1)
    s = (p @ old_weight.T).softmax(dim=1) * counts[shown][:, None]
    # W_jc p_c is positive where both have one sign: no tensor over pixels, classes and channels.
    positive, negative = (s.T @ side.to(s) for side in (p > 0, p < 0))
    return torch.where(old_weight > 0, positive, negative).where(old_weight != 0, 0).double()
