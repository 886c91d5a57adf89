"""The optimiser's parameters, and the learning rate's schedule."""

from __future__ import annotations

import math
import re
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor, nn

from ciss import methods
from ciss.errors import CissError
from ciss.loading import batches_per_epoch
from ciss.models import NetworkConfig, SegmentationNetwork
from ciss.models.normalisation import is_norm
from ciss.scenarios import parse_scenario
from ciss.training import Recipe, Training, poly_lr

from .case import Case, UnknownCaseError
from .labels import N_CLASSES

INPUTS: dict[str, str] = {}

_CONTENTS = "group_contents (module: number of tensors)"
_COLUMNS = ["lr", "weight_decay", "momentum", "nesterov", "dampening", "n_tensors", "n_elements"]


def check(case: Case) -> None:
    """Check a learning rate, a whole protocol's schedule, or the optimiser's groups."""
    if "configurations" in case.hyper:
        _check_poly(case)
    elif "images_per_step" in case.hyper:
        _check_schedule(case)
    elif _CONTENTS in case.hyper:
        _check_groups(case)
    else:
        raise UnknownCaseError("neither configurations, images_per_step nor group contents")


def _check_poly(case: Case) -> None:
    for number, (base, iterations, power, groups) in enumerate(case.hyper["configurations"]):
        rates = [
            [poly_lr(base / 10**group, t, iterations, power) for group in range(groups)]
            for t in range(iterations + 1)
        ]
        case.close(f"lr_{number}", np.array(rates))


def _check_schedule(case: Case) -> None:
    hyper, power = case.hyper, Recipe(1, 1.0).power
    world, batch = hyper["world_size"], hyper["batch_per_gpu"]
    # The published sampler repeats images until all GPUs have as many; we do not.
    images = [world * math.ceil(n / world) for n in hyper["images_per_step"]]
    per_epoch = [batches_per_epoch(n, world * batch) for n in images]
    iterations = [hyper["epochs"] * n for n in per_epoch]
    case.exact("iterations_per_epoch", np.array(per_epoch))
    case.exact("max_iters", np.array(iterations))
    for step, last in enumerate(iterations):
        base = hyper["lr_step0" if step == 0 else "lr_later"]
        # and the 0 after the last iteration
        rates = np.array([poly_lr(base, t, last, power) for t in range(last + 1)])
        case.close(f"lr_s{step}_every50", rates[::50])
        case.close(f"lr_s{step}_last5", rates[-6:-1])


def _check_groups(case: Case) -> None:
    """Compare optimiser groups: ours is one, whose parameters are those of all groups together.

    Variants with frozen or slower parts, which ``ciss`` does not offer, are put together from its
    network's parameters.
    """
    hyper = case.hyper
    if hyper["columns"] != _COLUMNS or hyper["optimizer"] != "torch.optim.SGD":
        raise UnknownCaseError("optimiser groups with other columns or of another optimiser")
    steps = {variant: int(variant.rpartition("/s")[2]) for variant in hyper[_CONTENTS]}
    classes_per_step = _classes_per_step(hyper["task"], 1 + max(steps.values()))
    first, later = (float(number) for number in re.findall(r"\d\.\d+", hyper["lr"])[:2])
    options = {name: part["meaning"] for part in case.entry["arrays"] for name in part["names"]}
    for variant, contents in hyper[_CONTENTS].items():
        step = steps[variant]
        lr = first if step == 0 else later
        training = _training(classes_per_step[: step + 1], lr)
        (group,) = training.optimiser.param_groups
        settings = [group[column] for column in _COLUMNS[1:5]]
        slower = re.search(r"--lr_old', '([\d.]+)'", options[variant])
        rows = []
        for modules in contents["groups"]:
            chosen = [p for name, n in modules.items() for p in _tensors(training.network, name, n)]
            old = all(name.startswith("cls.") and name != f"cls.{step}" for name in modules)
            rate = training.lr * (float(slower[1]) if slower and old else 1.0)
            rows.append([rate, *settings, len(chosen), sum(p.numel() for p in chosen)])
        if variant.startswith("default/"):
            together = (len(group["params"]), sum(p.numel() for p in group["params"]))
            if together != (sum(row[-2] for row in rows), sum(row[-1] for row in rows)):
                raise AssertionError(f"{variant}: the optimiser has {together} parameters")
        case.close(variant, np.array(rows, dtype=np.float64), 1e-12, columns=True)


def _classes_per_step(task: str, steps: int) -> tuple[int, ...]:
    """Return the outputs of the first ``steps`` steps: no matter what classes follow."""
    for n_classes in N_CLASSES.values():
        with suppress(CissError):
            scenario = parse_scenario(task, n_classes)
            if scenario.n_steps >= steps:
                return scenario.classes_per_step[:steps]
    raise UnknownCaseError(f"task '{task}' of {steps} steps")


def _training(classes_per_step: tuple[int, ...], lr: float) -> Training:
    with torch.device("meta"):
        network = SegmentationNetwork(NetworkConfig("resnet101", norm="bn"), classes_per_step)
    method = methods.create_base("ce", sum(classes_per_step))
    recipe = Recipe(1, lr, precision="fp32")
    return Training(network, None, method, recipe, 1, torch.device("meta"))


def _tensors(network: nn.Module, name: str, count: int) -> list[Tensor]:
    """Return the parameters of a module, or those outside its normalisations if that is ``count``.

    Which is all that the published options can leave out of a module.
    """
    module = network.get_submodule(name)
    everything: list[Tensor] = list(module.parameters())
    norms = {id(p) for m in module.modules() if is_norm(m) for p in m.parameters()}
    return [p for p in everything if len(everything) == count or id(p) not in norms]
