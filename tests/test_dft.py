"""DFT*: classifiers of the classes to come from step 0 on, and frozen features after it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ciss import methods
from ciss.checkpoint import load_model, save_model
from ciss.errors import CissError
from ciss.freezing import learning_rate_factors
from ciss.methods.base import Batch
from ciss.models import NetworkConfig, SegmentationNetwork, initialise, widened
from ciss.models.network import with_norm
from ciss.training import Recipe, Training

CONFIG = NetworkConfig("resnet18", width=2, head_channels=8)
N_BASE, LATER = 4, 3
RECIPE = Recipe(epochs=1, lr=0.1, batch=2, crop=32)


def step_0() -> SegmentationNetwork:
    network = SegmentationNetwork(CONFIG, [N_BASE], preallocated=LATER)
    initialise(network, 1)
    return network


def batch(labels: range) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    shown = torch.randint(labels.start, labels.stop, (2, 32, 32), generator=generator)
    return images, shown.masked_fill(shown == labels.start, 0)


def trained(network: SegmentationNetwork, n_old: int, n_new: int) -> set[str]:
    """Names of what two iterations change."""
    method = (
        methods.create("dft", {}, n_old, n_new)
        if n_old
        else methods.create_base(methods.PREALLOCATED, n_new)
    )
    training = Training(network, None, method, RECIPE, 10, torch.device("cpu"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for _ in range(2):
        training.update(*batch(range(max(n_old, 1) - 1, n_old + n_new)))
    after = network.state_dict()
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def test_step_0_starts_as_that_of_cross_entropy_and_predicts_its_own_classes_alone() -> None:
    network, plain = step_0().eval(), SegmentationNetwork(CONFIG, [N_BASE])
    initialise(plain, 1)
    images, _ = batch(range(N_BASE))
    output = network(images)
    assert torch.equal(output.logits, plain.eval()(images).logits)
    assert network.n_classes == output.logits.shape[1] == N_BASE
    assert output.allocated.logits.shape[1] == N_BASE + LATER
    assert plain(images).allocated.logits.shape[1] == N_BASE


def test_the_loss_is_that_of_all_outputs() -> None:
    network = step_0()
    images, labels = batch(range(N_BASE))
    output = network(images)
    ours = methods.create_base(methods.PREALLOCATED, N_BASE).losses(Batch(labels, output, None))
    maps = torch.cat([output.small_logits, network.future(output.pre_logits)], dim=1)
    logits = F.interpolate(maps, (32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(ours["classification"], F.cross_entropy(logits, labels))


def test_step_0_trains_all_classifiers_and_later_steps_none_of_the_old_ones() -> None:
    network = step_0()
    changed = trained(network, 0, N_BASE)
    assert {"cls.0.weight", "cls.0.bias", "future.weight", "future.bias"} <= changed
    assert any(name.startswith("body.") for name in changed)
    for step, (n_old, future) in enumerate([(4, True), (5, True), (6, False)], start=1):
        network = widened(network, 1, seed=9)
        newest = {f"cls.{step}.weight", f"cls.{step}.bias"}
        expected = newest | ({"future.weight", "future.bias"} if future else set())
        assert trained(network, n_old, 1) == expected


def test_a_step_takes_its_classifier_from_those_that_were_there() -> None:
    network = step_0()
    weight, bias = network.future.weight.clone(), network.future.bias.clone()
    wider = widened(network, 2, seed=9)
    assert wider.classes_per_step == (N_BASE, 2)
    assert torch.equal(wider.cls[1].weight, weight[:2])
    assert torch.equal(wider.future.weight, weight[2:])
    last = widened(wider, 1, seed=9)
    assert torch.equal(last.cls[2].bias, bias[2:])
    assert last.future is None
    assert network.future.out_channels == LATER  # which is a copy's business
    with pytest.raises(CissError, match="4 classes are added, but the network was made for 3"):
        widened(network, 4, seed=9)


def test_the_classifiers_to_come_are_saved_and_converted(tmp_path: Path) -> None:
    network = widened(step_0(), 1, seed=9).eval()
    save_model(tmp_path / "model", network, {})
    images, _ = batch(range(N_BASE))
    for same in (load_model(tmp_path / "model")[0], with_norm(network, "bn")):
        ours, theirs = (each(images).allocated.logits for each in (same, network))
        torch.testing.assert_close(ours, theirs)
        assert ours.shape[1] == N_BASE + LATER


def test_as_many_parameters_train_as_published() -> None:
    """VOC 10-1: 257 for each class, on average 5.5 classes, new or to come."""
    shape = NetworkConfig("resnet18", width=2, head_channels=256)
    with torch.device("meta"):
        counts = []
        for step in range(1, 11):
            classes = [11, *[1] * step]
            network = SegmentationNetwork(shape, classes, preallocated=10 - step)
            chosen = methods.create("dft", {}, 10 + step, 1).trained(network)
            named = dict(network.named_parameters())
            counts.append(sum(named[n].numel() for n in learning_rate_factors(network, chosen)))
    assert sum(counts) / len(counts) == 257 * 5.5
