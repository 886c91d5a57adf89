"""What every initialisation of new classifiers works on."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Classifiers:
    """The newest step's classifier and the background's, before or after initialisation.

    ``weight``: [n, C] and ``bias``: [n] of the n new classes, freshly drawn at first;
    ``background_weight``: [C] and ``background_bias``: [] after the step before.
    """

    weight: Tensor
    bias: Tensor
    background_weight: Tensor
    background_bias: Tensor

    @property
    def shared_bias(self) -> Tensor:
        """The background's bias less log(n + 1), scalar.

        MiB (Cermelli et al., CVPR 2020, eq. 10) shares the background's probability equally
        between the background and the n classes that were part of it.
        """
        return self.background_bias - math.log(len(self.bias) + 1)
