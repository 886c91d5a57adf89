"""Losses on logits and their gradients, and the published trainer's sums of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from ciss import losses, methods
from ciss.methods.base import Batch
from ciss.pixelwise import Upsampled

from .case import Case, UnknownCaseError

INPUTS = {
    "logits_(new|old)": "inputs",
    "labels": "input",
    "body_(new|old)": "inputs",
}

#: published presets that are not called as our methods are
_METHODS = {"lwfmc": "lwf-mc"}
#: terms of ``Method.losses`` by the published trainer's names
TERMS = {
    "classification": ("classification",),
    "lkd": ("distillation",),
    "lde": ("features",),
    "l_icarl": (),
    "l_reg": ("penalty",),
    "pod_loss": ("pod",),
}
#: the same for LWF-MC, whose own distillation is the binary one
TERMS_LWF_MC = {**TERMS, "lkd": ("softmax_distillation",), "l_icarl": ("distillation",)}


def check(case: Case) -> None:
    """Compare every loss that the case has."""
    if "logits_new" not in case or "labels" not in case:
        raise UnknownCaseError("losses without logits_new and labels")
    logits, labels = case.tensor("logits_new").requires_grad_(), case.tensor("labels").long()
    valid = (labels != case.hyper["ignore_index"]).sum()

    ce = losses.cross_entropy(logits, labels)
    _compare(case, logits, ce, "ce_map", "ce_mean", "ce_grad")
    case.close("ce_mean_valid_only", ce.sum() / valid)
    bce = losses.binary_cross_entropy(logits, labels)
    _compare(case, logits, bce, "bce_map", "bce_mean", "bce_grad")
    case.close("bce_reduction_mean", bce.sum() / valid)
    case.close("bce_reduction_sum", bce.sum())
    if "logits_old" in case:
        _check_old(case, logits, labels, case.tensor("logits_old"))
    _check_trainer(case, labels)


def _check_old(case: Case, logits: Tensor, labels: Tensor, old: Tensor) -> None:
    n_old = case.hyper["n_old"]
    unce = losses.unbiased_cross_entropy(logits, labels, n_old)
    _compare(case, logits, unce, "unce_map", "unce_mean", "unce_grad")
    # the published `alpha` sharpens the teacher
    for suffix, alpha in (("a1", 1.0), ("aX", case.hyper.get("kd_alpha_other", 1.0))):
        for name, loss in (("kd", losses.distillation), ("unkd", losses.unbiased_distillation)):
            per_pixel = loss(logits, alpha * old)
            keys = (f"{name}_{quantity}_{suffix}" for quantity in ("map", "mean", "grad"))
            _compare(case, logits, per_pixel, *keys)
            if suffix == "a1":
                masked = (per_pixel * (labels < n_old)).mean()
                case.close(f"{name}_mean_masked", masked)
    icarl = losses.binary_distillation(logits, old)
    _compare(case, logits, icarl, "-", "icarl_combined_unit", "icarl_combined_unit_grad")
    for suffix, first in (("nobkg", 0), ("bkg", 1)):
        # the disjoint form is one distillation whose targets for other channels are certain
        hard = torch.full_like(logits, -torch.inf).detach()
        chosen = labels.clamp(max=logits.shape[1] - 1)[:, None]
        hard.scatter_(1, chosen, torch.inf)
        hard.masked_fill_((labels == case.hyper["ignore_index"])[:, None], -torch.inf)
        hard[:, first:n_old] = old[:, first:]
        name = f"icarl_disjoint_{suffix}"
        _compare(case, logits, losses.binary_distillation(logits, hard), "-", name, f"{name}_grad")
    if "body_new" in case:
        body = case.tensor("body_new").requires_grad_()
        value = losses.feature_distillation(body, case.tensor("body_old"))
        case.close("ilt_mse", value)
        case.close("ilt_mse_grad", torch.autograd.grad(value, body)[0])


def _compare(
    case: Case, logits: Tensor, per_pixel: Tensor, map_: str, mean: str, grad: str
) -> None:
    case.close(map_, per_pixel)
    value = per_pixel.mean()
    case.close(mean, value)
    if grad in case:
        case.close(grad, torch.autograd.grad(value, logits, retain_graph=True)[0])


def _check_trainer(case: Case, labels: Tensor) -> None:
    """Compare ``trainer_<preset>[_asis|_kd0]_<quantity>``."""
    presets = sorted({match[1] for match in case.matching(r"trainer_(.+?)_(parts|total|grad.*)")})
    for preset in presets:
        name, _, variant = preset.partition("_")
        method = _method(case, _METHODS.get(name, name), variant)
        logits = case.tensor("logits_new").requires_grad_()
        student, teacher = SimpleNamespace(upsampled=Upsampled.of(logits)), None
        if "logits_old" in case:
            teacher = SimpleNamespace(upsampled=Upsampled.of(case.tensor("logits_old")))
        if "body_new" in case and teacher is not None:
            student.body = case.tensor("body_new").requires_grad_()
            teacher.body = case.tensor("body_old")
        terms = method.losses(Batch(labels, student, teacher))
        total = torch.stack(list(terms.values())).sum()
        columns = ["classification", "lkd", "lde", "l_icarl"]
        parts = [*named_parts(name, terms, columns), total]
        case.close(f"trainer_{preset}_parts", torch.stack(parts), columns=True)
        case.close(f"trainer_{preset}_total", total)
        total.backward()
        case.close(f"trainer_{preset}_grad", _gradient(logits))
        if hasattr(student, "body"):
            case.close(f"trainer_{preset}_grad_body", _gradient(student.body))


def _method(case: Case, name: str, variant: str) -> Any:
    n_old, n_new = case.hyper["n_old"], case.hyper["n_new"]
    if name not in methods.names() or variant not in ("", "asis", "kd0"):
        raise UnknownCaseError(f"trainer preset '{name}_{variant}'")
    if n_old == 0:
        return methods.create_base(methods.describe(name).base_objective, n_new)
    return methods.create(name, compat_options(name, variant), n_old, n_new)


def compat_options(name: str, variant: str) -> dict[str, Any]:
    """Options of a method for a preset taken literally (``asis``) or as it was meant."""
    literal = variant == "asis" and "compat" in methods.describe(name).defaults
    return {"compat": True} if literal else {}


def named_parts(name: str, terms: dict[str, Tensor], columns: list[str]) -> Iterator[Tensor]:
    """Terms of a loss in the published order; 0 for those that a method does not have."""
    table = TERMS_LWF_MC if re.sub("[-_]", "", name) == "lwfmc" else TERMS
    zero = torch.zeros_like(next(iter(terms.values())))
    for column in columns:
        if column not in table:
            raise UnknownCaseError(f"loss component '{column}'")
        yield sum((terms.get(term, zero) for term in table[column]), zero)


def _gradient(values: Tensor) -> Tensor:
    return torch.zeros_like(values) if values.grad is None else values.grad
