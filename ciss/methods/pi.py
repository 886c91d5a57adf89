"""PI, path integral (Zenke et al., Continual Learning Through Synaptic Intelligence, ICML 2017)."""

from __future__ import annotations

from typing import ClassVar

from ciss.regularisers import Importance, PathIntegral, Regularised


class SynapticIntelligence(Regularised):
    """Cross-entropy; parameters are held by what their way contributed to lowering the loss.

    Options: those of ``Regularised``.
    """

    kinds: ClassVar[tuple[type[Importance], ...]] = (PathIntegral,)
