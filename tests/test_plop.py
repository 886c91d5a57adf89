"""Local POD, thresholds and pseudo-labels against the published values; the whole method too."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import golden_cases, load_case, relative_difference
from torch import Tensor, nn

from ciss import methods, plop
from ciss.methods.base import VOID, Batch
from ciss.pixelwise import Upsampled

TOLERANCE = 2e-5


def cases(kind: str) -> list[Any]:
    """Published cases of one kind, or the one skipped parameter where there are none."""
    return [c for c in golden_cases("2_plop") if c.id is None or f"/{kind}" in c.id]


def outputs(arrays: dict[str, np.ndarray], side: str, logits: Tensor) -> SimpleNamespace:
    maps = [torch.from_numpy(arrays[f"{side}_{i}"]) for i in range(6)]
    if side == "new":
        maps = [m.requires_grad_() for m in maps]
    return SimpleNamespace(
        upsampled=Upsampled.of(logits),
        attentions=maps[:4],
        pre_logits=maps[4],
        small_logits=maps[5],
    )


class Replay(nn.Module):
    """A teacher whose inputs are its outputs."""

    def forward(self, inputs: Tensor) -> SimpleNamespace:
        return SimpleNamespace(upsampled=Upsampled.of(inputs))


def prepare(arrays: dict[str, np.ndarray], hyper: dict[str, Any], **options: Any) -> methods.Method:
    method = methods.create(
        "plop",
        {"bins": hyper["nb_bins"], "lowest_threshold": hyper["base_threshold"], **options},
        hyper["n_old"],
        hyper["n_new"],
    )
    count = sum(key.startswith("median_labels") for key in arrays)
    batches = (
        (
            torch.from_numpy(arrays[f"median_logits_old_{i}"]),
            torch.from_numpy(arrays[f"median_labels_{i}"]).long(),
        )
        for i in range(count)
    )
    method.prepare(Replay(), batches)
    return method


@pytest.mark.parametrize("case", cases("pod_"))
def test_pod_matches_published(case: dict[str, Any]) -> None:
    arrays, hyper = load_case(case), case["hyperparameters"]
    method = methods.create("plop", {}, hyper["n_old"], hyper["n_new"])
    n_outputs = hyper["n_tot"]
    logits = torch.zeros(len(arrays["new_0"]), n_outputs, 2, 2)
    student = outputs(arrays, "new", logits)
    teacher = outputs(arrays, "old", logits[:, : hyper["n_old"]])
    method.load_state_dict({"thresholds": torch.ones(hyper["n_old"])})
    labels = torch.zeros(len(logits), 2, 2, dtype=torch.int64)
    loss = method.losses(Batch(labels, student, teacher))["pod"]
    assert relative_difference(loss.detach().numpy(), arrays["loss"]) < TOLERANCE
    loss.backward()
    maps = [*student.attentions, student.pre_logits, student.small_logits]
    for i, new in enumerate(maps):
        assert relative_difference(new.grad.numpy(), arrays[f"grad_new_{i}"]) < TOLERANCE, i


@pytest.mark.parametrize("case", cases("pod_"))
def test_embedding_matches_published(case: dict[str, Any]) -> None:
    """Its norm, that is: the order within the embedding is nobody's business."""
    arrays = load_case(case)
    features = torch.from_numpy(arrays["old_0"])
    norm = np.linalg.norm(arrays["pod_embedding_old_0"].astype(np.float64), axis=1).mean()
    ours = plop.local_pod(features, torch.zeros_like(features))
    assert relative_difference(ours.numpy(), norm) < TOLERANCE


@pytest.mark.parametrize("case", cases("pseudo_"))
def test_histogram_and_thresholds_match(case: dict[str, Any]) -> None:
    arrays, hyper = load_case(case), case["hyperparameters"]
    n_old = hyper["n_old"]
    histogram = sum(
        plop.uncertainty_histogram(
            Upsampled.of(torch.from_numpy(arrays[f"median_logits_old_{i}"])),
            torch.from_numpy(arrays[f"median_labels_{i}"]).long(),
            hyper["n_tot"],
            hyper["nb_bins"],
        )
        for i in range(sum(key.startswith("median_labels") for key in arrays))
    )
    assert np.array_equal(histogram.numpy(), arrays["histograms"][:n_old])
    for option, key in [(False, "thresholds_intended"), (True, "thresholds")]:
        method = prepare(arrays, hyper, published_thresholds=option)
        ours = method.state_dict()["thresholds"].numpy()
        np.testing.assert_allclose(ours, arrays[key][:n_old], rtol=2e-6)


@pytest.mark.parametrize("case", cases("pseudo_"))
def test_pseudo_labels_match_published(case: dict[str, Any]) -> None:
    arrays, hyper = load_case(case), case["hyperparameters"]
    old = Upsampled.of(torch.from_numpy(arrays["logits_old"]))
    labels = torch.from_numpy(arrays["labels"]).long()
    uncertainty, _ = plop.old_predictions(old, hyper["n_tot"])
    reference = arrays["entropy_map"] / arrays["max_entropy"]
    assert relative_difference(uncertainty.numpy(), reference) < TOLERANCE
    thresholds = torch.from_numpy(arrays["thresholds"])
    pseudo, share = plop.pseudo_labels(labels, old, thresholds, hyper["n_tot"])
    assert np.array_equal(pseudo.numpy(), arrays["labels_pseudo"])
    assert np.array_equal(share.numpy(), arrays["adaptive_factor"].ravel())


@pytest.mark.parametrize("variant", ["kd0", "asis"])
@pytest.mark.parametrize("case", cases("pseudo_"))
def test_all_terms_match_published(case: dict[str, Any], variant: str) -> None:
    arrays, hyper = load_case(case), case["hyperparameters"]
    options = {"compat": True} if variant == "asis" else {"published_thresholds": True}
    method = prepare(arrays, hyper, **options)
    logits = torch.from_numpy(arrays["logits_new"]).requires_grad_()
    student = outputs(arrays, "new", logits)
    teacher = outputs(arrays, "old", torch.from_numpy(arrays["logits_old"]))
    terms = method.losses(Batch(torch.from_numpy(arrays["labels"]).long(), student, teacher))
    zero = torch.zeros(())
    ours = [terms["classification"], terms.get("distillation", zero), terms["pod"]]
    total = torch.stack(ours).sum()
    ours = torch.stack([*ours, total]).detach().numpy()
    np.testing.assert_allclose(ours, arrays[f"parts_{variant}"], rtol=TOLERANCE)
    total.backward()
    assert relative_difference(logits.grad.numpy(), arrays[f"grad_logits_{variant}"]) < TOLERANCE
    small = student.small_logits.grad.numpy()
    assert relative_difference(small, arrays["grad_small_kd0"]) < TOLERANCE


def test_equal_maps_cost_nothing_and_keep_gradients_finite() -> None:
    features = torch.randn(2, 3, 8, 8, requires_grad=True)
    loss = plop.local_pod(features, features.detach().clone())
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_half_precision_is_squared_and_summed_in_float32() -> None:
    student, teacher = (300 * torch.randn(2, 6, 8, 8).to(torch.float16) for _ in range(2))
    expected = plop.local_pod(student.float(), teacher.float())
    assert torch.equal(plop.local_pod(student, teacher), expected)
    folded = plop.fold_into_background(student, 3)
    assert torch.equal(folded, plop.fold_into_background(student.float(), 3))


@pytest.mark.parametrize("size", [(8, 8), (9, 9), (11, 8), (7, 8), (5, 16)])
def test_cells_are_squares_of_the_width(size: tuple[int, int]) -> None:
    """As published, whatever the map's height; each mean computed by itself."""
    height, width = size
    maps = torch.randn(2, 3, height, width, dtype=torch.float64)
    expected = []
    for scale in plop.SCALES:
        side = width // scale
        for i in range(scale):
            for j in range(scale):
                rows = slice(i * side, min((i + 1) * side, height))
                cell = maps.square()[:, :, rows, j * side : (j + 1) * side]
                if cell.numel():
                    expected += [cell.mean(dim=3).flatten(1), cell.mean(dim=2).flatten(1)]
    norm = torch.linalg.vector_norm(torch.cat(expected, dim=1), dim=1).mean()
    torch.testing.assert_close(plop.local_pod(maps, torch.zeros_like(maps)), norm)


def test_median_of_known_counts() -> None:
    histogram = torch.zeros(3, 10, dtype=torch.int64)
    histogram[0, 4] = 10  # the median is the middle of the bin
    histogram[1, 2], histogram[1, 7] = 1, 3  # a third of the way into bin 7
    thresholds = plop.median_thresholds(histogram, lowest=0.001)
    torch.testing.assert_close(thresholds, torch.tensor([0.45, 0.7 + 0.1 / 3, 0.001]))


def test_thresholds_survive_a_resume_and_the_pass_is_not_repeated() -> None:
    method = methods.create("plop", {}, 3, 1)
    method.prepare(Replay(), [(torch.randn(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.int64))])
    state = method.state_dict()
    resumed = methods.create("plop", {}, 3, 1)
    resumed.load_state_dict(state)
    resumed.prepare(None, iter(()))
    resumed.prepare(Replay(), (pytest.fail("consumed") for _ in range(1)))
    assert torch.equal(resumed.state_dict()["thresholds"], state["thresholds"])


def test_void_and_new_labels_stay() -> None:
    labels = torch.tensor([[[0, VOID, 3, 3]]])
    teacher = torch.randn(1, 3, 1, 4)
    sure = torch.full((3,), torch.inf)
    pseudo, share = plop.pseudo_labels(labels, Upsampled.of(teacher), sure, 4)
    assert pseudo[0, 0, 0] == teacher[0, :, 0, 0].argmax()
    assert pseudo[0, 0, 1:].tolist() == [VOID, 3, 3]
    assert share.tolist() == pytest.approx([1.0])
    pseudo, share = plop.pseudo_labels(labels, Upsampled.of(teacher), torch.zeros(3), 4)
    assert pseudo[0, 0].tolist() == [VOID, VOID, 3, 3]
    assert share.tolist() == [0.0]
