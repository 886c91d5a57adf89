from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import golden_cases, load_case

from ciss.datasets import Dataset, open_dataset
from ciss.labels import evaluation_lookup, training_lookup
from ciss.scenarios import Scenario, parse_scenario


def opened(settings: dict) -> tuple[Dataset, Scenario]:
    name = settings["dataset"]
    order = settings["task"][-1] if settings["task"][-1].isalpha() else ""
    dataset = open_dataset(name, name, Path("/nowhere"), order=order)
    return dataset, parse_scenario(settings["task"], dataset.n_classes)


@pytest.mark.parametrize("case", golden_cases("8_labels"))
def test_labels_are_the_published_ones(case: dict) -> None:
    arrays = load_case(case)
    dataset, scenario = opened(case["hyperparameters"])
    for step in case["hyperparameters"]["steps"]:
        train = training_lookup(dataset.lookup, scenario.new_classes(step))
        test = evaluation_lookup(dataset.lookup, scenario.seen_classes(step))
        np.testing.assert_array_equal(train[arrays["raw"]], arrays[f"s{step}/train"])
        np.testing.assert_array_equal(test[arrays["raw"]], arrays[f"s{step}/test"])


def test_old_and_future_classes_are_background() -> None:
    dataset = open_dataset("voc", "voc", Path("/nowhere"))
    table = training_lookup(dataset.lookup, range(16, 18))
    assert table.dtype == np.uint8
    # 100 does not occur in a checked dataset; it must not turn into a class by wrapping around.
    assert table[[0, 15, 16, 17, 18, 100, 255]].tolist() == [0, 0, 16, 17, 0, 0, 255]


def test_evaluation_keeps_the_old_ones() -> None:
    dataset = open_dataset("voc", "voc", Path("/nowhere"))
    table = evaluation_lookup(dataset.lookup, range(1, 18))
    assert table[[0, 1, 15, 17, 18, 100, 255]].tolist() == [0, 1, 15, 17, 0, 0, 255]


def test_labels_are_positions_among_the_chosen_classes() -> None:
    dataset = open_dataset("pets", "voc", Path("/nowhere"), ["cat", "dog", "person", "horse"])
    table = training_lookup(dataset.lookup, range(4, 5))
    assert table[[8, 12, 13, 15, 1]].tolist() == [0, 0, 4, 0, 0]
