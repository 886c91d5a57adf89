"""The network's forward pass in both modes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from unittest.mock import patch

import torch

from ciss.models import NetworkConfig, SegmentationNetwork
from ciss.models.resnet import DEPTHS, Depth

from .case import Array, Case, UnknownCaseError

INPUTS = {
    "x": "network input",
    "state/.+": "weights and buffers, inputs",
}


def check(case: Case) -> None:
    """Compare all that the case has of a pass in evaluation and of one in training."""
    state = {name: case.tensor(f"state/{name}") for name in case.part("state/")}
    if "x" not in case or not state:
        raise UnknownCaseError("a network without x and state/*")
    hyper = case.hyper
    network = network_for(
        case.part("state/"),
        hyper["classes_per_step"],
        hyper["output_stride"],
        hyper["pooling_size"],
    ).to(case.device)
    for mode in ("eval", "train"):
        network.load_state_dict(state)
        output = network.train(mode == "train")(case.tensor("x"))
        case.close(f"{mode}/sem_logits_small", output.small_logits)
        case.close(f"{mode}/logits", output.logits)
        for match in case.matching(rf"{mode}/logits_image(\d+)"):
            case.close(match[0], output.logits[int(match[1])][None])
        case.close(f"{mode}/body", output.body)
        case.close(f"{mode}/pre_logits", output.pre_logits)
        for stage, attention in enumerate(output.attentions):
            case.close(f"{mode}/attention_{stage}", attention)
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            case.close(f"after_train/{name}", value)
        else:
            case.exact(f"after_train/{name}", value)


def network_for(
    state: Mapping[str, Array], classes_per_step: list[int], output_stride: int, pooling: int
) -> SegmentationNetwork:
    """Make the network, of any depth and width, that ``state`` fits; its weights are random."""
    blocks: dict[int, int] = {}
    for name in state:
        if match := re.match(r"body\.mod(\d+)\.block(\d+)\.", name):
            stage = int(match[1])
            blocks[stage] = max(blocks.get(stage, 0), int(match[2]))
    if sorted(blocks) != [2, 3, 4, 5]:
        raise UnknownCaseError(f"a network with the stages {sorted(blocks)}")
    bottleneck = "body.mod2.block1.convs.conv3.weight" in state
    depth = Depth((blocks[2], blocks[3], blocks[4], blocks[5]), bottleneck)
    with patch.dict(DEPTHS, {"parity": depth}):
        config = NetworkConfig(
            "parity",
            output_stride,
            # what the cases were made with: scales as they are
            "bn",
            width=state["body.mod1.conv1.weight"].shape[0],
            head_channels=state["head.red_conv.weight"].shape[0],
            pooling=pooling,
        )
        return SegmentationNetwork(config, classes_per_step)


def loaded(network: SegmentationNetwork, state: Mapping[str, Array]) -> SegmentationNetwork:
    """Load a stored state into a network."""
    network.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in state.items()})
    return network
