"""EWC, PI and RW against the published updates, and across steps and resumed runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from helpers import golden_cases, load_case, relative_difference
from torch import Tensor, nn

from ciss import methods, regularisers
from ciss.errors import CissError
from ciss.regularisers import Regularised, min_max, trainable

TOLERANCE = 2e-5


class TinyNetwork(nn.Module):
    def __init__(self, classes: list[int]) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3)
        self.cls = nn.ModuleList(nn.Conv2d(4, n, 1) for n in classes)


def with_prefix(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    prefix += "/module."
    return {key[len(prefix) :]: a for key, a in arrays.items() if key.startswith(prefix)}


def set_iteration(network: nn.Module, arrays: Mapping[str, np.ndarray], key: str) -> None:
    values, gradients = with_prefix(arrays, f"{key}/p"), with_prefix(arrays, f"{key}/grad")
    for name, parameter in network.named_parameters():
        parameter.data = torch.from_numpy(values[name].copy())
        parameter.grad = torch.from_numpy(gradients[name].copy())


def assert_all_close(ours: Mapping[str, Tensor], theirs: Mapping[str, np.ndarray]) -> None:
    assert ours.keys() == theirs.keys()
    for name, reference in theirs.items():
        assert relative_difference(ours[name].numpy(), reference) < TOLERANCE, name


def statistic(importances: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k[len(prefix) :]: v for k, v in importances.items() if k.startswith(prefix)}


def finish(network: nn.Module, arrays: Mapping[str, np.ndarray], step: int) -> None:
    final = with_prefix(arrays, f"s{step}/p_final")
    for name, parameter in network.named_parameters():
        parameter.data = torch.from_numpy(final[name].copy())


@pytest.mark.parametrize("part", [2**21, 20], ids=["in one part", "in parts"])
@pytest.mark.parametrize("case", golden_cases("3_regularizers"))
def test_two_steps_match_published(
    case: dict[str, Any], part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(regularisers.PART, "cpu", part)
    arrays, hyper = load_case(case), case["hyperparameters"]
    name, classes = hyper["method"], hyper["classes_per_step"]
    options: dict[str, Any] = {"importance": 1.0, "normalise": hyper["normalize"]}
    if name == "rw":
        options["interval"] = hyper["reg_iterations"]
    running = {"ewc": ["fisher"], "pi": [], "rw": ["fisher", "score"]}[name]

    importances: dict[str, Tensor] = {}
    previous: dict[str, Tensor] = {}
    for step in (0, 1):
        network = TinyNetwork(classes[: step + 1])
        method = methods.create(name, options, sum(classes[:step]), classes[step])
        if step:
            method.load_importances(importances, previous)
        for t in range(hyper["n_iterations"]):
            set_iteration(network, arrays, f"s{step}/t{t}")
            method.after_backward(network)
            state = method.state_dict()
            for key in running:
                theirs = with_prefix(arrays, f"s{step}/t{t}/{key}")
                flat = np.concatenate([theirs[n].ravel() for n in trainable(network)])
                assert relative_difference(state[f"{name}/{key}"].numpy(), flat) < TOLERANCE
            network.zero_grad()
            penalty = method.penalty(network)
            if step == 0:
                assert penalty is None
                continue
            assert penalty is not None
            theirs = arrays["s1/penalty"][t]
            assert relative_difference(penalty.detach().numpy(), theirs) < TOLERANCE
            penalty.backward()
            gradients = {n: p.grad for n, p in network.named_parameters()}
            assert_all_close(gradients, with_prefix(arrays, f"s1/t{t}/penalty_grad"))
        finish(network, arrays, step)
        importances = method.importances(network)
        previous = {n: p.detach().clone() for n, p in network.named_parameters()}
        for key in {"ewc": ["fisher"], "pi": ["score"], "rw": ["fisher", "score"]}[name]:
            ours = statistic(importances, f"{name}/{key}/")
            assert_all_close(ours, with_prefix(arrays, f"s{step}/state_{key}"))


def train(
    method: methods.Method, network: nn.Module, iterations: range, lr: float = 0.002
) -> list[float]:
    """Plain gradient descent on a loss that differs each iteration; returns the penalties."""
    penalties = []
    for t in iterations:
        generator = torch.Generator().manual_seed(t)
        inputs = torch.randn(2, 3, 6, 6, generator=generator)
        network.zero_grad()
        features = network.body(inputs).relu()
        torch.cat([c(features) for c in network.cls], dim=1).square().mean().backward()
        method.after_backward(network)
        penalty = method.penalty(network)
        if penalty is not None:
            penalty.backward()
            penalties.append(float(penalty.detach()))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter -= lr * parameter.grad
    return penalties


def test_one_base_run_serves_all_three() -> None:
    """Step 0 under `ce-importance` records exactly what each method would have recorded."""
    recorded = {}
    for method in [methods.create_base("ce-importance", 3)] + [
        methods.create(name, {}, 0, 3) for name in ("ewc", "pi", "rw")
    ]:
        torch.manual_seed(0)
        network = TinyNetwork([3])
        train(method, network, range(25))
        recorded[type(method)] = method.importances(network)
    shared, *alone = recorded.values()
    together = {key: tensor for part in alone for key, tensor in part.items()}
    assert shared.keys() == together.keys()
    for key, tensor in together.items():
        assert torch.equal(shared[key], tensor), key


@pytest.mark.parametrize("name", ["ewc", "pi", "rw"])
def test_second_step_uses_the_shared_base_and_leaves_new_parameters_free(name: str) -> None:
    torch.manual_seed(1)
    base = methods.create_base("ce-importance", 3)
    old = TinyNetwork([3])
    train(base, old, range(25))
    importances = base.importances(old)
    previous = dict(old.named_parameters())

    network = TinyNetwork([3, 2])
    network.load_state_dict(old.state_dict(), strict=False)
    method = methods.create(name, {}, 4, 2)
    method.load_importances(importances, previous)
    penalty = method.penalty(network)
    assert penalty is not None
    assert float(penalty.detach()) == 0.0
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1
    penalty = method.penalty(network)
    assert penalty is not None
    assert float(penalty.detach()) > 0
    penalty.backward()
    gradients = {n: p.grad for n, p in network.named_parameters()}
    assert gradients["cls.1.weight"].abs().max() == 0
    assert gradients["body.weight"].abs().max() > 0


@pytest.mark.parametrize("name", ["ewc", "pi", "rw"])
def test_resumed_run_ends_with_the_same_bits(name: str) -> None:
    torch.manual_seed(2)
    base = methods.create_base("ce-importance", 3)
    old = TinyNetwork([3])
    train(base, old, range(25))
    importances, previous = base.importances(old), dict(old.named_parameters())
    start = TinyNetwork([3, 2]).state_dict() | old.state_dict()

    def fresh(state: Mapping[str, Tensor]) -> tuple[nn.Module, Regularised]:
        network = TinyNetwork([3, 2])
        network.load_state_dict(state)
        method = methods.create(name, {}, 4, 2)
        assert isinstance(method, Regularised)
        method.load_importances(importances, previous)
        return network, method

    network, method = fresh(start)
    whole = train(method, network, range(30, 54))
    expected = method.importances(network)

    network, method = fresh(start)
    first = train(method, network, range(30, 43))
    state = {key: tensor.clone() for key, tensor in method.state_dict().items()}
    network, method = fresh({k: v.clone() for k, v in network.state_dict().items()})
    given = {key: tensor.clone() for key, tensor in state.items()}
    method.load_state_dict(state)
    assert method.state_dict().keys() == state.keys()
    assert first + train(method, network, range(43, 54)) == whole
    assert all(torch.equal(tensor, given[key]) for key, tensor in state.items())
    for key, tensor in method.importances(network).items():
        assert torch.equal(tensor, expected[key]), key


@pytest.mark.parametrize("name", ["ewc", "pi", "rw"])
def test_an_overflowed_gradient_leaves_no_trace(name: str) -> None:
    """With float16 loss scaling such an iteration is skipped by the optimiser too."""
    torch.manual_seed(3)
    network = TinyNetwork([3])
    method = methods.create(name, {"interval": 1} if name == "rw" else {}, 0, 3)
    train(method, network, range(5))
    before = method.importances(network)
    network.body.weight.grad[0, 0, 0, 0] = torch.inf
    # the last optimiser step of `train` moved θ: let the recorders see the zeroed gradient only
    method.after_backward(network)
    for key, tensor in method.importances(network).items():
        assert torch.equal(tensor, before[key]), key


class OneTensor(nn.Module):
    """Vectors of a single tensor could be the tensor itself, which the optimiser changes."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values))

    def move(self, method: methods.Method, values: list[float], gradient: list[float]) -> None:
        with torch.no_grad():
            self.w.copy_(torch.tensor(values))
        self.w.grad = torch.tensor(gradient)
        method.after_backward(self)


def numbers(importances: Mapping[str, Tensor]) -> dict[str, list[float]]:
    return {key.removesuffix("/w"): value.tolist() for key, value in importances.items()}


@pytest.mark.parametrize("name", ["ewc", "pi", "rw"])
def test_by_hand(name: str) -> None:
    """Two steps of two iterations each, two parameters; the second step starts off from θ'."""
    interval = {"interval": 1} if name == "rw" else {}
    method = methods.create(name, {"importance": 3.0, **interval}, 0, 2)
    network = OneTensor(1.0, 2.0)
    network.move(method, [1.0, 2.0], [1.0, -2.0])
    network.move(method, [0.5, 2.5], [2.0, 1.0])
    with torch.no_grad():
        network.w.copy_(torch.tensor([0.0, 3.0]))
    first = method.importances(network)
    kept = {key: value.clone() for key, value in first.items()}
    # F ← 0.9 g² + 0.1 F from ones: 1.0 and 3.7, then 3.7 and 1.27.
    fisher = [0.9 * 4 + 0.1 * 1.0, 0.9 * 1 + 0.1 * 3.7]
    # −g Δθ is 1 and −0.5; PI's way to the end is −1 and 1; RW's ½ F Δθ² is ½ · 1.0 · ¼.
    walk = [1.0 / (0.5 * 1.0 * 0.25), 0.0]
    expected = {
        "ewc": {"ewc/fisher": fisher},
        "pi": {"pi/score": [1.0, 0.0]},
        "rw": {"rw/fisher": fisher, "rw/score": walk},
    }[name]
    assert numbers(first) == {key: pytest.approx(value) for key, value in expected.items()}
    network.move(method, [7.0, 7.0], [5.0, 5.0])
    assert all(torch.equal(value, kept[key]) for key, value in first.items())

    previous = {"w": torch.tensor([0.0, 3.0])}
    method = methods.create(name, {"importance": 3.0, **interval}, 2, 1)
    method.load_importances(first, previous)
    # An initialisation has moved the second one already.
    network = OneTensor(0.0, 4.0)
    penalty = method.penalty(network)
    # Of two values min-max makes 1 and 0; in all three the first is the larger.
    assert penalty is not None
    assert penalty.item() == pytest.approx(0.0)
    network.move(method, [0.0, 4.0], [0.0, 0.0])
    network.move(method, [2.0, 5.0], [-1.0, -1.0])
    penalty = method.penalty(network)
    assert penalty is not None
    kinds = 2 if name == "rw" else 1
    assert penalty.item() == pytest.approx(3.0 * kinds * 2.0**2)
    # F: 0.1 of it, and then 0.9 and 0.1 of that. −g Δθ is 2 and 1, the way from θ' 2 and 2.
    before = [0.1 * value for value in fisher]
    fisher = [0.9 + 0.1 * value for value in before]
    walk = [
        (2 / (0.5 * before[0] * 4) + walk[0]) / 2,
        (1 / (0.5 * before[1] * 1) + walk[1]) / 2,
    ]
    expected = {
        "ewc": {"ewc/fisher": fisher},
        "pi": {"pi/score": [2 / 4 + 1.0, 1 / 4 + 0.0]},
        "rw": {"rw/fisher": fisher, "rw/score": walk},
    }[name]
    found = numbers(method.importances(network))
    assert found == {key: pytest.approx(value, rel=1e-5) for key, value in expected.items()}


def test_a_parameter_without_gradient_matters_little_and_a_frozen_one_not_at_all() -> None:
    network = TinyNetwork([3])
    network.body.bias.requires_grad_(False)
    method = methods.create("ewc", {}, 0, 3)
    network.body.weight.grad = torch.full_like(network.body.weight, 2.0)
    network.cls[0].weight.grad = torch.zeros_like(network.cls[0].weight)
    method.after_backward(network)
    found = method.importances(network)
    assert "ewc/fisher/body.bias" not in found
    torch.testing.assert_close(found["ewc/fisher/body.weight"].unique(), torch.tensor([3.7]))
    torch.testing.assert_close(found["ewc/fisher/cls.0.bias"], torch.full((3,), 0.1))


def test_min_max_of_a_constant_is_zero() -> None:
    assert torch.equal(min_max(torch.full((3,), 7.0)), torch.zeros(3))
    torch.testing.assert_close(min_max(torch.tensor([1.0, 2, 5])), torch.tensor([0.0, 0.25, 1]))


def test_importances_of_another_run_are_refused() -> None:
    network = TinyNetwork([3])
    method = methods.create("ewc", {}, 3, 1)
    method.load_importances({}, dict(network.named_parameters()))
    with pytest.raises(CissError, match=r"ewc/fisher/body\.weight"):
        method.penalty(network)
    narrower = {
        f"ewc/fisher/{name}": parameter[1:] for name, parameter in network.named_parameters()
    }
    method.load_importances(narrower, dict(network.named_parameters()))
    with pytest.raises(CissError, match=r"ewc/fisher/body\.weight"):
        method.penalty(network)


def test_parts_are_of_whole_tensors_and_cover_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(regularisers.PART, "cpu", 20)
    parameters = [nn.Parameter(torch.zeros(n)) for n in (5, 15, 1, 50, 2, 3)]
    found = regularisers.parts(parameters)
    assert [part for part, _ in found] == [
        slice(0, 20),
        slice(20, 21),
        slice(21, 71),
        slice(71, 76),
    ]
    assert [p for _, members in found for p in members] == parameters
