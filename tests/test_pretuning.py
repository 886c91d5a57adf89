"""Pre-tuning: NeST's formula and start, what stays frozen, going on after an interruption."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ciss import initialisations, transfer
from ciss.datasets import list_images, open_dataset
from ciss.datasets.base import VOID
from ciss.datasets.shapes import generate
from ciss.errors import CissError
from ciss.initialisations.base import Learner
from ciss.initialisations.nest import Transformation, pixels_of
from ciss.labels import training_lookup
from ciss.loading import TrainingImages, batches_per_epoch
from ciss.models import NetworkConfig, SegmentationNetwork, initialise, widened
from ciss.pretuning import learned, load_classifiers, pretuning, save_classifiers
from ciss.progress import Progress
from ciss.runtime import Runtime, StopRequest
from ciss.training import InterruptedTrainingError, Recipe, Training, train

CPU = torch.device("cpu")
SMALL = NetworkConfig("resnet18", width=4, head_channels=8)
#: outputs of three steps, the background included: old classes lie in two heads
STEPS, N_NEW = (4, 2), 3
N_OLD, CLASSES = sum(STEPS), sum(STEPS) + N_NEW
RECIPE = Recipe(epochs=2, lr=0.05, batch=8, crop=32)


def network_before() -> SegmentationNetwork:
    network = SegmentationNetwork(SMALL, STEPS)
    initialise(network, seed=1)
    return network


def start(recipe: Recipe = RECIPE, name: str = "nest", iterations: int = 4) -> Training:
    return pretuning(widened(network_before(), N_NEW, 2), name, {}, recipe, iterations, CPU)


def learner_of(training: Training) -> Transformation:
    return cast("Transformation", training.network)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> TrainingImages:
    root = tmp_path_factory.mktemp("data") / "shapes"
    generate(root, train=20, val=2, size=40, seed=0)
    dataset = open_dataset("shapes", "shapes", root)
    rows = pd.DataFrame(list_images(dataset)["train"], columns=["image", "mask"])
    lookup = training_lookup(dataset.lookup, range(N_OLD, CLASSES))
    assert batches_per_epoch(len(rows), RECIPE.batch) * RECIPE.epochs == 4
    return TrainingImages(root, rows, lookup, RECIPE.crop, seed=3)


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Images, and labels with each new class, background and void in blocks of any size."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(2, 3, 40, 32, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.zeros(2, 40, 32, dtype=torch.int64)
    labels[0, 3:17, :11], labels[0, 20:22], labels[1, :, 5:9] = N_OLD, N_OLD + 1, N_OLD
    labels[1, 1, 20], labels[1, 39:] = N_OLD + 2, VOID
    return inputs, labels


# --- The formula ---------------------------------------------------------------------------


def naive_logits(
    network: SegmentationNetwork, images: Tensor, parameters: dict[str, Tensor]
) -> Tensor:
    """Old logits and those of w_c = (M_c ∘ W) P_c, one class after the other."""
    with torch.no_grad():
        x = network.features(images).pre_logits
        # [C, N], a column for each old class
        old = torch.cat([head.weight[:, :, 0, 0] for head in network.classifiers[:-1]]).T
        old_bias = torch.cat([head.bias for head in network.classifiers[:-1]])
    weights = [
        parameters["background_importance"] * old[:, 0] * parameters["background_projection"]
    ]
    weights += [old[:, index] for index in range(1, N_OLD)]
    for index in range(N_NEW):
        matching, projection = parameters["importance"][index].T, parameters["projection"][index]
        weights.append((matching * old) @ projection)
    bias = torch.cat([old_bias, parameters["bias"]])
    small = torch.einsum("bchw,nc->bnhw", x, torch.stack(weights)) + bias[:, None, None]
    return F.interpolate(small, images.shape[-2:], mode="bilinear", align_corners=False)


def naive_loss(logits: Tensor, labels: Tensor) -> Tensor:
    p = logits.softmax(dim=1)
    total = logits.new_zeros(())
    for index in range(len(labels)):
        for label in range(CLASSES):
            # The background is what was known before, the old classes included.
            of_label = p[index, :N_OLD].sum(0) if label == 0 else p[index, label]
            total = total - of_label[labels[index] == label].log().sum()
    return total / labels.numel()


def test_loss_and_gradients_are_those_of_the_formula() -> None:
    training = start()
    learner = learner_of(training)
    learner.double()
    network = learner.network.double()
    learner.old_weight, learner.old_bias = learner.old_weight.double(), learner.old_bias.double()
    inputs, labels = batch()
    generator = torch.Generator().manual_seed(5)
    for parameter in learner.parameters():
        draw = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data.copy_(draw)
    copies = {
        name: value.detach().clone().requires_grad_() for name, value in learner.named_parameters()
    }
    expected = naive_loss(naive_logits(network, inputs, copies), labels)
    expected.backward()
    before = {name: value.detach().clone() for name, value in learner.named_parameters()}
    training.recipe = Recipe(epochs=1, lr=1.0, batch=2, crop=32)
    training.optimiser.param_groups[0].update(momentum=0.0, weight_decay=0.0, nesterov=False)
    terms, _ = training.update(inputs, labels)
    torch.testing.assert_close(terms["classification"], expected.detach(), rtol=1e-12, atol=0)
    for name, value in learner.named_parameters():
        # A step of SGD with rate 1 is the gradient.
        torch.testing.assert_close(before[name] - value, copies[name].grad, rtol=1e-9, atol=1e-12)


def test_it_learns() -> None:
    training = start(Recipe(epochs=1, lr=0.2, batch=2, crop=32), iterations=40)
    inputs, labels = batch(dtype=torch.float32)
    training.method.prepare(None, [(inputs, labels)])
    found = [training.update(inputs, labels)[0]["classification"].item() for _ in range(30)]
    assert found[-1] < 0.9 * found[0]


def naive_start(network: SegmentationNetwork, inputs: Tensor, labels: Tensor) -> tuple[Any, Any]:
    with torch.no_grad():
        x = network.features(inputs).pre_logits
    old = torch.cat([head.weight[:, :, 0, 0] for head in network.classifiers[:-1]]).detach().T
    matchings, projections = [], []
    for label in range(N_OLD, CLASSES):
        found = []
        for image, row, column in (labels == label).nonzero().tolist():
            height, width = x.shape[-2:]
            p = x[image, :, row * height // labels.shape[1], column * width // labels.shape[2]]
            products = old * (p / p.norm())[:, None]
            found.append((products > 0) * products.sum(dim=0).softmax(dim=0))
        matchings.append(torch.stack(found).mean(dim=0))
        projections.append(matchings[-1].sum(dim=0).softmax(dim=0))
    return torch.stack(matchings), torch.stack(projections)


def test_it_starts_from_the_classes_similarity() -> None:
    training = start()
    learner = learner_of(training)
    # A weight of zero speaks for nothing.
    with torch.no_grad():
        learner.network.classifiers[0].weight[1, :3] = 0
    learner.old_weight[1, :3] = 0
    inputs, labels = batch(dtype=torch.float32)
    both = [(inputs[:1], labels[:1]), (inputs[1:], labels[1:])]
    training.method.prepare(None, both)
    matching, projection = naive_start(learner.network, inputs, labels)
    torch.testing.assert_close(learner.importance.data, matching.transpose(1, 2))
    torch.testing.assert_close(learner.projection.data, projection)
    assert learner.bias.tolist() == [learner.old_bias[0].item()] * N_NEW
    made = learned(training)
    assert torch.equal(made.background_weight, learner.old_weight[0])
    assert torch.equal(made.background_bias, learner.old_bias[0])
    # A pixel gives each channel of each class at most its share of that class.
    assert 0 < learner.importance.sum(dim=1).max() <= 1


def test_a_class_that_no_image_shows_starts_as_all_and_without_any_it_stops() -> None:
    training = start()
    inputs, labels = batch(dtype=torch.float32)
    hidden = labels.where(labels != N_OLD + 2, 0)
    training.method.prepare(None, [(inputs, hidden)])
    learner = learner_of(training)
    counts = pixels_of(hidden, torch.Size((2, 2)), N_OLD, N_NEW).sum(dim=(0, 2, 3)).float()
    together = (learner.importance[:2] * counts[:2, None, None]).sum(0) / counts.sum()
    torch.testing.assert_close(learner.importance[2], together)
    with pytest.raises(CissError, match="no image shows any of the step's new classes"):
        training.method.prepare(None, [(inputs, hidden * 0)])


@pytest.mark.parametrize("size", [(3, 2), (5, 4), (40, 32)])
def test_pixels_are_counted_behind_their_position(size: tuple[int, int]) -> None:
    _, labels = batch()
    found = pixels_of(labels, torch.Size(size), N_OLD, N_NEW)
    expected = torch.zeros(2, N_NEW, *size, dtype=torch.int64)
    for image, row, column in ((labels >= N_OLD) & (labels != VOID)).nonzero().tolist():
        label = labels[image, row, column] - N_OLD
        expected[image, label, row * size[0] // 40, column * size[1] // 32] += 1
    assert torch.equal(found, expected)


def test_it_has_as_many_parameters_as_the_paper_says() -> None:
    """5.4 thousand for the last class of VOC."""
    network = SegmentationNetwork(NetworkConfig("resnet18", width=4), [20])
    learner = Transformation(widened(network, 1, 0))
    count = sum(parameter.numel() for parameter in learner.parameters())
    assert count == 256 * 20 + 20 + 256 + 1 + 1
    assert round(count / 1000, 1) == 5.4


# --- What it leaves alone ------------------------------------------------------------------


def everything(network: SegmentationNetwork) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_the_network_stays_as_it_is_and_no_other_class_changes(images: TrainingImages) -> None:
    training = start()
    learner = learner_of(training)
    before = everything(learner.network)
    train(training, images, Runtime(), Progress(None, ""), StopRequest())
    assert all(value.equal(before[name]) for name, value in everything(learner.network).items())
    assert not learner.network.training
    made = learned(training)
    assert not torch.equal(made.background_weight, learner.old_weight[0])
    assert made.weight.requires_grad is False

    wider = widened(network_before(), N_NEW, 2)
    transfer.initialise(wider, "nest", {}, None, 0, made)
    for name, value in everything(wider).items():
        if name.startswith("cls.2"):
            continue
        rest = value[1:] if name == "cls.0.weight" else value
        assert rest.equal(before[name][1:] if name == "cls.0.weight" else before[name]), name
    # What was learned is what the step starts with.
    inputs, _ = batch(dtype=torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(wider.eval()(inputs).logits, learner(inputs).logits)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupted_run_ends_with_the_bits_of_an_undisturbed_one(
    after: int, images: TrainingImages, tmp_path: Path
) -> None:
    undisturbed = start()
    train(undisturbed, images, Runtime(), Progress(None, ""), StopRequest())

    stopped, stop = start(), StopRequest()
    update = stopped.update

    def watched(*arguments: Any) -> Any:
        result = update(*arguments)
        if stopped.iteration == after:
            stop.signal = signal.SIGTERM.name
        return result

    stopped.update = watched  # type: ignore[method-assign]
    progress = Progress(tmp_path / "progress.pt", "nest")
    with pytest.raises(InterruptedTrainingError):
        train(stopped, images, Runtime(), progress, stop)
    # The frozen network is not kept with it.
    assert (tmp_path / "progress.pt").stat().st_size < 30_000
    resumed = start()
    train(resumed, images, Runtime(), progress, StopRequest())
    expected = undisturbed.network.state_dict()
    for name, value in resumed.network.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_mixed_precision_is_for_what_is_frozen(images: TrainingImages) -> None:
    def started(precision: str) -> Training:
        training = start(Recipe(epochs=2, lr=0.05, batch=8, crop=32, precision=precision))
        train(training, images, Runtime(), Progress(None, ""), StopRequest())
        return training

    half, full = started("bf16"), started("fp32")
    assert all(value.dtype is torch.float32 for value in half.network.state_dict().values())
    difference = (learned(half).weight - learned(full).weight).abs().max()
    assert 0 < difference < 0.1 * learned(full).weight.abs().max()


# --- The interface -------------------------------------------------------------------------


def test_classifiers_are_kept_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    made = learned(start())
    save_classifiers(tmp_path / "made.safetensors", made, {"step": 2})
    read = load_classifiers(tmp_path / "made.safetensors")
    for name in ("weight", "bias", "background_weight", "background_bias"):
        assert torch.equal(getattr(read, name), getattr(made, name))
    with pytest.raises(CissError, match=r"'nest' is learned on the step's images; run pretune\.py"):
        transfer.initialise(widened(network_before(), N_NEW, 2), "nest", {}, None, 0)
    with pytest.raises(CissError, match=r"of 3 classes and 8 channels, .* new ones of 2 and 8"):
        transfer.initialise(widened(network_before(), 2, 2), "nest", {}, None, 0, read)
    with pytest.raises(CissError, match="'mib' is not learned"):
        start(name="mib")


FACTS = "NEEDS_ATTRIBUTION = {}\nNEEDS_PRETUNING = {}\nOPTIONS = {}\ndef learner(): ...\n"
TRAINED = {"epochs": 1, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (FACTS.format(False, True, {"epochs": 1, "lr": 0.1}), "momentum, weight_decay: it is"),
        (FACTS.format(True, True, TRAINED), "needs attribution and pre-tuning; choose one"),
        (FACTS.format(False, True, TRAINED), ""),
    ],
)
def test_planning_knows_what_one_that_is_learned_must_have(
    code: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.setattr(initialisations, "__path__", [str(tmp_path)])
    caches: list[Callable[[], None]] = [
        initialisations.names.cache_clear,
        initialisations.describe.cache_clear,
    ]
    for clear in caches:
        clear()
    try:
        if words:
            with pytest.raises(CissError, match=words):
                initialisations.describe("mine")
        else:
            assert initialisations.describe("mine").needs_pretuning
    finally:
        for clear in caches:
            clear()


def test_a_learner_says_what_it_makes() -> None:
    learner = Learner(widened(network_before(), N_NEW, 2))
    assert (learner.n_old, learner.n_new, learner.classes_per_step) == (N_OLD, 3, (4, 2, 3))
    fresh = widened(network_before(), N_NEW, 2).classifiers[-1]
    assert torch.equal(learner.fresh.weight, fresh.weight[:, :, 0, 0])
    assert list(learner.parameters()) == []
