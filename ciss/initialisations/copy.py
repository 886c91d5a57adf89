"""``copy``: every new class starts as a copy of the background, or of the unknown (SSUL).

Cha et al., SSUL, NeurIPS 2021. Unlike ``mib`` it leaves the biases as they are: the outputs of a
sigmoid share no probability.
"""

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
    """Copy weight and bias."""
    return replace(
        classifiers,
        weight=classifiers.background_weight.expand_as(classifiers.weight),
        bias=classifiers.background_bias.expand_as(classifiers.bias),
    )
