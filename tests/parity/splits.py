"""Which images of a real data set each step takes."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from ciss.datasets import VOID
from ciss.scenarios import parse_scenario
from ciss.splits import presence

from .case import Array, Case, UnknownCaseError
from .labels import N_CLASSES, image_lists, make_index, opened

_MASKS = "counted on the data set's masks, which are not part of the cases"
INPUTS = {
    "present": "input of an index, from which it has to come out again",
    "ids": "names of the images; the lists hold row numbers",
    "is_train_aug": "subset of each image, input of the lists",
    "has_ignore": "whether an image shows void, input of the lists",
    "pixels_per_class_(train|val)": _MASKS,
    "image_size": _MASKS,
}


def check(case: Case) -> None:
    """Check a task's lists, or the table of class presence that they are made from."""
    if "present" in case:
        present = np.concatenate([_present(part) for part in _indices(case)])
        order = np.argsort(~case.array("is_train_aug"), kind="stable")
        case.exact("present", present[np.argsort(order)])
    elif "s0/train_ov" in case:
        _check_lists(case)
    else:
        raise UnknownCaseError("neither image lists (s0/train_ov) nor class presence")


def _indices(case: Case) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Indices of the train and the val images of a table of presence."""
    cached = ("indices", case.entry["file"])
    if cached not in case.cases.cache:
        shown = [
            [*np.flatnonzero(row), *[VOID] * bool(void)]
            for row, void in zip(case.array("present"), case.array("has_ignore"), strict=True)
        ]
        is_train = case.array("is_train_aug")
        parts = tuple(
            make_index(subset, [s for s, chosen in zip(shown, mask, strict=True) if chosen])
            for subset, mask in (("train", is_train), ("val", ~is_train))
        )
        case.cases.cache[cached] = parts
    train, val = case.cases.cache[cached]
    return train, val


def _present(index: pd.DataFrame) -> Array:
    dataset, _ = opened("voc", "offline", [])
    return presence(index, dataset)


def _check_lists(case: Case) -> None:
    task = case.hyper["task"]
    indices = _indices(case.cases.beside(case, array="present"))
    index = pd.concat(indices, ignore_index=True)
    dataset, scenario = opened("voc", task, _class_order(case))
    shown = presence(indices[1], dataset)
    for setup, key in (("overlapped", "ov"), ("disjoint", "disjoint")):
        steps = range(case.hyper["steps"])
        lists = image_lists(index, dataset, parse_scenario(task, N_CLASSES["voc"], setup), steps)
        for step in steps:
            train, test = lists[step, "train"], lists[step, "test"]
            case.exact(f"s{step}/train_{key}", train)
            case.exact(f"s{step}/test", test)
            # Images of the published validation after every epoch, which is not done here.
            new = shown[:, list(scenario.new_classes(step))].any(axis=1)
            case.exact(f"s{step}/val", np.flatnonzero(new))
            for name, numbers in ((key, train), ("test", test)):
                if case.hyper["counts"].get(f"s{step}_{name}", len(numbers)) != len(numbers):
                    raise AssertionError(f"step {step} has {len(numbers)} {name} images")


def _class_order(case: Case) -> list[int]:
    """The classes of all steps, from what the manifest says of the lists."""
    steps = {}
    for part in case.entry["arrays"]:
        if match := re.fullmatch(r"step (\d+), classes \[([\d, ]+)\]", part["meaning"]):
            steps[int(match[1])] = [int(number) for number in match[2].split(",")]
    return [number for step in sorted(steps) for number in steps[step] if number]
