"""CFSSeg's regression: step by step it is the regression on all pixels together."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ciss import ridge
from ciss.checkpoint import load_model, save_model, save_tensors
from ciss.datasets import list_images, open_dataset
from ciss.datasets.shapes import generate
from ciss.errors import CissError
from ciss.labels import training_lookup
from ciss.loading import TrainingImages, single_pass
from ciss.models import NetworkConfig, SegmentationNetwork, initialise
from ciss.models.network import random_features, with_norm
from ciss.ridge import Ridge

CPU = torch.device("cpu")
CONFIG = NetworkConfig("resnet18", width=2, head_channels=6)
FEATURES, GAMMA = 40, 1.0
#: classes of each step, the background among those of step 0
STEPS = [4, 2, 1]


def start(features: int = FEATURES, seed: int = 1) -> SegmentationNetwork:
    """A network of step 0 whose classifiers are not solved yet."""
    network = SegmentationNetwork(CONFIG, STEPS[:1])
    initialise(network, seed)
    expansion = ridge.random_expansion(features, CONFIG.head_channels, seed)
    return ridge.with_head(network.eval(), expansion, torch.zeros(features, 4), STEPS[:1])


def batches(step: int) -> list[tuple[Tensor, Tensor]]:
    """Three batches in which the step's classes are labelled, and some pixels void."""
    generator = torch.Generator().manual_seed(step)
    new = range(max(sum(STEPS[:step]), 1), sum(STEPS[: step + 1]))
    found = []
    for size in (3, 1, 2):
        images = torch.randint(256, (size, 3, 32, 48), generator=generator, dtype=torch.uint8)
        labels = torch.randint(new.start - 1, new.stop, (size, 32, 48), generator=generator)
        labels[labels == new.start - 1] = 0
        labels[:, :, :9] = 255
        found.append((images, labels.to(torch.uint8)))
    return found


def seen(network: SegmentationNetwork, step: int, uncertainty: float) -> tuple[Tensor, Tensor]:
    """Random features [P, F] in float64 and the labels [P] that ``step`` learns them with."""
    features, labels = [], []
    for images, raw in batches(step):
        with torch.inference_mode():
            maps = network.features(ridge.to_network_input(images)).pre_logits
            size = (maps.shape[-2], maps.shape[-1])
            small = ridge.centre_labels(raw.long(), size)
            if step:
                small = ridge.with_pseudo_labels(small, network.classify(maps), uncertainty)
            e = random_features(maps, network.expansion).permute(0, 2, 3, 1).reshape(-1, FEATURES)
        kept = small.flatten() != 255
        features.append(e[kept].double())
        labels.append(small.flatten()[kept])
    return torch.cat(features), torch.cat(labels)


Pixels = list[tuple[Tensor, Tensor]]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Pixels:
    """Features, in float64, and labels that are added to sums, bit for bit.

    Two passes of one network over one image may differ in their rounding.
    """
    pixels: Pixels = []
    add = Ridge.add

    def record(self: Ridge, features: Tensor, labels: Tensor) -> None:
        kept = labels != 255
        pixels.append((features[kept].double(), labels[kept]))
        add(self, features, labels)

    monkeypatch.setattr(Ridge, "add", record)
    return pixels


def joined(pixels: Pixels) -> tuple[Tensor, Tensor]:
    features, labels = zip(*pixels, strict=True)
    return torch.cat(features), torch.cat(labels)


def solve_steps(
    uncertainty: float, added: Pixels
) -> tuple[list[Tensor], Tensor, Tensor, list[int]]:
    """Run all steps; returns each step's Φ, all pixels' features and labels, pseudo-labels by step.

    Features and labels are what a pass of our own over the images gives, too.
    """
    network, sums, classes = start(), Ridge.empty(FEATURES, STEPS[0], CPU), [STEPS[0]]
    solutions, features, labels, pseudo = [], [], [], []
    for step, n_new in enumerate(STEPS):
        if step:
            sums, classes = sums.widened(n_new), [*classes, n_new]
        added.clear()
        sums = ridge.accumulate(sums, network, batches(step), uncertainty if step else None)
        e, y = joined(added)
        expected, its_labels = seen(network, step, uncertainty)
        torch.testing.assert_close(e, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(y, its_labels)
        pseudo.append(int(((y > 0) & (y < sum(STEPS[:step]))).sum()))
        features.append(e)
        labels.append(y)
        solutions.append(sums.solve(GAMMA))
        network = ridge.with_head(network, network.expansion, solutions[-1], classes)
    return solutions, torch.cat(features), torch.cat(labels), pseudo


def joint(features: Tensor, labels: Tensor) -> Tensor:
    """The ridge regression on all pixels: least squares with √γ·I below them, no normal matrix."""
    targets = F.one_hot(labels, sum(STEPS)).double()
    rows = torch.cat([features, GAMMA**0.5 * torch.eye(FEATURES, dtype=torch.float64)])
    below = torch.zeros(FEATURES, sum(STEPS), dtype=torch.float64)
    return torch.linalg.lstsq(rows, torch.cat([targets, below]), driver="gelsd").solution


@pytest.mark.parametrize("uncertainty", [0.49, 0.0])
def test_step_by_step_is_the_joint_regression(uncertainty: float, added: Pixels) -> None:
    solutions, features, labels, pseudo = solve_steps(uncertainty, added)
    assert (sum(pseudo) > 0) == (uncertainty > 0)
    expected = joint(features, labels)
    assert solutions[-1].dtype == torch.float64
    torch.testing.assert_close(solutions[-1], expected, rtol=1e-8, atol=1e-10)


def test_it_is_the_recursion_that_the_paper_writes_down(added: Pixels) -> None:
    """Ψ ← (Ψ⁻¹ + EᵀE)⁻¹, Φ_old ← Φ_old + Ψ Eᵀ(Y_old − E Φ_old), Φ_new = Ψ Eᵀ Y_new."""
    solutions, features, labels, _ = solve_steps(0.49, added)
    network, psi, phi = start(), torch.eye(FEATURES, dtype=torch.float64) / GAMMA, None
    begin = 0
    for step, solution in enumerate(solutions):
        count = len(seen(network, step, 0.0)[1])
        e, y = features[begin : begin + count], labels[begin : begin + count]
        begin += count
        targets = F.one_hot(y, sum(STEPS[: step + 1])).double()
        psi = torch.linalg.inv(torch.linalg.inv(psi) + e.T @ e)
        if phi is None:
            phi = psi @ e.T @ targets
        else:
            old, new = targets[:, : phi.shape[1]], targets[:, phi.shape[1] :]
            phi = torch.cat([phi + psi @ e.T @ (old - e @ phi), psi @ e.T @ new], dim=1)
        torch.testing.assert_close(solution, phi, rtol=1e-7, atol=1e-9)


def test_pseudo_labels_replace_background_where_the_old_head_is_sure() -> None:
    labels = torch.tensor([[[0, 0, 0, 255, 5, 0]]])
    logits = torch.tensor([[0.0, 0.0, 0.9, 0.0, 0.0, 0.0], [0.41, 0.40, 0.1, 9.0, 9.0, -1.0]])
    found = ridge.with_pseudo_labels(labels, logits[None, :, None], 0.4)
    # σ(0.41) = 0.601, σ(0.40) = 0.599; the third is background, the last would be too unsure.
    assert found.tolist() == [[[1, 0, 0, 255, 5, 0]]]


def test_labels_are_those_of_the_middle_of_a_cell() -> None:
    labels = torch.arange(8 * 12).reshape(1, 8, 12)
    found = ridge.centre_labels(labels, (2, 3))
    assert found.tolist() == [[[2 * 12 + 2, 2 * 12 + 6, 2 * 12 + 10], [74, 78, 82]]]


def test_sums_and_model_survive_their_files(tmp_path: Path) -> None:
    network = start()
    sums = ridge.accumulate(Ridge.empty(FEATURES, 4, CPU), network, batches(0), None)
    ridge.save_ridge(tmp_path / "ridge", sums, {})
    found = ridge.load_ridge(tmp_path / "ridge", CPU)
    for ours, theirs in zip(vars(found).values(), vars(sums).values(), strict=True):
        assert torch.equal(ours, theirs)
    half = FEATURES * (FEATURES + 1) // 2 * 8
    assert (tmp_path / "ridge").stat().st_size < half + 3000
    save_tensors(tmp_path / "other", {"x": torch.zeros(1)}, {})
    with pytest.raises(CissError, match="holds 'tensors', not 'ridge'"):
        ridge.load_ridge(tmp_path / "other", CPU)

    solved = ridge.with_head(network, network.expansion, sums.solve(GAMMA), STEPS[:1])
    save_model(tmp_path / "model", solved, {})
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected = solved(images).logits
        torch.testing.assert_close(load_model(tmp_path / "model")[0](images).logits, expected)
        torch.testing.assert_close(with_norm(solved, "bn")(images).logits, expected)
        # The classifiers applied by hand.
        maps = solved.features(images).pre_logits.permute(0, 2, 3, 1)
        by_hand = F.relu(maps @ network.expansion.T) @ sums.solve(GAMMA).float()
        torch.testing.assert_close(solved(images).small_logits, by_hand.permute(0, 3, 1, 2))


def test_the_error_is_the_mean_over_the_pixels(added: Pixels) -> None:
    sums = ridge.accumulate(Ridge.empty(FEATURES, 4, CPU), start(), batches(0), None)
    features, labels = joined(added)
    phi = sums.solve(GAMMA)
    squares = (F.one_hot(labels, 4) - features @ phi).square().sum(dim=1)
    assert sums.error(phi, GAMMA) == pytest.approx(float(squares.mean()), rel=1e-9)
    assert sums.count.tolist() == labels.bincount(minlength=4).tolist()


def test_a_matrix_that_is_not_positive_definite_is_said() -> None:
    sums = Ridge(-torch.eye(3).double(), torch.zeros(3, 2).double(), torch.zeros(2).long())
    with pytest.raises(CissError, match="set the method's gamma higher"):
        sums.solve(0.5)


def test_a_pass_takes_every_image_once_whoever_brings_it(tmp_path: Path) -> None:
    generate(tmp_path / "shapes", train=7, val=1, size=40, seed=0)
    dataset = open_dataset("shapes", "shapes", tmp_path / "shapes")
    rows = pd.DataFrame(list_images(dataset)["train"], columns=["image", "mask"])
    lookup = training_lookup(dataset.lookup, range(1, 4))
    images = TrainingImages(dataset.root, rows, lookup, 32, seed=3)
    network, nothing = start(), Ridge.empty(FEATURES, 4, CPU)
    shares: list[int] = []
    for rank in range(2):
        mine = list(single_pass(images, 2, rank=rank, world_size=2))
        shares += [position for batch in mine for position in batch[2].tolist()]
    assert sorted(shares) == list(range(7))
    one = ridge.accumulate(nothing, network, (b[:2] for b in single_pass(images, 3)), None)
    parts = [
        ridge.accumulate(
            nothing, network, (b[:2] for b in single_pass(images, 2, rank=r, world_size=2)), None
        )
        for r in range(2)
    ]
    torch.testing.assert_close(parts[0].gram + parts[1].gram, one.gram, rtol=1e-6, atol=1e-9)
    assert (parts[0].count + parts[1].count).tolist() == one.count.tolist()
    again = ridge.accumulate(nothing, network, (b[:2] for b in single_pass(images, 3)), None)
    assert torch.equal(again.gram, one.gram)


def test_the_random_features_are_drawn_alike_and_for_themselves() -> None:
    drawn = ridge.random_expansion(3000, 25, seed=1)
    assert torch.equal(drawn, ridge.random_expansion(3000, 25, seed=1))
    assert not torch.equal(drawn, ridge.random_expansion(3000, 25, seed=2))
    assert drawn.std().item() == pytest.approx(1 / 5, rel=0.02)
    # Numbers of the same seed drew the network's first weights.
    same = torch.randn(3000, 25, generator=torch.Generator().manual_seed(1)) / 5
    assert not torch.allclose(drawn, same)
