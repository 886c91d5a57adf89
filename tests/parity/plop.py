"""PLOP: local POD, thresholds, pseudo-labels and the whole loss."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from ciss import methods, plop
from ciss.methods.base import Batch, Method
from ciss.pixelwise import Upsampled

from .case import TOLERANCE, Case, UnknownCaseError

INPUTS = {
    r"(old|new)_\d+": "feature maps, inputs",
    r"median_(logits_old|labels)_\d+": "batches that the thresholds are found on, inputs",
    "logits_(old|new)": "inputs",
    "labels": "input",
}

#: options for each variant of the published loss; both ran with the published thresholds
_VARIANTS: dict[str, dict[str, Any]] = {
    "kd0": {"published_thresholds": True},
    "asis": {"compat": True},
    "intended": {},
}


def check(case: Case) -> None:
    """Check a case of POD alone (``loss``) or of pseudo-labels (``thresholds``)."""
    if "grad_new_0" in case:
        _check_pod(case)
    elif "median_logits_old_0" in case:
        _check_pseudo_labels(case)
    else:
        raise UnknownCaseError("neither POD (grad_new_0) nor pseudo-labels (median_logits_old_0)")


def _maps(case: Case, side: str) -> list[Tensor]:
    count = sum(1 for _ in case.matching(rf"{side}_\d+"))
    return [case.tensor(f"{side}_{number}") for number in range(count)]


def _outputs(maps: Sequence[Tensor], logits: Tensor) -> SimpleNamespace:
    return SimpleNamespace(
        upsampled=Upsampled.of(logits),
        attentions=[*maps[:-2]],
        pre_logits=maps[-2],
        small_logits=maps[-1],
    )


def _pod(method: Method, new: Sequence[Tensor], old: Sequence[Tensor]) -> Tensor:
    """The method's POD term; its other terms see logits of one pixel."""
    n_old = method.n_old
    logits = new[0].new_zeros(len(new[0]), n_old + method.n_new, 1, 1)
    method.load_state_dict({"thresholds": logits.new_ones(n_old)})
    labels = logits.new_zeros((len(logits), 1, 1), dtype=torch.int64)
    batch = Batch(labels, _outputs(new, logits), _outputs(old, logits[:, :n_old]))
    return method.losses(batch)["pod"]


def _check_pod(case: Case) -> None:
    hyper = case.hyper
    if tuple(hyper["spp_scales"]) != plop.SCALES or hyper["normalize"]:
        raise UnknownCaseError("POD with other scales, or normalised")
    if hyper["prepro"] != "pow(2)":
        raise UnknownCaseError(f"POD of maps under '{hyper['prepro']}'")
    n_old, n_new = hyper["n_old"], hyper["n_new"]
    factors = {"pod_factor": hyper["pod_factor"], "pod_logits_factor": hyper["last_factor"]}
    method = methods.create("plop", factors, n_old, n_new)
    old, new = _maps(case, "old"), [m.requires_grad_() for m in _maps(case, "new")]

    loss = _pod(method, new, old)
    case.close("loss", loss)
    for number, gradient in enumerate(torch.autograd.grad(loss, new)):
        case.close(f"grad_new_{number}", gradient)
    case.close("loss_no_schedule", loss / math.sqrt((n_old + n_new) / n_new))
    same = {**factors, "pod_logits_factor": factors["pod_factor"]}
    case.close("loss_no_switch", _pod(methods.create("plop", same, n_old, n_new), new, old))

    equal = [*new[:-1], plop.fold_into_background(new[-1], n_old)]
    each = [_pod(method, new, [*equal[:i], old[i], *equal[i + 1 :]]) for i in range(len(new))]
    case.close("loss_per_map", torch.stack(each))

    silent = torch.zeros_like(new[-1][:, n_old:])
    student = [*old[:-1], torch.cat([old[-1], silent], dim=1)]
    student = [m.detach().clone().requires_grad_() for m in student]
    identical = _pod(method, student, old)
    case.close("loss_identical", identical)
    gradients = torch.autograd.grad(identical, student)
    case.exact("grad_identical_finite", torch.stack([g.isfinite().all() for g in gradients]))
    for match in case.matching(r"pod_embedding_(old|new)_(\d+)"):
        features = {"old": old, "new": new}[match[1]][int(match[2])]
        case.close(match[0], _embedding(features.detach()))


def _embedding(features: Tensor) -> Tensor:
    """Local POD's embedding in the published order: by scale, by cell, over width and height."""
    parts = []
    for scale in plop.SCALES:
        batch, channels = features.shape[:2]
        pooled = plop.pool_cells(features.square(), scale)
        if len(pooled) == 2:
            over_width = pooled[0].reshape(batch, channels, scale, -1, scale).permute(0, 2, 4, 1, 3)
            over_height = (
                pooled[1].reshape(batch, channels, scale, scale, -1).permute(0, 2, 3, 1, 4)
            )
            pooled = [torch.cat([over_width.flatten(3), over_height.flatten(3)], dim=3).flatten(1)]
        parts += pooled
    return torch.cat(parts, dim=1)


class _Replay(nn.Module):
    """A teacher whose inputs are its outputs."""

    def forward(self, inputs: Tensor) -> SimpleNamespace:
        return SimpleNamespace(upsampled=Upsampled.of(inputs))


def _check_pseudo_labels(case: Case) -> None:
    hyper = case.hyper
    n_old, n_outputs, lowest = hyper["n_old"], hyper["n_tot"], hyper["base_threshold"]
    common = {"bins": hyper["nb_bins"], "lowest_threshold": lowest}
    numbers = sorted(int(match[1]) for match in case.matching(r"median_labels_(\d+)"))
    batches = [
        (case.tensor(f"median_logits_old_{i}"), case.tensor(f"median_labels_{i}").long())
        for i in numbers
    ]
    shape = (n_outputs, hyper["nb_bins"])
    histogram = torch.zeros(shape, dtype=torch.int64, device=case.device)
    for old, labels in batches:
        histogram[:n_old] += plop.uncertainty_histogram(
            Upsampled.of(old), labels, n_outputs, hyper["nb_bins"]
        )
    case.exact("histograms", histogram)
    for name, published in (("thresholds", True), ("thresholds_intended", False)):
        options = {**common, "published_thresholds": published}
        method = methods.create("plop", options, n_old, hyper["n_new"])
        method.prepare(_Replay(), iter(batches))
        # The published list goes on with the new classes, which the teacher never predicts.
        unused = torch.full((n_outputs - n_old,), lowest, device=case.device)
        case.close(name, torch.cat([method.state_dict()["thresholds"], unused]), columns=True)

    thresholds = case.tensor("thresholds")[:n_old]
    old, labels = case.tensor("logits_old"), case.tensor("labels").long()
    uncertainty, predicted = plop.old_predictions(Upsampled.of(old), n_outputs)
    limit = thresholds[predicted]
    tied = limit.isfinite() & ((uncertainty - limit).abs() <= TOLERANCE * limit)
    clear = ~tied & _decided(old)
    case.close("max_entropy", math.log(n_outputs))
    case.close("entropy_map", uncertainty * math.log(n_outputs))
    case.exact("mask_confident", uncertainty < limit, where=clear)
    case.exact("mask_old", labels < n_old)
    pseudo, share = plop.pseudo_labels(labels, Upsampled.of(old), thresholds, n_outputs)
    case.exact("labels_pseudo", pseudo, where=clear)
    ties = float((~clear).float().mean())
    case.close("adaptive_factor", share[:, None, None], TOLERANCE + ties)
    for variant, options in _VARIANTS.items():
        _check_loss(case, variant, {**common, **options}, thresholds)


def _decided(logits: Tensor) -> Tensor:
    """Where the largest logit is larger than the second by more than rounding."""
    first, second = logits.topk(2, dim=1).values.unbind(1)
    return (first - second) > 1e-6 * first.abs()


def _check_loss(case: Case, variant: str, options: dict[str, Any], thresholds: Tensor) -> None:
    method = methods.create("plop", options, case.hyper["n_old"], case.hyper["n_new"])
    method.load_state_dict({"thresholds": thresholds})
    logits = case.tensor("logits_new").requires_grad_()
    maps = [m.requires_grad_() for m in _maps(case, "new")]
    student = _outputs(maps, logits)
    teacher = _outputs(_maps(case, "old"), case.tensor("logits_old"))
    terms = method.losses(Batch(case.tensor("labels").long(), student, teacher))
    zero = torch.zeros((), device=case.device)
    parts = [terms["classification"], terms.get("distillation", zero), terms["pod"]]
    total = torch.stack(parts).sum()
    total.backward()
    case.close(f"parts_{variant}", torch.stack([*parts, total]), columns=True)
    for name, values in (("logits", logits), ("small", student.small_logits)):
        assert values.grad is not None
        case.close(f"grad_{name}_{variant}", values.grad)
