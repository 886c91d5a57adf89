"""Methods that train a part of the network: the rest stays, bit for bit, also after a resume."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ciss import freezing
from ciss.methods.base import Batch
from ciss.methods.lwf import LearningWithoutForgetting
from ciss.models import NetworkConfig, SegmentationNetwork, initialise, widened
from ciss.training import Recipe, Training

N_OLD, N_NEW = 4, 2
RECIPE = Recipe(epochs=1, lr=0.1, batch=2, crop=32)


class Partly(LearningWithoutForgetting):
    """Trains what it is told to, and keeps the teacher's output for the test."""

    parts: Mapping[str, float] | None = None
    seen: Any = None

    def trained(self, network: nn.Module) -> Mapping[str, float] | None:
        return self.parts

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self.seen = batch.teacher
        return super().losses(batch)


def start(parts: Mapping[str, float] | None) -> Training:
    teacher = SegmentationNetwork(NetworkConfig("resnet18", width=4, head_channels=8), [N_OLD])
    initialise(teacher, 1)
    student = widened(teacher, N_NEW, 2)
    method = Partly({}, N_OLD, N_NEW)
    method.parts = parts
    return Training(student, teacher, method, RECIPE, 10, torch.device("cpu"))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, 32, 32, generator=generator)
    return images, torch.randint(N_OLD + N_NEW, (2, 32, 32), generator=generator)


def state(training: Training) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in training.network.state_dict().items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name, value in after.items() if not torch.equal(value, before[name])}


def test_by_default_everything_moves_in_one_group() -> None:
    training = start(None)
    before = state(training)
    training.update(*batch(0))
    assert len(training.optimiser.param_groups) == 1
    assert not training.shares_features
    unmoved = before.keys() - changed(before, state(training))
    assert not unmoved


def test_what_is_frozen_stays_bit_for_bit_with_its_statistics() -> None:
    training = start({"cls.1": 1.0, "cls.0.bias": 0.5})
    before = state(training)
    for seed in range(3):
        training.update(*batch(seed))
    assert changed(before, state(training)) == {"cls.1.weight", "cls.1.bias", "cls.0.bias"}
    rates = [group["lr"] for group in training.optimiser.param_groups]
    # Groups are in the order of the network's parameters.
    assert rates[0] == pytest.approx(0.5 * rates[1])
    assert training.network.training
    assert not training.network.body.training
    assert not training.network.head.training


def test_a_part_of_the_encoder_keeps_its_statistics_while_another_adapts() -> None:
    training = start({"head": 1.0, "cls": 1.0})
    before = state(training)
    training.update(*batch(0))
    moved = changed(before, state(training))
    assert {name.partition(".")[0] for name in moved} == {"head", "cls"}
    assert "head.map_bn.running_mean" in moved
    assert not training.shares_features


def test_factors_scale_the_step_from_equal_gradients() -> None:
    steps = []
    for factor in (1.0, 1e-2):
        training = start({"cls.1": factor})
        before = state(training)
        training.update(*batch(0))
        steps.append(state(training)["cls.1.weight"] - before["cls.1.weight"])
    torch.testing.assert_close(steps[1], steps[0] * 1e-2, rtol=1e-3, atol=1e-7)


def test_the_teacher_uses_the_features_that_the_student_has() -> None:
    training = start({"cls.1": 1.0})
    assert training.shares_features
    assert training.teacher is not None
    runs = []
    training.teacher.body.register_forward_hook(lambda *_: runs.append(1))
    training.update(*batch(0))
    assert not runs
    images, _ = batch(0)
    with torch.no_grad():
        expected = training.teacher(images)
    assert isinstance(training.method, Partly)
    assert torch.equal(training.method.seen.small_logits, expected.small_logits)
    assert torch.equal(training.method.seen.body, expected.body)


def test_a_teacher_of_other_features_is_run_itself() -> None:
    training = start({"cls.1": 1.0})
    assert training.teacher is not None
    other = copy.deepcopy(training.network)
    with torch.no_grad():
        other.body.mod1.conv1.weight += 0.1
    again = Training(other, training.teacher, training.method, RECIPE, 10, torch.device("cpu"))
    assert not again.shares_features


def test_a_resumed_run_has_the_same_bits() -> None:
    parts = {"cls.1": 1.0, "cls.0": 1e-3}
    whole, first, second = start(parts), start(parts), start(parts)
    for seed in range(4):
        whole.update(*batch(seed))
    for seed in range(2):
        first.update(*batch(seed))
    second.load_state_dict(first.state_dict())
    for seed in range(2, 4):
        second.update(*batch(seed))
    assert not changed(state(whole), state(second))


def test_names_are_checked_and_the_longest_counts() -> None:
    network = start(None).network
    factors = freezing.learning_rate_factors(network, {"cls": 1.0, "cls.1.bias": 2.0})
    assert factors == {
        "cls.0.weight": 1.0,
        "cls.0.bias": 1.0,
        "cls.1.weight": 1.0,
        "cls.1.bias": 2.0,
    }
    with pytest.raises(ValueError, match=r"is called cls\.7"):
        freezing.learning_rate_factors(network, {"cls.7": 1.0, "cls.1": 1.0})
    with pytest.raises(ValueError, match="no parameter is left"):
        freezing.learning_rate_factors(network, {})


def test_a_name_is_that_of_a_module_and_not_how_another_begins() -> None:
    """Step 10 of many has `cls.10`, which `cls.1` does not cover."""
    network = nn.Module()
    network.cls = nn.ModuleList(nn.Linear(1, 1) for _ in range(11))
    network.dropout, network.rest = nn.Dropout(), nn.Linear(1, 1)
    factors = freezing.learning_rate_factors(network, {"cls.1": 2.0, "cls.10.bias": 1.0})
    assert factors == {"cls.1.weight": 2.0, "cls.1.bias": 2.0, "cls.10.bias": 1.0}
    old = freezing.old_classifiers([1] * 11)
    assert old == [f"cls.{step}" for step in range(10)]
    left = freezing.without(freezing.learning_rate_factors(network, None), old)
    assert [name for name in left if "cls" in name] == ["cls.10.weight", "cls.10.bias"]
    # What has no parameters is not frozen.
    freezing.freeze_others(network, factors)
    freezing.train_mode(network)
    assert network.dropout.training
    assert not network.rest.training
