"""Training a part of a network: which parameters move, how fast, and what stays as it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import nn


def learning_rate_factors(
    network: nn.Module, trained: Mapping[str, float] | None
) -> dict[str, float]:
    """Factors on the learning rate by name of parameter, in the network's order.

    ``trained`` names modules or parameters, as ``Method.trained`` returns it; where several names
    cover a parameter the longest counts, and a parameter that none covers is not in the result.
    ``None``: all of them, at 1. Raises ``ValueError`` for a name that the network does not have,
    and where nothing would train.
    """
    names = [name for name, _ in network.named_parameters()]
    if trained is None:
        return dict.fromkeys(names, 1.0)
    factors: dict[str, float] = {}
    used = set()
    for name in names:
        covering = [key for key in trained if f"{name}.".startswith(f"{key}.")]
        used.update(covering)
        if covering:
            factors[name] = float(trained[max(covering, key=len)])
    if missing := trained.keys() - used:
        raise ValueError(f"no parameter of the network is called {', '.join(sorted(missing))}")
    if not factors:
        raise ValueError("no parameter is left to train")
    return factors


def without(factors: Mapping[str, float], frozen: Collection[str]) -> dict[str, float]:
    """Leave out the parameters that a name of ``frozen``, of a module or parameter, covers."""
    return {
        name: factor
        for name, factor in factors.items()
        if not any(f"{name}.".startswith(f"{key}.") for key in frozen)
    }


def old_classifiers(classes_per_step: Sequence[int]) -> list[str]:
    """Names of the classifiers of earlier steps, the background's among them."""
    return [f"cls.{step}" for step in range(len(classes_per_step) - 1)]


def freeze_others(network: nn.Module, trained: Mapping[str, float]) -> None:
    """Let gradients flow to the parameters in ``trained`` alone."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trained)


def train_mode(network: nn.Module) -> None:
    """Put ``network`` in training mode, and what is frozen in evaluation mode.

    A module is frozen that has parameters, none of which trains: its batch norm uses the statistics
    of earlier steps, and leaves them alone.
    """
    network.train()
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            module.eval()


def equal_modules(one: nn.Module, other: nn.Module) -> bool:
    """Tell whether two modules have the same parameters and buffers, bit for bit."""
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name].to(value.device)) for name, value in ours.items()
    )
