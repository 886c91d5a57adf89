"""Evaluation as published: all logits of a batch at full size, counts of each image by NumPy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.loading import to_network_input
from ciss.models import SegmentationNetwork


@torch.no_grad()
def confusion_matrix(
    network: SegmentationNetwork, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> np.ndarray:
    """Count pixels by truth and prediction: int64 [N, N].

    ``batches``: images uint8 [B, 3, H, W] and labels uint8 [B, H, W].
    """
    n = network.n_classes
    total = np.zeros((n, n), dtype=np.int64)
    for images, labels in batches:
        small = network(to_network_input(images.to(device))).small_logits
        logits = F.interpolate(small, images.shape[2:], mode="bilinear", align_corners=False)
        predictions = logits.max(dim=1)[1].cpu().numpy()
        for truth, predicted in zip(labels.numpy().astype(np.int64), predictions, strict=True):
            known = truth < n
            cells = n * truth[known] + predicted[known]
            total += np.bincount(cells, minlength=n**2).reshape(n, n)
    return total
