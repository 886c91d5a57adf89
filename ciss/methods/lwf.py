"""LWF (Li & Hoiem, Learning without Forgetting, ECCV 2016)."""

from __future__ import annotations

from typing import Any, ClassVar

from ciss.methods.ft import FineTuning


class LearningWithoutForgetting(FineTuning):
    """Cross-entropy and distillation of the old classes' probabilities.

    Options: ``distillation``, the weight (100 in MiB's and AWT's experiments).
    """

    defaults: ClassVar[dict[str, Any]] = {"distillation": 100.0}
    published: ClassVar[dict[str, Any]] = {}
