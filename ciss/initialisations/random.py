"""``random``: new classifiers keep their fresh weights."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Return the classifiers as they are."""
    return classifiers
