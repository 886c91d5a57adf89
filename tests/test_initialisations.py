"""Initialisations against the published ones, and what a user can get wrong."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import golden_cases, load_case

from ciss import initialisations, transfer
from ciss.attribution import GROUPINGS, POOLINGS, Attribution
from ciss.errors import CissError
from ciss.initialisations.base import Classifiers
from ciss.models import NetworkConfig, SegmentationNetwork, initialise, widened

CHANNELS = 16
DRAW = torch.Generator().manual_seed(0)


def step_one(n_new=2, norm="abn"):
    network = SegmentationNetwork(NetworkConfig("resnet18", 16, norm, 4, CHANNELS), [4])
    initialise(network, 0)
    return widened(network, n_new, 1)


def attribution_of(classes=(4, 5), channels=CHANNELS):
    """Joint: channels 0-3 score highest. Class 4: 0-3, class 5: the last four."""
    sums = torch.zeros(len(classes), channels, 3, 3)
    sums[0, :4, 1, 1] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    sums[-1, -4:, 0, 0] = 0.5
    return Attribution(
        new_classes=tuple(classes),
        sums=sums,
        count=torch.full((len(classes),), 2),
        joint_count=3,
        max_sums=sums.amax((2, 3)),
        joint_max_sum=sums.sum(0).amax((1, 2)),
    )


def snapshot(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


VARIANTS = [
    ("orig_init", "mib", {}, None),
    ("awt_joint", "awt", {}, "mask_joint"),
    ("awt_per_class", "awt", {}, "mask_per_class"),
    ("awt_copy_bias", "awt", {"copy_bias": True}, "mask_joint"),
    ("copy", "awt", {"replace": True}, "mask_joint"),
    ("copy_per_class", "awt", {"replace": True}, "mask_per_class"),
    ("random_float_mask", "awt", {}, "mask_float"),
    ("none", "random", {}, None),
]


@pytest.mark.parametrize("case", golden_cases("4_classifier_init"))
@pytest.mark.parametrize(
    ("variant", "name", "options", "mask"), VARIANTS, ids=[entry[0] for entry in VARIANTS]
)
def test_matches_published(case, variant, name, options, mask):
    arrays = {key: torch.from_numpy(value) for key, value in load_case(case).items()}
    newest = len(case["hyperparameters"]["classes_per_step"]) - 1
    before = Classifiers(
        weight=arrays[f"before/cls.{newest}.weight"][:, :, 0, 0],
        bias=arrays[f"before/cls.{newest}.bias"],
        background_weight=arrays["before/cls.0.weight"][0, :, 0, 0],
        background_bias=arrays["before/cls.0.bias"][0],
    )
    masks = None
    if mask is not None:
        masks = arrays[mask].reshape(-1, before.weight.shape[1]).bool()
    after = transfer.get(name).initialise(
        before, initialisations.options_of(name, options), masks, DRAW
    )
    assert torch.equal(after.weight, arrays[f"{variant}/new_weight"][:, :, 0, 0])
    assert torch.equal(after.bias, arrays[f"{variant}/new_bias"])
    assert torch.equal(after.background_bias, arrays[f"{variant}/bg_bias"])
    assert torch.equal(after.background_weight, before.background_weight)


def test_names_are_the_modules():
    expected = ("awt", "copy", "mib", "nest", "randchannels", "random")
    assert initialisations.names() == expected
    needing = [name for name in initialisations.names() if transfer.get(name).NEEDS_ATTRIBUTION]
    assert needing == ["awt"]
    with pytest.raises(CissError, match="'zero' is unknown; there are: awt, copy, mib"):
        transfer.get("zero")
    with pytest.raises(CissError, match="unknown"):
        transfer.get("base")


def test_one_that_needs_attribution_has_the_options_that_choose_channels(tmp_path, monkeypatch):
    code = 'NEEDS_ATTRIBUTION = True\nOPTIONS = {"fraction": 0.5, "other": 1}\n'
    code += "def initialise(): ...\n"
    (tmp_path / "half.py").write_text(code)
    monkeypatch.setattr(initialisations, "__path__", [str(tmp_path)])
    initialisations.names.cache_clear()
    try:
        with pytest.raises(
            CissError, match=r"half needs .* no option grouping, pooling: .*half\.py"
        ):
            initialisations.describe("half")
        (tmp_path / "half.py").write_text(code.replace("True", "False"))
        assert initialisations.describe("half").defaults == {"fraction": 0.5, "other": 1}
    finally:
        initialisations.names.cache_clear()
        initialisations.describe.cache_clear()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("NEEDS_ATTRIBUTION = False\nOPTIONS = {}\n", r"by_half\.py lacks initialise\(\)"),
        (
            "NEEDS_PRETUNING = True\nOPTIONS = {}\ndef initialise(): ...\n",
            r"lacks NEEDS_ATTRIBUTION, learner\(\)",
        ),
        ("OPTIONS = dict(share=1)\n", r"by_half\.py: OPTIONS must be written as a literal"),
    ],
)
def test_planning_refuses_a_module_that_lacks_something(code, words, tmp_path, monkeypatch):
    (tmp_path / "by_half.py").write_text(code)
    monkeypatch.setattr(initialisations, "__path__", [str(tmp_path)])
    initialisations.names.cache_clear()
    try:
        assert initialisations.names() == ("by-half",)
        with pytest.raises(CissError, match=words):
            initialisations.describe("by-half")
    finally:
        initialisations.names.cache_clear()
        initialisations.describe.cache_clear()


def test_planning_and_attribution_know_the_same_words():
    choices = initialisations.describe("awt").choices
    assert choices == {"pooling": list(POOLINGS), "grouping": list(GROUPINGS)}


@pytest.mark.parametrize("name", ["awt", "copy", "mib", "randchannels", "random"])
def test_apply_touches_only_the_newest_classifier_and_the_background(name):
    network = step_one()
    before = snapshot(network)
    transfer.initialise(network, name, {}, attribution_of(), seed=0)
    for key, value in network.state_dict().items():
        if key.startswith("cls.0"):
            assert torch.equal(value[1:], before[key][1:]), key
        elif not key.startswith("cls.1"):
            assert torch.equal(value, before[key]), key
    assert torch.equal(network.cls[0].weight, before["cls.0.weight"])


def test_apply_mib_keeps_the_sum_of_probabilities():
    """Old classes keep their probability; the background's is shared with the new ones."""
    network = step_one(3).eval()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    old = torch.softmax(network(images).small_logits[:, :4], dim=1)
    transfer.initialise(network, "mib", {}, None, seed=0)
    new = torch.softmax(network(images).small_logits, dim=1)
    assert torch.allclose(new[:, 1:4], old[:, 1:], atol=1e-6)
    assert torch.allclose(new[:, 0] * 4, old[:, 0], atol=1e-6)
    assert torch.allclose(new[:, 4:], new[:, :1].expand(-1, 3, -1, -1), atol=1e-6)


def test_apply_awt_joint_and_per_class():
    network = step_one()
    before = snapshot(network)
    masks = transfer.initialise(network, "awt", {}, attribution_of(), seed=0)
    assert masks.shape == (1, CHANNELS)
    assert masks[0].nonzero().flatten().tolist() == [0, 1, 2, 3]
    moved = network.cls[1].weight - before["cls.1.weight"]
    assert torch.allclose(moved[0, :4], before["cls.0.weight"][0, :4], atol=1e-6)
    assert torch.allclose(moved[1, :4], before["cls.0.weight"][0, :4], atol=1e-6)
    assert not moved[:, 4:].any()
    assert torch.equal(network.cls[1].bias, before["cls.1.bias"])

    options = {"grouping": "per_class", "fraction": 4, "copy_bias": True, "replace": True}
    network = step_one()
    masks = transfer.initialise(network, "awt", options, attribution_of(), seed=0)
    assert masks[1].nonzero().flatten().tolist() == [12, 13, 14, 15]
    assert torch.equal(network.cls[1].weight[1, 12:], before["cls.0.weight"][0, 12:])
    assert torch.equal(network.cls[1].weight[1, :12], before["cls.1.weight"][1, :12])
    shifted = before["cls.0.bias"][0] - math.log(3)
    assert torch.allclose(network.cls[1].bias, shifted.expand(2))
    assert torch.allclose(network.cls[0].bias[0], shifted)


def test_awt_asks_for_the_scores_that_its_options_name():
    attribution = attribution_of()
    # Spread over all positions, which a maximum does not see.
    attribution.sums[:, 8:12] = 0.45
    for pooling, chosen in (("max_after_mean", [0, 1, 2, 3]), ("avg_after_mean", [8, 9, 10, 11])):
        masks = transfer.initialise(step_one(), "awt", {"pooling": pooling}, attribution, seed=0)
        assert masks[0].nonzero().flatten().tolist() == chosen, pooling


def test_each_step_of_each_seed_has_its_own_draw():
    draws = [transfer.draw_of(seed, step) for seed in range(5) for step in range(30)]
    assert len(set(draws)) == len(draws)


def test_randchannels_moves_as_many_channels_as_asked_by_seed():
    fractions = [
        initialisations.describe(name).defaults["fraction"] for name in ("awt", "randchannels")
    ]
    assert fractions[0] == fractions[1]
    moved = []
    for seed in (0, 0, 1):
        network = step_one()
        before = snapshot(network)
        transfer.initialise(network, "randchannels", {"fraction": 0.5}, None, seed)
        difference = (network.cls[1].weight - before["cls.1.weight"])[:, :, 0, 0]
        assert ((difference != 0).sum(1) == CHANNELS // 2).all()
        assert torch.equal(difference[0] != 0, difference[1] != 0)
        moved.append(difference)
    assert torch.equal(moved[0], moved[1])
    assert not torch.equal(moved[0], moved[2])


def test_awt_is_never_silently_random():
    with pytest.raises(CissError, match="'awt' needs an attribution"):
        transfer.initialise(step_one(), "awt", {}, None, seed=0)
    with pytest.raises(CissError, match=r"attribution is of classes \(5, 6\)"):
        transfer.initialise(step_one(), "awt", {}, attribution_of((5, 6)), seed=0)
    with pytest.raises(CissError, match="8 channels"):
        transfer.initialise(step_one(), "awt", {}, attribution_of(channels=8), seed=0)


def test_wrong_options():
    with pytest.raises(CissError, match="'threshold' is unknown; there are: fraction, pooling"):
        transfer.initialise(step_one(), "awt", {"threshold": 1}, attribution_of(), seed=0)
    with pytest.raises(CissError, match="there are: none"):
        transfer.initialise(step_one(), "mib", {"fraction": 0.1}, None, seed=0)
    with pytest.raises(CissError, match="fraction 0 of 16"):
        transfer.initialise(step_one(), "awt", {"fraction": 0}, attribution_of(), seed=0)


def test_network_must_be_widened():
    network = SegmentationNetwork(NetworkConfig("resnet18", width=4, head_channels=8), [3])
    with pytest.raises(CissError, match="widen it"):
        transfer.initialise(network, "random", {}, None, seed=0)
