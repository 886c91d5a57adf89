"""``randchannels``: as many channels as ``awt`` moves, drawn at random; AWT's control."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ciss.attribution import channel_count
from ciss.initialisations.base import Classifiers

NEEDS_ATTRIBUTION = False
OPTIONS: dict[str, Any] = {
    # share of the channels that move, or their number
    "fraction": 0.25,
}


def initialise(
    classifiers: Classifiers,
    options: Mapping[str, Any],
    masks: Tensor | None,
    generator: torch.Generator,
) -> Classifiers:
    """Add the background's weight on one random choice of channels for all new classes."""
    channels = len(classifiers.background_weight)
    chosen = torch.zeros(channels, dtype=torch.bool)
    count = channel_count(options["fraction"], channels)
    chosen[torch.randperm(channels, generator=generator)[:count]] = True
    moved = chosen.to(classifiers.weight.device) * classifiers.background_weight
    return replace(classifiers, weight=classifiers.weight + moved)
