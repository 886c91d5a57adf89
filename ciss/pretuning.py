"""Learning a step's new classifiers before its training, on the frozen network of the step before.

An initialisation that is learned (``NEEDS_PRETUNING``) says as a ``Learner`` how classifiers come
out of few parameters; the rest is the training loop of ``ciss.training``, with its schedule, its
progress and its processes. Encoder and head run in evaluation mode and without gradients.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from ciss.checkpoint import load_tensors, save_tensors
from ciss.errors import CissError
from ciss.initialisations import describe, module_of, options_of
from ciss.initialisations.base import Classifiers, Learner
from ciss.methods.base import Method
from ciss.models.network import SegmentationNetwork
from ciss.pixelwise import full_precision
from ciss.training import Recipe, Training

_KIND = "pretuned classifiers"
_TENSORS = ("weight", "bias", "background_weight", "background_bias")


class Pretuned(Protocol):
    """What a module of ``ciss.initialisations`` offers that is learned."""

    NEEDS_PRETUNING: bool

    def learner(self, network: SegmentationNetwork, options: Mapping[str, Any]) -> Learner:
        """Return what learns the newest classifier of the widened ``network``."""


class _Pretuning(Method):
    """A learner's loss, as the training loop asks for it."""

    def __init__(self, learner: Learner) -> None:
        super().__init__({}, learner.n_old, learner.n_new)
        self.learner = learner
        self.needs_teacher = False

    def prepare(self, teacher: nn.Module | None, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        self.learner.start(self._features(batches))

    def _features(
        self, batches: Iterable[tuple[Tensor, Tensor]]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in batches:
            yield full_precision(self.learner.features(images)), labels

    def per_pixel(
        self, labels: Tensor, logits: Tensor, teacher_logits: Tensor | None
    ) -> dict[str, Tensor]:
        return self.learner.per_pixel(labels, logits)


def pretuning(
    network: SegmentationNetwork,
    name: str,
    options: Mapping[str, Any],
    recipe: Recipe,
    iterations: int,
    device: torch.device,
) -> Training:
    """Return the training that learns the newest classifier of a widened ``network``.

    ``options`` override the initialisation's defaults; those that are the recipe's, such as
    ``epochs``, are taken from ``recipe``. Raises ``CissError`` when the initialisation is unknown
    or not learned, or an option is unknown.
    """
    if not describe(name).needs_pretuning:
        raise CissError(f"initialisation '{name}' is not learned: it needs no pre-tuning")
    module = cast("Pretuned", importlib.import_module(module_of(name)))
    learner = module.learner(network.to(device), options_of(name, options))
    return Training(
        cast("SegmentationNetwork", learner), None, _Pretuning(learner), recipe, iterations, device
    )


def learned(training: Training) -> Classifiers:
    """Return the classifiers as a training of ``pretuning`` left them."""
    learner = cast("Learner", training.network)
    with torch.no_grad():
        return learner.classifiers()


def save_classifiers(path: Path | str, made: Classifiers, metadata: Mapping[str, Any]) -> None:
    """Write classifiers as safetensors; ``metadata`` is JSON of the caller's."""
    save_tensors(path, {name: getattr(made, name) for name in _TENSORS}, metadata, kind=_KIND)


def load_classifiers(path: Path | str) -> Classifiers:
    """Read what ``save_classifiers`` wrote. Raises ``CissError`` for any other or damaged file."""
    tensors, _ = load_tensors(path, kind=_KIND, names=_TENSORS)
    return Classifiers(**{name: tensors[name] for name in _TENSORS})
