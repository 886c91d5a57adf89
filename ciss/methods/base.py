"""The hooks that a class-incremental method fills in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ciss.datasets.base import VOID as VOID
from ciss.pixelwise import pixel_means


@dataclass
class Batch:
    """One training batch on the device, with what the networks made of it.

    ``labels``: [B, H, W] int64 in learning order; old and future classes are 0, void is 255, and
    for a method with an unknown 254 what of the 0 is unknown.
    ``student`` and ``teacher``: the outputs of ``SegmentationNetwork`` on the same images; the
    teacher is the network of the step before, frozen and in evaluation mode, ``None`` at step 0.
    """

    labels: Tensor
    student: Any
    teacher: Any | None


class Method:
    """Fine-tuning's hooks: every method derives from this class and overrides what differs.

    ``n_old`` counts the outputs of the teacher, background included (0 at step 0); ``n_new`` the
    outputs that this step adds.
    """

    #: options with their defaults, overridden by the configuration's ``methods`` section
    defaults: ClassVar[dict[str, Any]] = {}
    #: options that take one of a few words
    choices: ClassVar[dict[str, list[str]]] = {}
    #: values that the option ``compat`` takes for options left at their defaults: those that the
    #: published AWT code runs with where they change results
    published: ClassVar[dict[str, Any]] = {}
    #: initialisation of new classifiers where an experiment's name gives none
    default_init: ClassVar[str] = "random"
    #: which step-0 model the method starts from: one of ``ciss.methods.BASE_OBJECTIVES``
    base_objective: ClassVar[str] = "ce"
    #: options that a step 0 of the method's own depends on, which its scenarios share
    base_options: ClassVar[tuple[str, ...]] = ()
    #: what the network has beside the usual, as ``SegmentationNetwork`` takes it; with ``unknown``
    #: labels tell it from the background. May depend on the options
    network_extras: Mapping[str, bool] = {}
    #: whether steps are solved (``workflow_scripts/solve.py``) where others are trained: after the
    #: training of step 0 under its objective, and in place of training at later steps
    closed_form: ClassVar[bool] = False
    #: whether steps after 0 leave all of the model before as it is, and train what they add alone
    only_adds: ClassVar[bool] = False
    #: whether labels tell an unknown from the background, and the network's outputs are sigmoids of
    #: the classes and of the unknown; ``network_extras`` says so too
    has_unknown: ClassVar[bool] = False
    #: whether the teacher's forward pass is needed at steps after 0; may depend on the options
    needs_teacher: bool = True
    #: whether ``importances`` travel from step to step beside the model
    keeps_importances: ClassVar[bool] = False
    #: whether ``losses`` take the teacher's word for background, in all images; with a memory,
    #: that of exemplars is completed for the others (``ciss.pseudo_labels``)
    completes_labels: ClassVar[bool] = False
    #: whether a class's probability is a sigmoid of its own, not a share of a softmax
    sigmoid_outputs: ClassVar[bool] = False

    def __init__(self, options: Mapping[str, Any], n_old: int, n_new: int) -> None:
        self.options = {**self.defaults, **options}
        if self.options.get("compat"):
            for name, value in self.published.items():
                if self.options[name] == self.defaults[name]:
                    self.options[name] = value
        self.n_old = n_old
        self.n_new = n_new
        #: whether batches have exemplars, whose labels show old classes
        self.has_exemplars = False
        #: from which on the teacher's class is the label of an exemplar's background; None: never
        self.exemplar_confidence: float | None = None

    def trained(self, network: nn.Module) -> Mapping[str, float] | None:
        """Say what trains: names of modules or parameters with factors on the learning rate.

        ``{"cls.2": 1.0, "cls.0": 0.1}`` trains the third classifier, and the first one more slowly.
        What no name covers is frozen: no gradient, no weight decay, and modules of which nothing
        trains are in evaluation mode, so that batch norm's statistics stay too. ``None``:
        everything trains.
        """
        return None

    def prepare(self, teacher: nn.Module | None, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Look at the step's data once before training (PLOP's thresholds).

        ``batches`` yields network inputs and labels on the device; it is lazy, and a method that
        does not need the pass does not consume it.
        """

    def per_pixel(
        self, labels: Tensor, logits: Tensor, teacher_logits: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the named terms of the loss that are means over pixels, before the mean.

        ``labels`` [b, r, W], ``logits`` [b, N, r, W] and ``teacher_logits`` (``None`` without a
        teacher) are a block of rows at full resolution; each term is a map [b, r, W], its weight
        included, zero at void where it looks at labels. Gradients reach the logits alone.
        """
        raise NotImplementedError

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the named terms of the loss, weights included; their sum is back-propagated.

        These are the means of ``per_pixel``; a method with other terms adds them.
        """
        teacher = None if batch.teacher is None else batch.teacher.upsampled
        return pixel_means(self.per_pixel, batch.labels, batch.student.upsampled, teacher)

    def after_backward(self, network: nn.Module) -> None:
        """See the gradients of ``losses`` before the penalty is added (importances of EWC…)."""

    def penalty(self, network: nn.Module) -> Tensor | None:
        """Return a term on the parameters, back-propagated separately, or ``None``."""
        return None

    def importances(self, network: nn.Module) -> dict[str, Tensor]:
        """Return what the next step's ``load_importances`` takes, after training; mostly empty."""
        return {}

    def load_importances(
        self, importances: Mapping[str, Tensor], previous: Mapping[str, Tensor]
    ) -> None:
        """Take the importances of the step before, on the device, before training starts.

        ``previous``: the parameters of the model of the step before by name (θ' of the penalty).
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Return the state that a resumed run needs (running importances, thresholds)."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take back what ``state_dict`` returned."""
