"""Starting a step: the widened network's new classifier gets its first weights."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ciss.attribution import Attribution, channel_mask, scores
from ciss.errors import CissError
from ciss.initialisations import describe, module_of, options_of
from ciss.initialisations.base import Classifiers
from ciss.models.network import SegmentationNetwork


class Initialisation(Protocol):
    """What a module of ``ciss.initialisations`` offers that is not learned."""

    NEEDS_ATTRIBUTION: bool
    OPTIONS: dict[str, Any]

    def initialise(
        self,
        classifiers: Classifiers,
        options: Mapping[str, Any],
        masks: Tensor | None,
        generator: torch.Generator,
    ) -> Classifiers:
        """Return the classifiers as they start into the step; ``masks`` is bool [1 or n, C]."""


def get(name: str) -> Initialisation:
    """Return the initialisation called ``name``. Raises ``CissError`` when there is none."""
    return cast("Initialisation", importlib.import_module(module_of(name)))


def draw_of(seed: int, step: int) -> int:
    """Return the seed of a step's fresh classifier: initialisations are compared on one draw."""
    return 1000 * seed + step


def initialise(
    network: SegmentationNetwork,
    name: str,
    options: Mapping[str, Any],
    attribution: Attribution | None,
    seed: int,
    pretuned: Classifiers | None = None,
) -> Tensor | None:
    """Initialise the newest classifier of a widened ``network``, and the background's, in place.

    Where the network has an unknown, that is what the new classes were part of: its classifier
    takes the place of the background's.

    ``pretuned`` are the classifiers that ``ciss.pretuning`` learned, for an initialisation that is.
    Returns the channel masks, bool [1 or n, C], where the initialisation uses any. Raises
    ``CissError`` when the initialisation or an option is unknown, or needs an attribution or
    pre-tuned classifiers that are not given or belong to other classes.
    """
    options = options_of(name, options)
    base, newest = network.origin, network.classifiers[-1]
    if len(network.classes_per_step) == 1:
        raise CissError("the network has no new classifier yet: widen it before initialising")
    if describe(name).needs_pretuning:
        _set(network, _checked(pretuned, network, name))
        return None
    initialisation = get(name)
    masks = None
    if initialisation.NEEDS_ATTRIBUTION:
        masks = _masks(network, name, options, attribution)
        masks = masks.to(newest.weight.device)
    assert base.bias is not None
    assert newest.bias is not None
    with torch.no_grad():
        result = initialisation.initialise(
            Classifiers(
                weight=newest.weight[:, :, 0, 0].clone(),
                bias=newest.bias.clone(),
                background_weight=base.weight[0, :, 0, 0].clone(),
                background_bias=base.bias[0].clone(),
            ),
            options,
            masks,
            torch.Generator().manual_seed(seed),
        )
    _set(network, result)
    return masks


def _set(network: SegmentationNetwork, made: Classifiers) -> None:
    base, newest = network.origin, network.classifiers[-1]
    assert base.bias is not None
    assert newest.bias is not None
    with torch.no_grad():
        newest.weight[:, :, 0, 0] = made.weight
        newest.bias.copy_(made.bias)
        base.weight[0, :, 0, 0] = made.background_weight
        base.bias[0] = made.background_bias


def _checked(pretuned: Classifiers | None, network: SegmentationNetwork, name: str) -> Classifiers:
    if pretuned is None:
        raise CissError(
            f"initialisation '{name}' is learned on the step's images; run pretune.py first and "
            "pass its file"
        )
    found = tuple(pretuned.weight.shape)
    expected = (network.classes_per_step[-1], network.config.head_channels)
    if found != expected:
        raise CissError(
            f"the pre-tuned classifiers are of {found[0]} classes and {found[1]} channels, the "
            f"network's new ones of {expected[0]} and {expected[1]}; pre-tune this step with the "
            "model of the step before"
        )
    return pretuned


def _masks(
    network: SegmentationNetwork,
    name: str,
    options: Mapping[str, Any],
    attribution: Attribution | None,
) -> Tensor:
    if attribution is None:
        raise CissError(
            f"initialisation '{name}' needs an attribution of the step's images; "
            "run the attribution first and pass its file"
        )
    n_old = network.n_classes - network.classes_per_step[-1]
    expected = tuple(range(n_old, network.n_classes))
    channels = network.config.head_channels
    if attribution.new_classes != expected or attribution.sums.shape[1] != channels:
        raise CissError(
            f"the attribution is of classes {attribution.new_classes} and "
            f"{attribution.sums.shape[1]} channels, the network's new classes are {expected} with "
            f"{channels} channels; attribute this step with the model of the step before"
        )
    return channel_mask(
        scores(attribution, options["pooling"], options["grouping"]), options["fraction"]
    )
