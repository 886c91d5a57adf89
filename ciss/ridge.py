"""CFSSeg's head: ridge regression on random features, solved in closed form step after step.

Li et al., arXiv 2412.10834 (ACM MM 2025). Of every pixel that it has seen the regression keeps two
sums, of which the head follows exactly: whatever the order and number of steps, it is the one that
all pixels together would give. Products are taken in float64. In float32 the rounding of a sum over
millions of pixels exceeds the smallest eigenvalues, and with them γ.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ciss import distributed
from ciss.checkpoint import load_tensors, save_tensors
from ciss.datasets.base import VOID
from ciss.errors import CissError
from ciss.loading import to_network_input
from ciss.models.network import SegmentationNetwork, random_features

#: positions whose features are in float64 at once: 268 MB of 8,192 features
CHUNK = 4096


@dataclass
class Ridge:
    """What is kept of all pixels, for F features and N classes, background included."""

    #: [F, F] float64, the sum of EᵀE
    gram: Tensor
    #: [F, N] float64, the sum of EᵀY, Y one-hot
    cross: Tensor
    #: [N] int64, pixels of each class
    count: Tensor

    @classmethod
    def empty(cls, features: int, n_classes: int, device: torch.device) -> Ridge:
        """Start with no pixel."""
        return cls(
            torch.zeros(features, features, dtype=torch.float64, device=device),
            torch.zeros(features, n_classes, dtype=torch.float64, device=device),
            torch.zeros(n_classes, dtype=torch.int64, device=device),
        )

    def widened(self, n_new: int) -> Ridge:
        """The same pixels with ``n_new`` more classes, of which none was seen yet."""
        return Ridge(self.gram, F.pad(self.cross, (0, n_new)), F.pad(self.count, (0, n_new)))

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add pixels, in place: ``features`` [P, F] and ``labels`` [P] int64; void ones are not."""
        seen = labels != VOID
        for e, y in zip(features[seen].split(CHUNK), labels[seen].split(CHUNK), strict=True):
            e = e.double()
            self.gram.addmm_(e.T, e)
            self.cross.addmm_(e.T, F.one_hot(y, len(self.count)).double())
            self.count += torch.bincount(y, minlength=len(self.count))

    def total(self, others: Ridge) -> Ridge:
        """This, which all processes have, and what each of them has in ``others``."""
        return Ridge(
            self.gram + distributed.total(others.gram),
            self.cross + distributed.total(others.cross),
            self.count + distributed.total(others.count),
        )

    def solve(self, gamma: float) -> Tensor:
        """Return Φ = (ΣEᵀE + γI)⁻¹ ΣEᵀY, [F, N] float64, by Cholesky's decomposition.

        Raises ``CissError`` where the matrix is not positive definite in float64.
        """
        matrix = self.gram.clone()
        matrix.diagonal().add_(gamma)
        factor, failed = torch.linalg.cholesky_ex(matrix)
        if failed.item():
            raise CissError(
                f"the regression on {len(matrix)} features cannot be solved with gamma {gamma}: "
                "its matrix is not positive definite; set the method's gamma higher"
            )
        return torch.cholesky_solve(self.cross, factor)

    def error(self, phi: Tensor, gamma: float) -> float:
        """Mean over all pixels of the squared error ‖y − φe‖² of the solution ``phi``."""
        explained = (phi * self.cross).sum() + gamma * phi.square().sum()
        return 1 - float(explained) / max(int(self.count.sum()), 1)


def centre_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels [B, H, W] of the pixels in the middle of each cell of a feature map (h, w)."""
    rows, columns = (
        ((torch.arange(small, device=labels.device) + 0.5) * large / small).long()
        for small, large in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[:, rows[:, None], columns]


def with_pseudo_labels(labels: Tensor, logits: Tensor, uncertainty: float) -> Tensor:
    """Give background what the old head is sure of: 1 − σ(largest logit) ≤ ``uncertainty``.

    ``labels`` [B, h, w], ``logits`` [B, N, h, w] of the old classes.
    """
    largest, predicted = logits.max(dim=1)
    sure = 1 - largest.sigmoid() <= uncertainty
    return torch.where((labels == 0) & (predicted > 0) & sure, predicted, labels)


def random_expansion(features: int, channels: int, seed: int) -> Tensor:
    """Draw the fixed R: [features, channels] float32, normal with variance 1 / channels."""
    # Not the numbers that drew the network's first weights. Of a seed 32 bits count.
    generator = torch.Generator().manual_seed(2**31 + seed)
    return torch.randn(features, channels, generator=generator) / channels**0.5


@torch.inference_mode()
def accumulate(
    before: Ridge,
    network: SegmentationNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    uncertainty: float | None,
) -> Ridge:
    """Return ``before`` and all pixels of ``batches``, over all processes.

    ``network`` is that of the step before, on the device of ``before``; its encoder and random
    features stay as they are, in evaluation mode and float32. ``batches``: images uint8
    [B, 3, H, W] and labels uint8 [B, H, W] in learning order; each process brings its own.
    ``uncertainty``: up to which background takes the network's prediction; ``None`` at step 0.
    """
    network.eval()
    assert network.expansion is not None
    device = before.gram.device
    mine = Ridge.empty(len(before.gram), len(before.count), device)
    for images, labels in batches:
        features = network.features(to_network_input(images.to(device))).pre_logits
        size = (features.shape[-2], features.shape[-1])
        small = centre_labels(labels.to(device).long(), size)
        if uncertainty is not None:
            small = with_pseudo_labels(small, network.classify(features), uncertainty)
        for image, its_labels in zip(features.split(1), small, strict=True):
            expanded = random_features(image, network.expansion)
            mine.add(expanded[0].flatten(1).T, its_labels.flatten())
    return before.total(mine)


def with_head(
    network: SegmentationNetwork, expansion: Tensor, phi: Tensor, classes_per_step: list[int]
) -> SegmentationNetwork:
    """Return ``network`` with random features and the classifiers Φ, ``phi`` [F, N], in evaluation.

    Encoder and head are shared with it.
    """
    shape = {**network.shape, "classes_per_step": classes_per_step, "features": len(expansion)}
    with torch.device("meta"):
        other = SegmentationNetwork.of_shape(shape)
    state = {
        name: value
        for name, value in network.state_dict().items()
        if name.startswith(("body.", "head."))
    }
    parts = phi.T.to(expansion).contiguous().split(classes_per_step)
    classifiers = {f"cls.{n}.weight": part[:, :, None, None] for n, part in enumerate(parts)}
    other.load_state_dict({**state, **classifiers, "expansion": expansion}, assign=True)
    return other.eval()


def save_ridge(path: Path | str, ridge: Ridge, metadata: Mapping[str, Any]) -> None:
    """Write the sums; of the symmetric one its upper half, 268 MB for 8,192 features."""
    half = ridge.gram[_upper(ridge.gram)]
    tensors = {"gram": half, "cross": ridge.cross, "count": ridge.count}
    save_tensors(path, tensors, metadata, kind="ridge")


def load_ridge(path: Path | str, device: torch.device) -> Ridge:
    """Read what ``save_ridge`` wrote. Raises ``CissError`` for any other or damaged file."""
    tensors, _ = load_tensors(path, kind="ridge", names=("gram", "cross", "count"))
    features = len(tensors["cross"])
    gram = torch.zeros(features, features, dtype=torch.float64)
    gram[_upper(gram)] = tensors["gram"]
    gram = gram + gram.triu(1).T
    return Ridge(gram.to(device), tensors["cross"].to(device), tensors["count"].to(device))


def _upper(matrix: Tensor) -> Tensor:
    return torch.ones_like(matrix, dtype=torch.bool).triu()
