"""EWC (Kirkpatrick et al., Overcoming catastrophic forgetting, PNAS 2017), online."""

from __future__ import annotations

from typing import ClassVar

from ciss.regularisers import Fisher, Importance, Regularised


class ElasticWeightConsolidation(Regularised):
    """Cross-entropy; parameters are held by their Fisher information.

    Options: those of ``Regularised``.
    """

    kinds: ClassVar[tuple[type[Importance], ...]] = (Fisher,)
