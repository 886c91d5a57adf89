"""CFSSeg (Li et al., Closed-Form Solution for CISS, arXiv 2412.10834, ACM MM 2025)."""

from __future__ import annotations

from typing import Any, ClassVar

from ciss.methods.base import Method


class ClosedFormSegmentation(Method):
    """Ridge regression on random features of a frozen encoder; see ``ciss.ridge``.

    Nothing is trained after step 0, and there are no losses. Options: ``features``, the number of
    random features; ``gamma``, the weight of the ridge; ``uncertainty``, up to which background
    takes the old head's prediction at steps after 0.
    """

    defaults: ClassVar[dict[str, Any]] = {"features": 8192, "gamma": 1.0, "uncertainty": 0.4}
    base_objective: ClassVar[str] = "bce"
    closed_form: ClassVar[bool] = True
    base_options: ClassVar[tuple[str, ...]] = ("features", "gamma")
