"""The start of a step as published: build a network, load a checkpoint, move channels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ciss.models import NetworkConfig, SegmentationNetwork


def save(path: Path, network: SegmentationNetwork) -> None:
    """Write a checkpoint with its optimiser, as trainings leave it."""
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    sum(p.sum() for p in network.parameters()).backward()  # type: ignore[union-attr]
    optimiser.step()
    optimiser.zero_grad()
    state = {"model_state": network.state_dict(), "optimizer_state": optimiser.state_dict()}
    torch.save(state, path)


def widened(
    path: Path,
    config: NetworkConfig,
    classes: list[int],
    fresh: tuple[Tensor, Tensor],
    mask: Tensor,
) -> SegmentationNetwork:
    """Start a step: ``classes`` of all steps, ``fresh`` weights and biases of the new classes.

    ``mask``: bool [C], channels whose background weights are added to the fresh ones.
    """
    network = SegmentationNetwork(config, classes)
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    network.load_state_dict(checkpoint["model_state"], strict=False)
    background, newest = network.classifiers[0], network.classifiers[-1]
    weights, biases = fresh
    with torch.no_grad():
        newest.weight.copy_(weights)
        assert newest.bias is not None
        newest.bias.copy_(biases)
        newest.weight += background.weight[0] * mask[:, None, None]
    return network
