"""Which images, classes and steps the figures of models show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ciss import examples
from ciss.datasets import open_dataset


def test_shares_are_of_the_whole_image_and_leave_void_out() -> None:
    dataset = open_dataset("own", "voc", Path("nowhere"), ["dog", "cat"], "")
    labels = ["0:50 12:20 255:30", "8:25 1:75"]
    index = pd.DataFrame({"width": [10, 20], "height": [10, 5], "labels": labels})
    # VOC's dog is 12 and its cat 8; class 1, an aeroplane, is left out here.
    expected = [[0.5, 0.2, 0.0], [0.75, 0.0, 0.25]]
    np.testing.assert_allclose(examples.class_shares(index, dataset), expected)


def test_images_of_old_and_new_classes_come_first_and_every_class_in_turn() -> None:
    #                  background, old 1, old 2, new 3, new 4
    shares = np.array(
        [
            [0.9, 0.1, 0.0, 0.0, 0.0],
            [0.5, 0.1, 0.0, 0.4, 0.0],  # both, the largest new class
            [0.5, 0.2, 0.0, 0.3, 0.0],
            [0.7, 0.0, 0.1, 0.0, 0.2],  # both, and classes not yet shown
            [0.1, 0.0, 0.9, 0.0, 0.0],
            [0.2, 0.0, 0.0, 0.0, 0.8],
        ]
    )
    assert examples.mixed(shares, range(1, 3), range(3, 5), 2) == [1, 3]
    assert sorted(examples.mixed(shares, range(1, 3), range(3, 5), 9)) == [*range(6)]
    alone = shares[[0, 4, 5]]
    assert examples.mixed(alone, range(1, 3), range(3, 5), 2) == [2, 1]


def test_offline_images_show_different_classes() -> None:
    shares = np.array([[0.5, 0.5, 0.0], [0.6, 0.4, 0.0], [0.9, 0.0, 0.1]])
    assert examples.mixed(shares, range(1, 3), range(0), 2) == [0, 2]


def test_a_typical_image_shows_its_class_neither_small_nor_alone() -> None:
    shares = np.array([[0.99, 0.01], [0.1, 0.9], [0.65, 0.35], [1.0, 0.0]])
    assert examples.typical(shares, 1) == 2


@pytest.mark.parametrize(
    ("n_steps", "expected"),
    [(1, [0]), (3, [0, 1, 2]), (4, [0, 1, 2, 3]), (6, [0, 2, 3, 5]), (16, [0, 5, 10, 15])],
)
def test_steps_shown_are_the_first_the_last_and_some_between(
    n_steps: int, expected: list[int]
) -> None:
    assert examples.shown_steps(n_steps) == expected


@pytest.mark.parametrize(
    ("classes_per_step", "expected"),
    [
        ((11, 5, 5), [(1, 11), (1, 12), (2, 16), (2, 17)]),
        ((4, 1, 1, 1), [(1, 4), (2, 5), (3, 6)]),
        ((16, 1, 1, 1, 1, 1), [(1, 16), (2, 17), (4, 19), (5, 20)]),
        ((101, 50), [(1, 101), (1, 102), (1, 103), (1, 104)]),
        ((21,), []),
    ],
)
def test_classes_shown(classes_per_step: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    assert examples.shown_classes(classes_per_step) == expected
