"""SSUL: its loss, what it freezes, the unknown from the saliency map to the test, and AWT on it."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from helpers import REPOSITORY
from PIL import Image
from torch import Tensor

from ciss import fingerprint, methods, saliency, transfer
from ciss.attribution import attribute
from ciss.checkpoint import load_model, save_model
from ciss.config import checked, read_config
from ciss.datasets.base import UNKNOWN, VOID
from ciss.errors import CissError
from ciss.experiments import parse_experiment
from ciss.loading import TrainingImages, crop_and_flip
from ciss.methods.base import Batch
from ciss.models import NetworkConfig, SegmentationNetwork, initialise, widened
from ciss.pixelwise import Upsampled
from ciss.pseudo_labels import completed
from ciss.training import Recipe, Training

CPU = torch.device("cpu")
SMALL = NetworkConfig("resnet18", width=4, head_channels=8)
N_OLD, N_NEW = 4, 2
RECIPE = Recipe(epochs=1, lr=0.01, batch=2, crop=32)
HEADS = ({}, {"heads": "conv"})


def network(options: dict[str, Any]) -> SegmentationNetwork:
    extras = methods.create("ssul", options, 0, N_OLD).network_extras
    made = SegmentationNetwork(SMALL, [N_OLD], **extras)
    initialise(made, 0)
    return made.eval()


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(N_OLD, N_OLD + N_NEW, (2, 32, 32), generator=generator)
    labels[:, :12], labels[:, 12:20], labels[0, 20:24] = 0, UNKNOWN, VOID
    return torch.randn(2, 3, 32, 32, generator=generator), labels


def started(options: dict[str, Any]) -> Training:
    teacher = network(options)
    student = widened(teacher, N_NEW, 1)
    transfer.initialise(student, "copy", {}, None, 0)
    method = methods.create("ssul", options, N_OLD, N_NEW)
    return Training(student, teacher, method, RECIPE, 10, CPU)


def state(training: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.network.state_dict().items()}


def output(logits: Tensor) -> Any:
    return SimpleNamespace(upsampled_with_unknown=Upsampled.of(logits))


def test_the_loss_is_that_of_the_equation() -> None:
    generator = torch.Generator().manual_seed(0)
    student = 3 * torch.randn(2, N_OLD + N_NEW + 1, 32, 32, generator=generator).double()
    teacher = 3 * torch.randn(2, N_OLD + 1, 32, 32, generator=generator).double()
    _, labels = batch(0)
    method = methods.create("ssul", {}, N_OLD, N_NEW)
    (ours,) = method.losses(Batch(labels, output(student), output(teacher))).values()
    completed = 0
    means = []
    for image in range(2):
        costs = []
        for pixel in np.ndindex(32, 32):
            label = int(labels[(image, *pixel)])
            if label == VOID:
                continue
            scores = teacher[(image, slice(None), *pixel)].sigmoid()
            best = int(scores.argmax())
            if label in (0, UNKNOWN) and 0 < best < N_OLD and scores[best] >= 0.7:
                label, completed = best, completed + 1
            target = torch.zeros(N_OLD + N_NEW + 1).double()
            target[-1 if label == UNKNOWN else label] = 1
            logits = student[(image, slice(None), *pixel)]
            costs.append(F.binary_cross_entropy_with_logits(logits, target, reduction="sum"))
        means.append(torch.stack(costs).mean())
    assert completed > 100
    torch.testing.assert_close(ours, torch.stack(means).mean(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("options", HEADS, ids=["linear", "conv"])
def test_all_but_three_classifiers_stay_bit_for_bit(options: dict[str, Any]) -> None:
    training = started(options)
    before = state(training)
    for seed in range(3):
        training.update(*batch(seed))
    moved = {name for name, value in state(training).items() if not value.equal(before[name])}
    parts = ["cls.0", "cls.2", "unknown"]
    expected = {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    if options:
        expected |= {f"{part}.0.weight" for part in ("hidden.0", "hidden.2", "unknown_hidden")}
    assert moved == expected
    assert training.shares_features
    change = {name: (state(training)[name] - before[name]).abs().max() for name in moved}
    assert 0 < change["cls.0.bias"] < 1e-2 * change["unknown.bias"]
    rates = {**options, "lr_factor": 3.0, "background_lr_factor": 0.5}
    factors = methods.create("ssul", rates, N_OLD, N_NEW).trained(training.network)
    assert {name: factors[name] for name in parts} == {"cls.0": 1.5, "cls.2": 3.0, "unknown": 3.0}


@pytest.mark.parametrize("options", HEADS, ids=["linear", "conv"])
def test_a_resumed_run_has_the_same_bits(options: dict[str, Any]) -> None:
    whole, first, second = started(options), started(options), started(options)
    for seed in range(4):
        whole.update(*batch(seed))
    for seed in range(2):
        first.update(*batch(seed))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for seed in range(2, 4):
        second.update(*batch(seed))
    assert all(value.equal(state(whole)[name]) for name, value in state(second).items())


@pytest.mark.parametrize("options", HEADS, ids=["linear", "conv"])
def test_the_unknown_is_background_at_test_and_survives_a_file(
    options: dict[str, Any], tmp_path: Path
) -> None:
    made = network(options)
    save_model(tmp_path / "model.safetensors", made, {})
    read, _ = load_model(tmp_path / "model.safetensors")
    assert read.shape == made.shape
    assert read.classes_per_step == (N_OLD,)
    images = batch(1)[0]
    with torch.no_grad():
        # Neither background nor unknown is the largest alone; together they are, here and there.
        made.classifiers[0].bias.fill_(0.4)
        made.unknown.bias.fill_(0.4)
        made.classifiers[1].bias.fill_(0.8)
        out = made(images)
        size = (32, 32)
        background, unknown = (
            F.interpolate(maps, size=size, mode="bilinear").sigmoid()
            for maps in (out.small_logits, out.unknown)
        )
        expected = background.clone()
        expected[:, :1] += unknown
        assert out.predicted.equal(expected.argmax(1))
        assert not out.predicted.equal(background.argmax(1))
        assert out.small_scores.shape == out.small_logits.shape


@pytest.mark.parametrize("options", HEADS, ids=["linear", "conv"])
def test_awt_moves_the_channels_of_the_unknown(options: dict[str, Any]) -> None:
    old = network(options)
    images, labels = batch(2)
    labels[:, :16], labels[:, 16:] = N_OLD, N_OLD + 1
    made = [
        attribute(old, [(images, labels)], range(N_OLD, N_OLD + N_NEW), method, n_steps=2)
        for method in ("closed_form", "captum")
    ]
    torch.testing.assert_close(made[0].sums, made[1].sums, rtol=1e-3, atol=1e-4)
    wider = widened(old, N_NEW, 1)
    fresh = wider.classifiers[-1].weight.detach().clone()
    masks = transfer.initialise(wider, "awt", {"fraction": 2}, made[0], 0)
    assert masks is not None
    expected = fresh[:, :, 0, 0] + masks * old.unknown.weight[0, :, 0, 0]
    assert wider.classifiers[-1].weight[:, :, 0, 0].equal(expected)
    assert wider.unknown.weight.equal(old.unknown.weight)
    if options:
        assert wider.hidden[-1][0].weight.equal(old.unknown_hidden[0].weight)


def test_copies_are_of_the_unknown() -> None:
    wider = widened(network({}), N_NEW, 1)
    transfer.initialise(wider, "copy", {}, None, 0)
    newest = wider.classifiers[-1]
    assert newest.weight.equal(wider.unknown.weight.expand_as(newest.weight))
    assert newest.bias.equal(wider.unknown.bias.expand_as(newest.bias))


# --- Saliency ---------------------------------------------------------------------------------


def test_what_stands_out_is_salient() -> None:
    rng = np.random.default_rng(0)
    image = np.full((90, 120, 3), 120, dtype=np.uint8)
    image += rng.integers(0, 6, image.shape, dtype=np.uint8)
    image[30:50, 70:95] = 230
    whole = (0, 0, 90, 120)
    found = saliency.SpectralResidual(1.5)(image, "a", whole)
    assert found.shape == (90, 120)
    assert found[30:50, 70:95].mean() > 4 * found.mean() > 0
    mirrored = saliency.SpectralResidual(1.5)(image[:, ::-1], "a", whole)
    assert (mirrored[:, ::-1] == found).mean() > 0.95
    strict = saliency.SpectralResidual(3.0)(image, "a", whole)
    assert not (strict & ~found).any()
    assert np.isfinite(saliency.spectral_residual(np.zeros((8, 300, 3), np.uint8))).all()


def test_a_map_is_cut_as_its_image_and_kept() -> None:
    image = np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    found = saliency.SpectralResidual(1.0)
    whole = found(image, "a", (0, 0, 50, 70))
    cut = found(image, "a", (10, 20, 30, 40))
    assert np.array_equal(cut, whole[10:40, 20:60])
    # The same image is known by its name.
    assert np.array_equal(found(np.zeros_like(image), "a", (0, 0, 50, 70)), whole)


def test_only_background_becomes_unknown_and_goes_through_the_same_crop() -> None:
    rng = np.random.default_rng(2)
    image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    values = rng.choice(np.array([0, 3, VOID], np.uint8), (40, 50))
    salient = rng.random((40, 50)) < 0.5
    lookup = np.arange(256, dtype=np.uint8)
    box = (3, 5, 30, 40)
    cut = salient[3:33, 5:45]
    _, labels = crop_and_flip(image, values, box, True, 24, lookup, cut)
    marked = np.where(salient & (values == 0), np.uint8(UNKNOWN), values)
    _, expected = crop_and_flip(image, marked, box, True, 24, lookup)
    assert np.array_equal(labels, expected)
    assert set(np.unique(labels)) == {0, 3, UNKNOWN, VOID}


def test_maps_in_a_folder(tmp_path: Path) -> None:
    images, maps = tmp_path / "images", tmp_path / "maps"
    for folder in (images, maps):
        folder.mkdir()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(images / "a.jpg")
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(images / "a.png")
    values = np.zeros((20, 30), np.uint8)
    values[:, 15:] = 200
    Image.fromarray(values).save(maps / "a.png")
    rows = pd.DataFrame({"image": ["images/a.jpg"], "mask": ["images/a.png"]})
    made = TrainingImages(tmp_path, rows, np.arange(256, dtype=np.uint8), 16, seed=0)
    assert set(np.unique(made[0, 0][1])) == {0}
    made.saliency = saliency.saliency(str(maps), 1.5)
    assert set(np.unique(made[0, 0][1])) == {0, UNKNOWN}
    made.saliency = saliency.saliency("none", 1.5)
    assert set(np.unique(made[0, 0][1])) == {UNKNOWN}

    found = saliency.Maps(maps)
    found.check(["images/a.jpg"])
    with pytest.raises(CissError, match=r"1 saliency maps are missing, such as .*b\.png"):
        found.check(["images/a.jpg", "images/b.jpg"])
    with pytest.raises(CissError, match=r"30 × 20 pixels, its image 8 × 8"):
        found(np.zeros((8, 8, 3), np.uint8), "a.jpg", (0, 0, 8, 8))

    cache = tmp_path / "cache.json"
    before = fingerprint.of_folder(maps, ".png", cache)
    assert fingerprint.of_folder(maps, ".png", cache) == before
    Image.fromarray(255 - values).save(maps / "a.png")
    assert fingerprint.of_folder(maps, ".png", cache) != before


def test_the_teacher_is_asked_for_its_largest_logit() -> None:
    """Sigmoids of 20 and of 30 are both 1 in float32."""
    logits = torch.tensor([20.0, 25.0, 30.0, 0.0]).view(1, 4, 1, 1)
    labels = torch.zeros(1, 1, 1, dtype=torch.int64)
    found = completed(labels, Upsampled.of(logits), 0.7, sigmoid=True, unknown=True)
    assert found.item() == 2


# --- The configuration ------------------------------------------------------------------------


def test_a_variant_has_a_step_0_of_its_own_where_it_must() -> None:
    config = read_config(REPOSITORY / "config.yaml")
    config["methods"] |= {
        "ssul-none": {"method": "ssul", "saliency": "none"},
        "ssul-sure": {"method": "ssul", "confidence": 0.9},
    }
    config = checked(config)
    runs = {
        name: parse_experiment(config, f"voc_15-1_{name}").run_at(0)
        for name in ("ssul", "ssul_awt", "ssul-sure", "ssul-none_awt")
    }
    assert list(runs.values()) == ["ssul", "ssul", "ssul", "ssul-none"]
    # On ADE20K both leave nothing of the background known.
    assert parse_experiment(config, "ade_100-50_ssul-none").run_at(0) == "ssul"
    assert parse_experiment(config, "ade_100-50_ssul").method.options["saliency"] == "none"

    config["datasets"]["voc"]["scenarios"] = {"15-1": {"methods": {"ssul": {"heads": "conv"}}}}
    with pytest.raises(CissError, match="step 0 is shared by its scenarios"):
        parse_experiment(config, "voc_15-1_ssul")
    config["datasets"]["voc"]["scenarios"] = {"15-1": {"methods": {"ssul": {"heads": "deep"}}}}
    with pytest.raises(CissError, match="'deep' is unknown; there are: linear, conv"):
        parse_experiment(config, "voc_15-1_ssul")
