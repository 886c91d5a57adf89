"""RW, Riemannian walk (Chaudhry et al., ECCV 2018)."""

from __future__ import annotations

from typing import Any, ClassVar

from ciss.regularisers import Importance, Regularised, RiemannianWalk


class RiemannianWalkMethod(Regularised):
    """Cross-entropy; parameters are held by Fisher information and path score together.

    Options: those of ``Regularised`` and ``interval``, iterations between two updates of the path
    score at steps after 0; step 0 is shared with EWC and PI and uses the default.
    """

    kinds: ClassVar[tuple[type[Importance], ...]] = (RiemannianWalk,)
    defaults: ClassVar[dict[str, Any]] = {
        "importance": 100.0,
        "normalise": True,
        "interval": 10,
        "distillation": 0.0,
        "compat": False,
    }
