"""The losses against the published values, and the properties that make them what they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import golden_cases, load_case, relative_difference
from torch import Tensor

from ciss import losses
from ciss.methods.base import VOID

TOLERANCE = 2e-5


def later_cases() -> list[Any]:
    """Cases with a teacher."""
    return [c for c in golden_cases("1_losses") if "step0" not in str(c.id)]


def tensors(case: dict[str, Any]) -> tuple[dict[str, np.ndarray], Tensor, Tensor, Tensor | None]:
    arrays = load_case(case)
    logits = torch.from_numpy(arrays["logits_new"]).requires_grad_()
    labels = torch.from_numpy(arrays["labels"]).long()
    old = torch.from_numpy(arrays["logits_old"]) if "logits_old" in arrays else None
    return arrays, logits, labels, old


def assert_matches(arrays: dict[str, np.ndarray], key: str, ours: Tensor) -> None:
    assert relative_difference(ours.detach().numpy(), arrays[key]) < TOLERANCE, key


def check_mean_and_gradient(
    arrays: dict[str, np.ndarray], logits: Tensor, per_pixel: Tensor, mean: str, gradient: str
) -> None:
    value = per_pixel.mean()
    assert_matches(arrays, mean, value)
    (ours,) = torch.autograd.grad(value, logits)
    assert_matches(arrays, gradient, ours)


@pytest.mark.parametrize("case", golden_cases("1_losses"))
def test_classification_losses_match_published(case: dict[str, Any]) -> None:
    arrays, logits, labels, _ = tensors(case)
    ce = losses.cross_entropy(logits, labels)
    assert_matches(arrays, "ce_map", ce)
    check_mean_and_gradient(arrays, logits, ce, "ce_mean", "ce_grad")
    bce = losses.binary_cross_entropy(logits, labels)
    assert_matches(arrays, "bce_map", bce)
    check_mean_and_gradient(arrays, logits, bce, "bce_mean", "bce_grad")
    if "unce_map" in arrays:
        unbiased = losses.unbiased_cross_entropy(logits, labels, case["hyperparameters"]["n_old"])
        assert_matches(arrays, "unce_map", unbiased)
        check_mean_and_gradient(arrays, logits, unbiased, "unce_mean", "unce_grad")


@pytest.mark.parametrize("case", later_cases())
def test_distillations_match_published(case: dict[str, Any]) -> None:
    arrays, logits, labels, old = tensors(case)
    assert old is not None
    for name, loss in [
        ("kd", losses.distillation),
        ("unkd", losses.unbiased_distillation),
    ]:
        per_pixel = loss(logits, old)
        assert_matches(arrays, f"{name}_map_a1", per_pixel)
        check_mean_and_gradient(arrays, logits, per_pixel, f"{name}_mean_a1", f"{name}_grad_a1")
        masked = per_pixel * (labels < old.shape[1])
        assert_matches(arrays, f"{name}_mean_masked", masked.mean())
        # the published `alpha` sharpens the teacher: an argument of the caller here
        sharpened = loss(logits, case["hyperparameters"]["kd_alpha_other"] * old)
        check_mean_and_gradient(arrays, logits, sharpened, f"{name}_mean_aX", f"{name}_grad_aX")
    check_mean_and_gradient(
        arrays,
        logits,
        losses.binary_distillation(logits, old),
        "icarl_combined_unit",
        "icarl_combined_unit_grad",
    )


@pytest.mark.parametrize("case", later_cases())
def test_feature_distillation_matches_published(case: dict[str, Any]) -> None:
    arrays = load_case(case)
    body = torch.from_numpy(arrays["body_new"]).requires_grad_()
    value = losses.feature_distillation(body, torch.from_numpy(arrays["body_old"]))
    assert_matches(arrays, "ilt_mse", value)
    (gradient,) = torch.autograd.grad(value, body)
    assert_matches(arrays, "ilt_mse_grad", gradient)


def random_batch(
    n_old: int, n_new: int, dtype: torch.dtype = torch.float32, scale: float = 3.0
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n_old * 100 + n_new)
    logits = scale * torch.randn(2, n_old + n_new, 5, 7, generator=generator)
    teacher = scale * torch.randn(2, n_old, 5, 7, generator=generator)
    labels = torch.randint(0, n_old + n_new, (2, 5, 7), generator=generator)
    labels[(labels > 0) & (labels < n_old)] = 0
    labels[0, :2] = VOID
    return logits.to(dtype), teacher.to(dtype), labels


def every_loss(logits: Tensor, teacher: Tensor, labels: Tensor) -> dict[str, Tensor]:
    n_old = teacher.shape[1]
    return {
        "ce": losses.cross_entropy(logits, labels),
        "bce": losses.binary_cross_entropy(logits, labels),
        "unce": losses.unbiased_cross_entropy(logits, labels, n_old),
        "kd": losses.distillation(logits, teacher),
        "bkd": losses.binary_distillation(logits, teacher),
        "unkd": losses.unbiased_distillation(logits, teacher),
    }


def test_unbiased_cross_entropy_is_a_distribution_over_background_and_new() -> None:
    """exp(−loss) over the labels {0, new classes} sums to one at every pixel."""
    n_old, n_new = 6, 3
    logits, _, labels = random_batch(n_old, n_new)
    choices = [0, *range(n_old, n_old + n_new)]
    total = sum(
        torch.exp(-losses.unbiased_cross_entropy(logits, torch.full_like(labels, c), n_old))
        for c in choices
    )
    torch.testing.assert_close(total, torch.ones(2, 5, 7))


def test_unbiased_losses_at_mib_initialisation_repeat_the_teacher() -> None:
    """New logits z_bg − log(n+1), background likewise: the merged student *is* the teacher."""
    n_new = 4
    _, teacher, labels = random_batch(6, n_new)
    shared = teacher[:, :1] - math.log(n_new + 1)
    student = torch.cat([shared, teacher[:, 1:], shared.expand(-1, n_new, -1, -1)], dim=1)
    probabilities = teacher.softmax(dim=1)
    entropy = -(probabilities * probabilities.log()).sum(dim=1) / 6
    torch.testing.assert_close(losses.unbiased_distillation(student, teacher), entropy)
    # background's probability is shared equally with the new classes
    unbiased = losses.unbiased_cross_entropy(student, torch.full_like(labels, 6), 6)
    torch.testing.assert_close(torch.exp(-unbiased), probabilities[:, 0] / (n_new + 1))


def test_unbiased_equals_plain_without_old_classes() -> None:
    """With background as the only old channel there is nothing to merge."""
    logits, _, labels = random_batch(1, 5)
    plain = losses.cross_entropy(logits, labels)
    torch.testing.assert_close(losses.unbiased_cross_entropy(logits, labels, 1), plain)


def test_shared_sums_change_nothing() -> None:
    logits, teacher, labels = random_batch(6, 2)
    logits.requires_grad_()

    def with_gradient(per_pixel: Tensor) -> tuple[Tensor, Tensor]:
        return per_pixel, torch.autograd.grad(per_pixel.sum(), logits, retain_graph=True)[0]

    softmax = losses.softmax_sums(logits, labels, teacher)
    sigmoid = losses.sigmoid_sums(logits, labels, teacher)
    shared = {
        "ce": losses.cross_entropy(logits, labels, softmax),
        "bce": losses.binary_cross_entropy(logits, labels, sigmoid),
        "unce": losses.unbiased_cross_entropy(logits, labels, 6, softmax),
        "kd": losses.distillation(logits, teacher, softmax),
        "bkd": losses.binary_distillation(logits, teacher, sigmoid),
        "unkd": losses.unbiased_distillation(logits, teacher, softmax),
    }
    for name, alone in every_loss(logits, teacher, labels).items():
        torch.testing.assert_close(with_gradient(shared[name]), with_gradient(alone), msg=name)


def test_sums_are_those_of_plain_functions() -> None:
    logits, teacher, labels = random_batch(6, 2, torch.float64)
    logits, teacher = logits.requires_grad_(), teacher.softmax(dim=1)
    classes = (teacher[:, 1:] * logits[:, 1:6]).sum(dim=1)
    kept = labels.masked_fill(labels == VOID, 0)
    label = logits.gather(1, kept[:, None])[:, 0].masked_fill(labels == VOID, 0)
    expected = losses.Sums(
        logits.logsumexp(dim=1),
        logits[:, :6].logsumexp(dim=1),
        logits[:, 6:].logsumexp(dim=1),
        label,
        logits[:, 0],
        teacher[:, 0],
        classes,
    )
    ours = losses.softmax_sums(logits, labels, teacher.log())
    # Each is weighted by other random numbers, so that none stands for another.
    weights = torch.randn(len(expected), *labels.shape, dtype=torch.float64)
    gradients = [
        torch.autograd.grad((torch.stack(sums) * weights).sum(), logits)[0]
        for sums in (tuple(expected), tuple(ours))
    ]
    torch.testing.assert_close(tuple(ours), tuple(expected))
    torch.testing.assert_close(*gradients)


def test_distillation_is_least_where_student_repeats_teacher() -> None:
    _, teacher, _ = random_batch(6, 2)
    for loss in (losses.distillation, losses.binary_distillation):
        student = teacher.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(student, teacher).sum(), student)
        assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("which", ["mixed", "void", "background", "new"])
def test_losses_are_finite_float32(dtype: torch.dtype, which: str) -> None:
    """Also for the largest logits that half precision tells apart."""
    logits, teacher, labels = random_batch(6, 2, dtype, scale=1000.0)
    if which != "mixed":
        labels = torch.full_like(labels, {"void": VOID, "background": 0, "new": 7}[which])
    logits.requires_grad_()
    for name, per_pixel in every_loss(logits, teacher, labels).items():
        assert per_pixel.dtype == torch.float32, name
        assert per_pixel.isfinite().all(), name
        (gradient,) = torch.autograd.grad(per_pixel.mean(), logits)
        assert gradient.dtype == dtype, name
        assert gradient.isfinite().all(), name
        if which == "void" and name in ("ce", "bce", "unce"):
            assert per_pixel.abs().max() == 0, name
            assert gradient.abs().max() == 0, name


def test_half_precision_agrees_with_float32_of_the_same_logits() -> None:
    logits, teacher, labels = random_batch(6, 2, torch.bfloat16)
    half = every_loss(logits, teacher, labels)
    full = every_loss(logits.float(), teacher.float(), labels)
    for name, per_pixel in half.items():
        assert torch.equal(per_pixel, full[name]), name
    features = logits[:, :6]
    expected = losses.feature_distillation(features.float(), teacher.float())
    assert torch.equal(losses.feature_distillation(features, teacher), expected)


def test_the_order_of_logits_in_memory_changes_nothing() -> None:
    logits, teacher, labels = random_batch(6, 2)

    def with_gradients(reorder: Callable[[Tensor], Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        ours = reorder(logits).requires_grad_()
        found = every_loss(ours, reorder(teacher), reorder(labels[:, None])[:, 0])
        return {
            name: (loss, torch.autograd.grad(loss.sum(), ours)[0]) for name, loss in found.items()
        }

    usual = with_gradients(torch.Tensor.clone)
    for reorder in (
        lambda values: values.contiguous(memory_format=torch.channels_last),
        lambda values: values.repeat_interleave(2, dim=3)[..., ::2],
    ):
        torch.testing.assert_close(with_gradients(reorder), usual)


def test_gradients_are_derivatives() -> None:
    logits, teacher, labels = random_batch(3, 2, torch.float64, scale=1.0)
    logits, teacher, labels = logits[..., :2, :2], teacher[..., :2, :2], labels[..., :2, :2]
    labels[0, 0, 0] = 4
    for name in every_loss(logits, teacher, labels):
        check = torch.autograd.gradcheck(
            lambda z, name=name: every_loss(z, teacher, labels)[name],
            logits.clone().requires_grad_(),
        )
        assert check, name
