"""``awt``: the background's weights move over where attribution finds them relevant.

Goswami et al., WACV 2023, arXiv 2210.07207.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ciss.errors import CissError
from ciss.initialisations.base import Classifiers

NEEDS_ATTRIBUTION = True
OPTIONS: dict[str, Any] = {
    # share of the channels that move, or their number
    "fraction": 0.25,
    # how attribution maps become scores of channels, see ciss.attribution.scores
    "pooling": "max_after_mean",
    # one mask for all new classes ("joint") or one for each ("per_class")
    "grouping": "joint",
    # share the background's bias as `mib` does
    "copy_bias": False,
    # put the background's weight in the fresh one's place instead of adding it
    "replace": False,
}
#: options that take one of a few words
CHOICES: dict[str, list[str]] = {
    "pooling": ["max_after_mean", "mean_after_max", "mean_after_avg", "avg_after_mean"],
    "grouping": ["joint", "per_class"],
}


def initialise(
    classifiers: Classifiers,
    options: Mapping[str, Any],
    masks: Tensor | None,
    generator: torch.Generator,
) -> Classifiers:
    """Transfer the channels that ``masks``, bool [1 or n, C], chooses.

    Raises ``CissError`` without masks: silently starting from random weights is not AWT.
    """
    if masks is None:
        raise CissError("initialisation 'awt' needs an attribution of the step's images; give one")
    if options["replace"]:
        weight = torch.where(masks, classifiers.background_weight, classifiers.weight)
    else:
        weight = classifiers.weight + masks * classifiers.background_weight
    moved = replace(classifiers, weight=weight)
    if not options["copy_bias"]:
        return moved
    return replace(
        moved,
        bias=classifiers.shared_bias.expand_as(classifiers.bias),
        background_bias=classifiers.shared_bias,
    )
