"""EWF against its formula, what it refuses, and which trainings a run with fusion shares."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from helpers import REPOSITORY

from ciss import methods, paths, published
from ciss.config import checked, merged, method_variants
from ciss.errors import CissError
from ciss.experiments import Experiment, parse_experiment
from ciss.fusion import endpoint_share, fuse
from ciss.models import NetworkConfig, SegmentationNetwork, initialise, widened
from ciss.training import Recipe, Training

SMALL = NetworkConfig("resnet18", width=4, head_channels=8)
CPU = torch.device("cpu")
DEFAULTS: dict[str, Any] = yaml.safe_load((REPOSITORY / "config.yaml").read_text())


def endpoints() -> tuple[SegmentationNetwork, SegmentationNetwork]:
    """The models before and after a step of two classes more, with other values everywhere."""
    old = SegmentationNetwork(SMALL, [4, 3])
    initialise(old, seed=1)
    new = widened(old, 2, seed=2)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in new.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.rand(value.shape, generator=generator))
            else:
                value.add_(7)
    return old.eval(), new.eval()


def test_every_tensor_of_the_old_model_is_fused_and_the_new_classifier_is_not() -> None:
    old, new = endpoints()
    before = copy.deepcopy(new.state_dict())
    made = fuse("ewf", old, new.train())
    assert not made.training
    fused = made.state_dict()
    share = math.sqrt(2 / (2 + 7))
    assert fused.keys() == before.keys()
    for name, value in fused.items():
        if name.startswith("cls.2"):
            assert torch.equal(value, before[name]), name
        elif value.is_floating_point():
            expected = (1 - share) * old.state_dict()[name].double() + share * before[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7, msg=name)
            assert not torch.equal(value, before[name])
        else:
            assert torch.equal(value, before[name]), name
    names = [name for name in fused if "running_var" in name]
    assert names, "batch norm's statistics are among them"
    assert all(value.equal(before[name]) for name, value in new.state_dict().items())


def test_classifiers_of_classes_to_come_stay_as_trained() -> None:
    old = SegmentationNetwork(SMALL, [4], preallocated=3)
    initialise(old, seed=1)
    for left in (1, 0):
        new = widened(old, 3 - left, seed=0)
        with torch.no_grad():
            for parameter in new.parameters():
                parameter.add_(1.0)
        fused = fuse("ewf", old, new)
        assert fused.shape == new.shape
        if new.future is not None and fused.future is not None:
            assert torch.equal(fused.future.weight, new.future.weight)
        assert torch.equal(fused.cls[1].weight, new.cls[1].weight)
        assert not torch.equal(fused.cls[0].weight, new.cls[0].weight)


@pytest.mark.parametrize(
    ("n_new", "n_old", "share"),
    # VOC 15-1: classes 16 and 20; 19-1, 15-5; the background counts as old.
    [(1, 16, 0.2425), (1, 20, 0.2182), (5, 16, 0.4880), (50, 101, 0.5754)],
)
def test_the_share_of_the_new_model(n_new: int, n_old: int, share: float) -> None:
    assert endpoint_share(n_new, n_old) == pytest.approx(share, abs=5e-5)


def test_models_that_do_not_follow_each_other_and_unknown_fusions_are_refused() -> None:
    old, new = endpoints()
    wider = SegmentationNetwork(NetworkConfig("resnet18", width=4, head_channels=9), [4, 3])
    for one, other in (
        (new, old),
        (old, old),
        (SegmentationNetwork(SMALL, [5]), new),
        (wider, new),
    ):
        with pytest.raises(CissError, match="does not follow one of"):
            fuse("ewf", one, other)
    with pytest.raises(CissError, match="fusion 'none' is unknown; there are: ewf"):
        fuse("none", old, new)


def test_frozen_old_classifiers_stay_and_all_else_trains() -> None:
    teacher = endpoints()[0]
    student = widened(teacher, 2, seed=3)
    method = methods.create("mib", {}, 7, 2)
    frozen = ["cls.0", "cls.1"]
    recipe = Recipe(epochs=1, lr=0.1, batch=2, crop=32)
    training = Training(student, teacher, method, recipe, 4, CPU, frozen)
    before = copy.deepcopy(student.state_dict())
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(7, 9, (2, 32, 32), generator=generator)
    training.update(torch.randn(2, 3, 32, 32, generator=generator), labels)
    stayed = {n for n, value in student.state_dict().items() if torch.equal(value, before[n])}
    assert {n for n in stayed if "num_batches" not in n} == {
        f"cls.{step}.{kind}" for step in (0, 1) for kind in ("weight", "bias")
    }


# --- Which training a model comes from ----------------------------------------------------------


def experiment(name: str, **change: Any) -> Experiment:
    return parse_experiment(checked(merged(DEFAULTS, change)), name)


def trained(name: str, step: int, **change: Any) -> str:
    path = paths.trained_model(experiment(name, **change), 1, step)
    return path.removeprefix("voc/15-1/")


@pytest.mark.parametrize("init", ["", "_awt", "_nest"])
def test_step_1_trains_once_for_a_method_with_and_without_fusion(init: str) -> None:
    run = f"mib-ewf{init}"
    assert trained(f"voc_15-1_{run}", 1) == f"mib{init}/seed1/step1/model.safetensors"
    assert trained(f"voc_15-1_{run}", 2) == f"{run}/seed1/step2/trained.safetensors"
    assert trained(f"voc_15-1_mib{init}", 2) == f"mib{init}/seed1/step2/model.safetensors"
    assert trained(f"voc_15-1_{run}", 0) == "voc/15/ce/seed1/step0/model.safetensors"
    chosen = experiment(f"voc_15-1_{run}")
    model, history = (
        paths.artifact(pattern, chosen, 1, 1).removeprefix("voc/15-1/")
        for pattern in (paths.MODEL, paths.HISTORY)
    )
    assert model == f"{run}/seed1/step1/model.safetensors"
    assert history == f"mib{init}/seed1/step1/history.csv"


@pytest.mark.parametrize(
    ("own", "run"),
    [
        # What mib itself says holds for its variant too.
        ({"mib": {"distillation": 50}}, "mib"),
        ({"mib-ewf": {"distillation": 10}}, "mib"),
        ({"mib-ewf": {"distillation": 50}}, "mib-ewf"),
        ({"mib-ewf": {"freeze": "old_classifiers"}}, "mib-ewf"),
        ({"mib": {"freeze": "old_classifiers"}}, "mib"),
    ],
)
def test_it_is_shared_where_both_train_alike(own: dict[str, Any], run: str) -> None:
    assert trained("voc_15-1_mib-ewf", 1, methods=own).startswith(f"{run}/")
    name = "model" if run == "mib" else "trained"
    assert Path(trained("voc_15-1_mib-ewf", 1, methods=own)).stem == name


def test_the_frozen_variants_train_their_own_step_1() -> None:
    chosen = experiment("voc_15-1_mib-ewf-frozen")
    assert (chosen.method.fuse, chosen.method.freeze) == ("ewf", "old_classifiers")
    assert chosen.trained_run_at(1) == "mib-ewf-frozen"


@pytest.mark.parametrize(
    ("own", "words"),
    [
        ({"mib": {"fuse": "ewf"}}, r"methods\.mib\.fuse is 'ewf', which is for a variant"),
        ({"a": {"method": "mib", "fuse": "efw"}}, "methods.a.fuse: .*'efw'.*did you mean 'ewf'"),
        ({"a": {"method": "mib", "freeze": "all"}}, "methods.a.freeze: value 'all' is unknown"),
        ({"a": {"method": "mib", "fuse": 1}}, "methods.a.fuse: value '1' is unknown"),
        ({"a": {"method": "cfs", "fuse": "ewf"}}, "is 'ewf', but cfs trains nothing that this"),
        ({"a": {"method": "dft", "fuse": "ewf"}}, "is 'ewf', but dft leaves all of the model"),
        ({"dft": {"freeze": "old_classifiers"}}, "methods.dft.freeze is .*dft leaves all of"),
    ],
)
def test_a_wrong_setting_is_one_sentence(own: dict[str, Any], words: str) -> None:
    with pytest.raises(CissError, match=words):
        checked(merged(DEFAULTS, {"methods": own}))


def test_a_variant_fuses_everywhere_or_nowhere() -> None:
    config = checked(DEFAULTS)
    fusing = {name for name, variant in method_variants(config).items() if variant.fuses}
    assert {"mib-ewf", "plop-ewf", "mib-ewf-frozen"} <= fusing
    own = {"datasets": {"voc": {"methods": {"mib-ewf": {"fuse": "none"}}}}}
    with pytest.raises(CissError, match=r"methods\.mib-ewf is 'none', but 'ewf' in methods"):
        checked(merged(DEFAULTS, own))


def test_published_numbers_of_ewf_are_of_frozen_classifiers() -> None:
    config = checked(DEFAULTS)

    def match(name: str) -> published.Match:
        return published.match(config, parse_experiment(config, name))

    assert match("voc_15-1_mib-ewf-frozen") == published.Match("voc/15-1/mib-ewf", ())
    key, departures, *_ = match("voc_15-1_mib-ewf")
    assert key == "voc/15-1/mib-ewf"
    assert departures == ("methods.mib-ewf.freeze is none (published: old_classifiers)",)
    assert published.numbers(key, background=True)["all"].value == 65.5
    assert not match("voc_15-1_mib-ewf_nest").key
    for name in ("voc_15-1_mib_nest", "ade_100-10_plop_nest"):
        assert match(name).key
        assert not match(name).departures, name
