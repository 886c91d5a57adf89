"""Confusion matrix of a network over the test images of a step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from ciss import distributed
from ciss.loading import to_network_input
from ciss.metrics import confusion_matrix
from ciss.models import SegmentationNetwork
from ciss.models.network import NetworkOutput


@torch.inference_mode()
def evaluate(
    network: SegmentationNetwork, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device
) -> Tensor:
    """Count pixels by truth and prediction over all batches, in float32: int64 [N, N] on the CPU.

    ``batches``: images uint8 [B, 3, H, W] and labels uint8 [B, H, W] in learning order, classes
    that are not yet learned as background. Of several processes each brings its own batches; all
    get the sum.
    """
    network = network.to(device).eval()
    total = torch.zeros(network.n_classes, network.n_classes, dtype=torch.int64, device=device)
    for images, labels in batches:
        predicted = segment(network, images.to(device, non_blocking=True))
        total += confusion_matrix(labels.to(device).long(), predicted, network.n_classes)
    return distributed.total(total).cpu()


def segment(network: SegmentationNetwork, images: Tensor) -> Tensor:
    """Label images, uint8 [B, 3, H, W] on the network's device: int64 [B, H, W]."""
    output: NetworkOutput = network(to_network_input(images))
    return output.predicted
