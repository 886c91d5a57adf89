"""Methods with initialisations, memory, fusion and freezing: planning refuses what cannot be.

And whatever it does not refuse trains, with all of these at once.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import pytest
import torch
from helpers import REPOSITORY
from torch import Tensor

from ciss import initialisations, methods, transfer
from ciss.attribution import attribute
from ciss.config import Config, checked, merged, read_config
from ciss.datasets.base import UNKNOWN
from ciss.errors import CissError
from ciss.experiments import Experiment, parse_experiment
from ciss.freezing import old_classifiers
from ciss.fusion import endpoint_share, fuse
from ciss.models import NetworkConfig, SegmentationNetwork, initialise, widened
from ciss.pretuning import learned, pretuning
from ciss.training import Recipe, Training

CONFIG: Config = {**read_config(REPOSITORY / "config.yaml"), "matrices": {}, "paper": []}
CPU = torch.device("cpu")
SMALL = NetworkConfig("resnet18", width=4, head_channels=8)
N_OLD, N_NEW = 4, 2
RECIPE = Recipe(epochs=1, lr=0.01, batch=4, crop=32)
#: settings of every method, by the word for them in the tables below
SETTINGS: dict[str, dict[str, Any]] = {
    "memory": {"memory": 2},
    "fuse": {"fuse": "ewf"},
    "freeze": {"freeze": "old_classifiers"},
}
#: what no experiment can be, and words of the sentence that says so
REFUSED: dict[tuple[str, str], str] = {
    ("ssul", "nest"): "learns classifiers of a softmax",
    ("dft", "fuse"): "leaves all of the model before as it is",
    ("dft", "freeze"): "leaves all of the model before as it is",
    ("cfs", "memory"): "trains on no image again",
    ("cfs", "fuse"): "trains nothing that this could change",
    ("cfs", "freeze"): "trains nothing that this could change",
    **{("cfs", init): "computes its classifiers" for init in initialisations.names()},
}


@cache
def with_variant(method: str, settings: tuple[str, ...]) -> Config:
    own: dict[str, Any] = {"method": method}
    for name in settings:
        own |= SETTINGS[name]
    return checked(merged(CONFIG, {"methods": {"mine": own}}))


def planned(method: str, init: str = "", settings: tuple[str, ...] = ()) -> Experiment:
    """Read an experiment with a variant of ``method`` that has the settings."""
    config = with_variant(method, settings)
    return parse_experiment(config, "_".join(["voc_15-1_mine", *([init] if init else [])]))


@pytest.mark.parametrize("method", methods.names())
def test_planning_refuses_what_cannot_be_in_one_sentence(method: str) -> None:
    for word in (*initialisations.names(), *SETTINGS):
        init, settings = ("", (word,)) if word in SETTINGS else (word, ())
        if (method, word) not in REFUSED:
            assert planned(method, init, settings).method.kind == method
            continue
        with pytest.raises(CissError) as raised:
            planned(method, init, settings)
        assert REFUSED[method, word] in str(raised.value)
        assert "\n" not in str(raised.value)


def test_what_tells_an_unknown_apart_has_a_label_left_for_it() -> None:
    def experiment(classes: int, run: str) -> Experiment:
        names = [f"c{number}" for number in range(classes)]
        own = {"kind": "folders", "root": "x", "classes": names}
        own |= {"files": {"images": "i", "masks": "m", "val_fraction": 0.5}}
        config = merged(CONFIG, {"datasets": {"many": own}})
        return parse_experiment(checked(config), f"many_100-1_{run}")

    assert experiment(UNKNOWN - 1, "ssul").scenario.n_classes == UNKNOWN - 1
    with pytest.raises(CissError, match=r"'many_100-1_ssul': with 254 classes no label is left"):
        experiment(UNKNOWN, "ssul")
    assert experiment(UNKNOWN, "mib").scenario.n_classes == UNKNOWN


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(N_OLD, N_OLD + N_NEW, (4, 32, 32), generator=generator)
    labels[:, :6], labels[:, 6:8] = 0, 255
    return torch.randn(4, 3, 32, 32, generator=generator), labels


def teacher_of(method: str) -> SegmentationNetwork:
    described, extras = methods.describe(method), methods.create(method, {}, 0, 2).network_extras
    preallocated = N_NEW + 1 if described.base_objective == methods.PREALLOCATED else 0
    made = SegmentationNetwork(SMALL, [N_OLD], preallocated=preallocated, **extras)
    initialise(made, seed=1)
    return made.eval()


def started(teacher: SegmentationNetwork, init: str) -> SegmentationNetwork:
    """The widened network of the step, as `attribute` or `pretune`, and `transfer` leave it."""
    described = initialisations.describe(init)
    wider = widened(teacher, N_NEW, 2)
    given = made = None
    if described.needs_attribution:
        given = attribute(teacher, [batch()], range(N_OLD, N_OLD + N_NEW))
    if described.needs_pretuning:
        training = pretuning(widened(teacher, N_NEW, 2), init, {}, RECIPE, 1, CPU)
        training.method.prepare(None, [batch()])
        training.update(*batch())
        made = learned(training)
    transfer.initialise(wider, init, {}, given, 0, made)
    return wider


RUNS = [
    pair
    for pair in itertools.product(methods.trained_names(), initialisations.names())
    if pair not in REFUSED
]


@pytest.mark.parametrize(("name", "init"), RUNS)
def test_what_is_not_refused_trains_with_all_that_it_may_have(name: str, init: str) -> None:
    settings = tuple(word for word in SETTINGS if (name, word) not in REFUSED)
    chosen = planned(name, init, settings).method
    teacher = teacher_of(name)
    student = started(teacher, init)
    method = methods.create(name, {}, N_OLD, N_NEW)
    method.has_exemplars = True
    method.exemplar_confidence = chosen.memory_confidence
    if chosen.kind in ("ewc", "rw", "pi"):
        recorded = methods.create_base("ce-importance", N_OLD)
        Training(teacher_of(name), None, recorded, RECIPE, 1, CPU)
        importances = recorded.importances(teacher)
        method.load_importances(importances, dict(teacher.named_parameters()))
    frozen = old_classifiers(student.classes_per_step) if "freeze" in settings else []
    training = Training(student, teacher, method, RECIPE, 2, CPU, frozen)
    method.prepare(teacher, [batch()])
    before = {key: value.clone() for key, value in student.state_dict().items()}
    exemplars = torch.tensor([False, True, False, True])
    terms, _ = training.update(*batch(), exemplars=exemplars)
    assert all(value.isfinite() for value in terms.values())
    after = student.state_dict()
    newest = f"cls.{len(student.classifiers) - 1}.weight"
    assert not after[newest].equal(before[newest])
    if "freeze" in settings:
        assert after["cls.0.weight"].equal(before["cls.0.weight"])
    if "fuse" in settings:
        share = endpoint_share(N_NEW, N_OLD)
        fused = fuse("ewf", teacher, student).state_dict()
        assert fused[newest].equal(after[newest])
        for key, old in teacher.state_dict().items():
            if old.is_floating_point():
                expected = (1 - share) * old + share * after[key]
                torch.testing.assert_close(fused[key], expected, msg=key)
