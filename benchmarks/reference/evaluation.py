"""Evaluation as published: one image at a time, its logits at full size, counts by NumPy."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ciss.loading import to_network_input
from ciss.models import SegmentationNetwork


@torch.no_grad()
def confusion_matrix(
    network: SegmentationNetwork, images: Tensor, labels: Tensor, device: torch.device
) -> np.ndarray:
    """Count pixels by truth and prediction: int64 [N, N]. ``images``, ``labels``: uint8."""
    n = network.n_classes
    total = np.zeros((n, n), dtype=np.int64)
    for image, label in zip(images, labels, strict=True):
        small = network(to_network_input(image[None]).to(device)).small_logits
        logits = F.interpolate(small, image.shape[1:], mode="bilinear", align_corners=False)
        predicted = logits.cpu().max(dim=1)[1][0].numpy()
        truth = label.numpy().astype(np.int64)
        known = truth < n
        cells = n * truth[known] + predicted[known]
        total += np.bincount(cells, minlength=n**2).reshape(n, n)
    return total
