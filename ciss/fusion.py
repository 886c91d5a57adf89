"""Fusing the model that a step has trained with the one it started from.

Xiao et al., Endpoints Weight Fusion for CISS (EWF), CVPR 2023.
"""

from __future__ import annotations

import math

import torch

from ciss.errors import CissError
from ciss.methods import COMMON
from ciss.models.network import SegmentationNetwork
from ciss.names import unknown


def endpoint_share(n_new: int, n_old: int) -> float:
    """EWF's share of the new model: √(n_new / (n_new + n_old)), ``n_old`` with the background."""
    return math.sqrt(n_new / (n_new + n_old))


def fuse(name: str, old: SegmentationNetwork, new: SegmentationNetwork) -> SegmentationNetwork:
    """Return the fusion ``name`` of two networks, of which ``new`` has more classifiers.

    ``ewf``: every tensor of ``old``, batch norm's statistics included, becomes (1 − a) · old +
    a · new with a = ``endpoint_share``; what only ``new`` has, its last classifiers, stays, and so
    do classifiers of classes to come, of which a step takes some away. Computed in the tensors'
    type; counters, which are whole numbers, are those of ``new``.
    Raises ``CissError`` for an unknown name and for networks that do not follow each other.
    """
    if name not in COMMON["fuse"][1:]:
        raise CissError(unknown("fusion", name, COMMON["fuse"][1:]))
    _check_order(old, new)
    share = endpoint_share(new.n_classes - old.n_classes, old.n_classes)
    state = new.state_dict()
    for key, before in old.state_dict().items():
        if before.is_floating_point() and not key.startswith("future."):
            state[key] = torch.lerp(before, state[key], share)
    with torch.device("meta"):
        fused = SegmentationNetwork.of_shape(new.shape)
    fused.load_state_dict(state, assign=True)
    return fused.eval()


def _check_order(old: SegmentationNetwork, new: SegmentationNetwork) -> None:
    before, after = old.classes_per_step, new.classes_per_step
    if old.config != new.config or len(after) <= len(before) or after[: len(before)] != before:
        raise CissError(
            f"a model of {after} outputs a step does not follow one of {before}, or is another "
            "network; fuse a step's model with that of the step before"
        )
