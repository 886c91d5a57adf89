"""``mib``: every new class starts as the background (Cermelli et al., CVPR 2020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ciss.initialisations.base import Classifiers

NEEDS_ATTRIBUTION = False
OPTIONS: dict[str, Any] = {}


def initialise(
    classifiers: Classifiers,
    options: Mapping[str, Any],
    masks: Tensor | None,
    generator: torch.Generator,
) -> Classifiers:
    """Copy the background's weight and share its probability, so that old outputs stay in sum."""
    return replace(
        classifiers,
        weight=classifiers.background_weight.expand_as(classifiers.weight),
        bias=classifiers.shared_bias.expand_as(classifiers.bias),
        background_bias=classifiers.shared_bias,
    )
