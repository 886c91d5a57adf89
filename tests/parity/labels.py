"""Label maps and image lists on synthetic label images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ciss.datasets import INVALID, VOID, Dataset, get_kind, open_dataset
from ciss.index import COLUMNS
from ciss.labels import evaluation_lookup, training_lookup
from ciss.scenarios import Scenario, parse_scenario
from ciss.splits import select, split

from .case import Array, Case, UnknownCaseError

INPUTS = {
    "raw": "label images, input",
}

#: classes of the datasets that the published tasks are about
N_CLASSES = {"voc": 20, "ade": 150, "cityscapes": 19}


def check(case: Case) -> None:
    """Check the labels of training and test, and which images both take."""
    hyper = case.hyper
    if "raw" not in case or hyper.get("dataset") not in N_CLASSES:
        raise UnknownCaseError("labels without raw, or of a dataset of no known kind")
    lists = {step: [c for c in hyper[f"step{step}_labels"] if c != 0] for step in hyper["steps"]}
    latest = max(hyper["steps"])
    order = [c for c in hyper[f"step{latest}_labels_old"] if c != 0] + lists[latest]
    dataset, scenario = opened(hyper["dataset"], hyper["task"], order)
    raw = case.array("raw")
    case.exact("raw_to_train_id", _raw_values(hyper["dataset"]))
    for step in hyper["steps"]:
        new, seen = scenario.new_classes(step), scenario.seen_classes(step)
        if order[new.start - 1 : new.stop - 1] != lists[step]:
            raise AssertionError(f"step {step} of {scenario.name} learns {list(new)}")
        train = training_lookup(dataset.lookup, new)[raw]
        test = evaluation_lookup(dataset.lookup, seen)[raw]
        case.exact(f"s{step}/train", train)
        case.exact(f"s{step}/test", test)
        # Options of the published code that are not offered here, from the same tables.
        case.exact(f"s{step}/train_current_old", test)
        case.exact(f"s{step}/train_new", np.where((train == 0) & (raw != 0), VOID, train))
        case.exact(f"s{step}/test_ignore_bg", np.where(test == 0, VOID, test))
    _check_lists(case, dataset, scenario)


def opened(kind: str, task: str, order: list[int]) -> tuple[Dataset, Scenario]:
    """Open a dataset for a published task whose class order begins with ``order``.

    The order that the project knows under the task's letter must be that one. Where it knows
    none, the case's own is taken, and classes that it does not list come last.
    """
    scenario = parse_scenario(task, N_CLASSES[kind])
    described = get_kind(kind)
    if scenario.order in ("", *described.ORDERS):
        dataset = open_dataset(kind, kind, Path("/nowhere"), order=scenario.order)
    else:
        assert described.CLASSES is not None
        rest = [c for c in range(1, scenario.n_classes + 1) if c not in order]
        names = [described.CLASSES[c] for c in [*order, *rest]]
        dataset = open_dataset(kind, kind, Path("/nowhere"), names)
    assert described.CLASSES is not None
    listed = [described.CLASSES[c] for c in order]
    if list(dataset.classes[1 : 1 + len(order)]) != listed:
        raise AssertionError(f"task {task} of {kind} has the classes {listed}")
    return dataset, scenario


def _raw_values(kind: str) -> Array:
    """Raw mask value → class in the dataset's own order; void for values that must not occur."""
    values = get_kind(kind).VALUES
    return np.where(values == INVALID, VOID, values).astype(np.uint8)


def make_index(subset: str, label_lists: list[list[int]]) -> pd.DataFrame:
    """Make an index of images that show the given raw values, named by their position."""
    rows = [
        (subset, str(number), str(number), 1, 1, " ".join(f"{value}:1" for value in values))
        for number, values in enumerate(label_lists)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def image_lists(
    index: pd.DataFrame, dataset: Dataset, scenario: Scenario, steps: Sequence[int]
) -> dict[tuple[int, str], Array]:
    """Positions of the images of each step's "train" and "test"; none is no error."""
    # ``split`` refuses a step without images: for each one that shows just its classes is added.
    new = [np.flatnonzero(np.isin(dataset.lookup, list(scenario.new_classes(s)))) for s in steps]
    shown = [values.tolist() for values in new]
    extra = [make_index(subset, shown).assign(image="-1") for subset in ("train", "val")]
    rows = split(pd.concat([index, *extra], ignore_index=True), dataset, scenario, steps)
    lists = {}
    for step in steps:
        for subset in ("train", "test"):
            numbers = select(rows, step, subset)["image"].astype(int).to_numpy()
            lists[step, subset] = numbers[numbers >= 0]
    return lists


def _check_lists(case: Case, dataset: Dataset, scenario: Scenario) -> None:
    # Values that must not occur would be refused by the index; to the published code they are
    # background, as 0 is.
    known = dataset.lookup != INVALID
    shown = [[v for v in np.unique(image) if known[v]] for image in case.array("raw")]
    index = pd.concat([make_index("train", shown), make_index("val", shown)], ignore_index=True)
    for setup, name in (("overlapped", "ov"), ("disjoint", "disjoint")):
        task = parse_scenario(case.hyper["task"], scenario.n_classes, setup)
        keys = {"train": f"idx_train_{name}", "test": "idx_test"}
        lists = image_lists(index, dataset, task, case.hyper["steps"])
        for (step, subset), positions in lists.items():
            padded = np.full(len(shown), -1)
            padded[: len(positions)] = positions
            case.exact(f"s{step}/{keys[subset]}", padded)
