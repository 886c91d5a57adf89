"""EWC, PI and RW over two steps of a tiny network: statistics, penalty, optimiser steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ciss import methods
from ciss.regularisers import Regularised, trainable, unflatten

from .case import TOLERANCE, Array, Case, UnknownCaseError, relative_difference

INPUTS = {
    r"s\d+/t0/p/.+": "where a step starts; compared with the end of the one before where it can be",
    r"s\d+/t\d+/grad/.+": "gradients of the ordinary loss, inputs of the updates",
}

#: statistics that a method records, and what the published code calls them
_RECORDED = {"ewc": ("fisher",), "pi": ("score",), "rw": ("fisher", "score")}
#: running state by our name, and what the published code calls it
_RUNNING = {
    "ewc": {"fisher": "fisher"},
    "pi": {"path": "delta"},
    "rw": {"fisher": "fisher", "score": "score"},
}


class _Parameters(nn.Module):
    """Parameters with the dotted names of a case."""

    def __init__(self, values: dict[str, Array]) -> None:
        super().__init__()
        for name, value in values.items():
            *path, leaf = name.split(".")
            module: nn.Module = self
            for part in path:
                if part not in module._modules:
                    module.add_module(part, nn.Module())
                child = module._modules[part]
                assert child is not None
                module = child
            module.register_parameter(leaf, nn.Parameter(torch.from_numpy(value.copy())))


def check(case: Case) -> None:
    """Replay both steps from the stored parameters and gradients."""
    hyper = case.hyper
    name = hyper["method"]
    if name not in _RECORDED or "s0/penalty" not in case:
        raise UnknownCaseError(f"regulariser '{name}'")
    options = {"importance": 1.0, "normalise": hyper["normalize"]}
    if name == "rw":
        options["interval"] = hyper["reg_iterations"]
    classes = hyper["classes_per_step"]
    steps = sorted({int(match[1]) for match in case.matching(r"s(\d+)/penalty")})
    importances: dict[str, Tensor] = {}
    previous: dict[str, Tensor] = {}
    for step in steps:
        method = methods.create(name, options, sum(classes[:step]), classes[step])
        assert isinstance(method, Regularised)
        if step:
            method.load_importances(importances, previous)
        network = _Parameters(_stored(case, f"s{step}/t0/p")).to(case.device)
        _compare(case, f"s{step}/t0/p", previous)
        _check_step(case, step, method, network)
        importances = method.importances(network)
        previous = _copies(network)
        for statistic in _RECORDED[name]:
            prefix = f"{name}/{statistic}/"
            ours = {key.removeprefix(prefix): v for key, v in importances.items() if prefix in key}
            _compare(case, f"s{step}/state_{statistic}", ours)


def _check_step(case: Case, step: int, method: Regularised, network: nn.Module) -> None:
    hyper = case.hyper
    optimiser = torch.optim.SGD(
        network.parameters(),
        lr=hyper["lr"],
        momentum=hyper["momentum"],
        nesterov=hyper["nesterov"],
        weight_decay=0.0,
    )
    started = _copies(network)
    penalties = []
    for t in range(hyper["n_iterations"]):
        here = f"s{step}/t{t}"
        # What the optimiser made of the iteration before; the stored values go on.
        if t:
            _compare(case, f"{here}/p", _copies(network))
        _set(network, _stored(case, f"{here}/p"))
        _set(network, _stored(case, f"{here}/grad"), gradients=True)
        method.after_backward(network)
        _check_running(case, here, method, network)
        penalties.append(_penalise(case, here, method, network))
        optimiser.step()
    case.close(f"s{step}/penalty", np.array(penalties))
    _check_weight(case, step, method, network)
    ended = _copies(network)
    _compare(case, f"s{step}/p_final", ended)
    _check_initial(case, step, started, ended)
    _set(network, _stored(case, f"s{step}/p_final"))
    state = method.state_dict()
    if "pi/path" in state:
        parameters = trainable(network)
        _compare(case, f"s{step}/state_delta", unflatten(state["pi/path"], parameters))
        start = unflatten(state["pi/start"], parameters)
        _compare(case, f"s{step}/state_starting_model", start)


def _check_initial(
    case: Case, step: int, started: dict[str, Tensor], ended: dict[str, Tensor]
) -> None:
    """Compare ``p_init``: a view of the live parameters, it was stored as they ended."""
    for name, theirs in _stored(case, f"s{step}/p_init").items():
        values = [tensors[name].cpu().numpy() for tensors in (started, ended)]
        difference = min(relative_difference(ours, theirs) for ours in values)
        case.record(f"s{step}/p_init/module.{name}", difference, TOLERANCE)


def _check_running(case: Case, here: str, method: Regularised, network: nn.Module) -> None:
    state, kind = method.state_dict(), case.hyper["method"]
    for ours, theirs in _RUNNING[kind].items():
        _compare(case, f"{here}/{theirs}", unflatten(state[f"{kind}/{ours}"], trainable(network)))


def _penalise(case: Case, here: str, method: Regularised, network: nn.Module) -> float:
    """Compare the penalty's gradient, and add it as much as the case's run did."""
    penalty = method.penalty(network)
    if penalty is None:
        return 0.0
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(penalty, list(parameters.values()), allow_unused=True)
    weight = case.hyper["importance_used_in_this_toy_run"]
    ours = {}
    for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
        ours[name] = torch.zeros_like(parameter) if gradient is None else gradient
        assert parameter.grad is not None
        parameter.grad += weight * ours[name]
    _compare(case, f"{here}/penalty_grad", ours)
    return float(penalty.detach())


def _check_weight(case: Case, step: int, method: Regularised, network: nn.Module) -> None:
    """Compare the penalty's weights, which the published code calls by what they are made of."""
    for recorder in method._recorders:
        if recorder.history is not None:
            weight = unflatten(recorder.history.weight, trainable(network))
            for name in ("weight_norm", "fisher_old_norm", "score_old_norm"):
                _compare(case, f"s{step}/{name}", weight)


def _stored(case: Case, prefix: str) -> dict[str, Array]:
    """Arrays of a network's parameters, by the names of the bare network."""
    return case.part(f"{prefix}/module.")


def _compare(case: Case, prefix: str, ours: dict[str, Any]) -> None:
    """Compare with the tensors of ``prefix`` that both have; others count as not checked."""
    for name in _stored(case, prefix).keys() & ours.keys():
        case.close(f"{prefix}/module.{name}", ours[name])


def _copies(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def _set(network: nn.Module, values: dict[str, Array], gradients: bool = False) -> None:
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            value = torch.from_numpy(values[name].copy()).to(parameter.device)
            if gradients:
                parameter.grad = value
            else:
                parameter.copy_(value)
