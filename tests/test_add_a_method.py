"""The code blocks of the pages that say how to add something, run as they stand there."""

from __future__ import annotations

import copy
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import REPOSITORY
from PIL import Image

from ciss import datasets, experiments, initialisations, methods, transfer
from ciss.config import read_config
from ciss.models import NetworkConfig, SegmentationNetwork, initialise, widened
from ciss.pretuning import learned, pretuning
from ciss.training import Recipe, Training

SMALL = NetworkConfig("resnet18", width=4, head_channels=8)
N_BASE, N_NEW = 3, 2


def code_of(page: str, number: int = 0) -> tuple[str, str, str]:
    """Package, module and code of a file that a page tells its reader to write."""
    text = (REPOSITORY / "docs" / page).read_text(encoding="utf-8")
    found = re.findall(r"`ciss/(\w+)/(\w+)\.py`:\n\n```python\n(.*?)```", text, re.DOTALL)
    package, module, code = found[number]
    return package, module, code


@pytest.fixture
def added(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Put a page's file in a folder that the package looks into; yield the module's name."""
    page = request.param if isinstance(request.param, tuple) else (request.param,)
    name, module, code = code_of(*page)
    package = importlib.import_module(f"ciss.{name}")
    (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
    caches = [
        getattr(package, function)
        for function in ("names", "describe", "kinds")
        if hasattr(getattr(package, function, None), "cache_clear")
    ]

    def forget() -> None:
        for cached in caches:
            cached.cache_clear()
        sys.modules.pop(f"ciss.{name}.{module}", None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
        forget()
        yield module
    forget()


def networks() -> tuple[SegmentationNetwork, SegmentationNetwork]:
    """A teacher of three classes and background, and a student widened by two."""
    teacher = SegmentationNetwork(SMALL, [1 + N_BASE])
    initialise(teacher, 0)
    return widened(teacher, N_NEW, 1), teacher


@pytest.mark.parametrize("added", ["add-a-method.md"], indirect=True)
def test_the_method_on_the_page_is_an_experiment_and_trains(added: str) -> None:
    assert added in methods.names()
    config = read_config(REPOSITORY / "config.yaml")
    default = experiments.parse_experiment(config, f"shapes_10-5_{added}")
    assert (default.run, default.init.name, default.objective) == (added, "mib", "ce")
    assert default.method.options == {"weight": 10.0}
    assert experiments.parse_experiment(config, f"voc_15-1_{added}_awt").needs_attribution

    student, teacher = networks()
    method = methods.create(added, {"weight": 2.0}, 1 + N_BASE, N_NEW)
    recipe = Recipe(epochs=1, lr=0.1, batch=2, crop=32)
    training = Training(student, teacher, method, recipe, 2, torch.device("cpu"))
    before = {name: value.clone() for name, value in student.named_parameters()}
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.full((2, 32, 32), 0)
    labels[:, :16], labels[:, 16:20] = 1 + N_BASE, 255
    terms, _ = training.update(images, labels)
    assert set(terms) == {"classification", "direction"}
    # Batch statistics set student and teacher apart even at equal weights.
    assert 0 < terms["direction"] <= 2 * 2.0
    moved = [name for name, value in student.named_parameters() if not value.equal(before[name])]
    assert "cls.1.weight" in moved
    assert "body.mod1.conv1.weight" in moved


def test_the_method_on_the_page_is_short() -> None:
    assert len(code_of("add-a-method.md")[2].splitlines()) < 60


@pytest.mark.parametrize("added", ["add-an-initialisation.md"], indirect=True)
def test_the_initialisation_on_the_page_sets_the_new_classifier(added: str) -> None:
    assert added in initialisations.names()
    student, _ = networks()
    fresh = student.classifiers[1].weight.detach().clone()
    background = student.classifiers[0].weight[:1].detach().clone()
    bias = student.classifiers[1].bias
    assert bias is not None
    fresh_bias = bias.detach().clone()
    transfer.initialise(student, added, {"share": 0.25}, None, seed=0)
    torch.testing.assert_close(student.classifiers[1].weight, 0.75 * fresh + 0.25 * background)
    assert bias.equal(fresh_bias)


@pytest.mark.parametrize("added", [("add-an-initialisation.md", 1)], indirect=True)
def test_the_learned_initialisation_on_the_page_is_learned(added: str) -> None:
    assert initialisations.describe(added).needs_pretuning
    student, _ = networks()
    fresh = student.classifiers[1].weight.detach().clone()
    recipe = Recipe(epochs=1, lr=0.1, batch=2, crop=32)
    training = pretuning(copy.deepcopy(student), added, {}, recipe, 20, torch.device("cpu"))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.full((2, 32, 32), 0)
    labels[:, :16] = 1 + N_BASE
    found = [training.update(images, labels)[0]["classification"].item() for _ in range(10)]
    assert found[-1] < found[0]
    transfer.initialise(student, added, {}, None, 0, learned(training))
    assert not student.classifiers[1].weight.equal(fresh)


@pytest.mark.parametrize("added", ["add-a-dataset.md"], indirect=True)
def test_the_kind_on_the_page_lists_and_maps_a_folder(added: str, tmp_path: Path) -> None:
    for subset in ("train", "val"):
        for folder, ending in (("images", "jpg"), ("masks", "png")):
            (tmp_path / "root" / subset / folder).mkdir(parents=True)
            blank = Image.fromarray(np.zeros((4, 4), dtype=np.uint8))
            blank.save(tmp_path / "root" / subset / folder / f"a.{ending}")
    classes = ["wheat", "maize", "road", "water"]
    dataset = datasets.open_dataset("fields", added, tmp_path / "root", classes)
    assert dataset.classes == ("background", *classes)
    assert dataset.lookup[[0, 1, 4, 5, 255]].tolist() == [0, 1, 4, datasets.INVALID, datasets.VOID]
    assert datasets.list_images(dataset) == {
        subset: [(f"{subset}/images/a.jpg", f"{subset}/masks/a.png")] for subset in ("train", "val")
    }
