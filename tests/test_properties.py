"""What holds for any labels, splits, predictions and interruptions, against the plainest code.

Scenarios and the names of experiments are drawn in tests/test_scenarios.py and
tests/test_experiments.py.
"""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ciss.datasets import BACKGROUND, INVALID, VOID, Dataset, open_dataset
from ciss.index import COLUMNS
from ciss.labels import evaluation_lookup, training_lookup
from ciss.loading import EpochBatches, batches_per_epoch, micro_batches
from ciss.metrics import (
    class_accuracy,
    confusion_matrix,
    forgetting,
    frequency_weighted_iou,
    grouped_miou,
    iou,
    mean_accuracy,
    mean_iou,
    pixel_accuracy,
)
from ciss.scenarios import SETUPS, Scenario
from ciss.splits import select, split

few = settings(max_examples=50)

# --- Labels ----------------------------------------------------------------------------------


@st.composite
def own_datasets(draw: st.DrawFn) -> tuple[Dataset, dict[str, list[int]], list[int]]:
    """A data set of the user's own: classes chosen in some order, mask values of all, and void."""
    known = draw(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8, unique=True))
    raw = draw(st.permutations(range(256)))
    values, taken = {}, 0
    for name in [*known, "void"]:
        count = draw(st.integers(1, 3))
        values[name] = list(raw[taken : taken + count])
        taken += count
    void = values.pop("void")
    chosen = draw(st.permutations(known))[: draw(st.integers(1, len(known)))]
    dataset = open_dataset("own", "folders", Path(), chosen, values=values, void=void)
    return dataset, values, void


@few
@given(own_datasets(), st.data())
def test_a_pixel_s_label_is_that_of_its_class_if_the_step_knows_it(
    described: tuple[Dataset, dict[str, list[int]], list[int]], data: st.DataObject
) -> None:
    dataset, values, void = described
    meaning = {raw: name for name, several in values.items() for raw in several}
    for raw in range(256):
        if raw in void:
            expected = VOID
        elif meaning.get(raw) in dataset.classes:
            expected = dataset.classes.index(meaning[raw])
        elif raw in meaning or (raw == 0 and 0 not in meaning):
            expected = BACKGROUND  # left out, or the background itself
        else:
            expected = INVALID
        assert dataset.lookup[raw] == expected, raw

    labels = range(1, dataset.n_classes + 1)
    first = data.draw(st.integers(1, dataset.n_classes))
    new = range(first, data.draw(st.integers(first, dataset.n_classes)) + 1)
    for lookup, kept in (
        (training_lookup(dataset.lookup, new), new),
        (evaluation_lookup(dataset.lookup, labels[: new.stop - 1]), labels[: new.stop - 1]),
    ):
        assert (lookup.dtype, lookup.shape) == (np.uint8, (256,))
        for raw, label in enumerate(dataset.lookup.tolist()):
            assert lookup[raw] == (label if label == VOID or label in kept else BACKGROUND)


# --- Splits ----------------------------------------------------------------------------------


@st.composite
def scenes(draw: st.DrawFn) -> tuple[Dataset, Scenario, list[set[int]], pd.DataFrame]:
    """A scenario, which classes each image shows, and the index that says so in mask values."""
    base, increment, steps = (draw(st.integers(1, 3)) for _ in range(3))
    n_classes = base + increment * (steps - 1)
    scenario = Scenario(base, increment if steps > 1 else 0, n_classes)
    names = [f"c{number}" for number in range(n_classes)]
    raw = draw(st.permutations(range(1, n_classes + 1)))
    values = dict(zip(names, map(int, raw), strict=True))
    dataset = open_dataset("own", "folders", Path(), names, values=values)
    some = st.sets(st.integers(1, n_classes), max_size=4)
    # One of each class alone, as a step without images is an error.
    alone = [{label} for label in range(1, n_classes + 1)]
    train, val = ([*alone, *draw(st.lists(some, max_size=25))] for _ in range(2))
    rows = [
        (
            *(subset, f"{subset}{number}.jpg", f"{subset}{number}.png", 8, 8),
            " ".join(["0:3", *(f"{value}:1" for value in sorted(raw[c - 1] for c in shown))]),
        )
        for subset, images in (("train", train), ("val", val))
        for number, shown in enumerate(images)
    ]
    index = pd.DataFrame(rows, columns=list(COLUMNS))
    order = draw(st.permutations(range(len(rows))))
    return dataset, scenario, [*train, *val], index.iloc[list(order)].reset_index(drop=True)


@few
@given(scenes())
def test_every_image_is_in_the_right_steps(
    drawn: tuple[Dataset, Scenario, list[set[int]], pd.DataFrame],
) -> None:
    dataset, scenario, shown, index = drawn
    n_train = (index["subset"] == "train").sum()
    trained = {f"train{number}.jpg": classes for number, classes in enumerate(shown[:n_train])}
    tested = {f"val{number}.jpg": classes for number, classes in enumerate(shown[n_train:])}
    lists: dict[str, list[list[str]]] = {}
    for setup in SETUPS:
        chosen = Scenario(scenario.base, scenario.increment, scenario.n_classes, "", setup)
        rows = split(index, dataset, chosen, range(chosen.n_steps))
        lists[setup] = [select(rows, k, "train")["image"].tolist() for k in range(chosen.n_steps)]
        for step in range(chosen.n_steps):
            seen = set(chosen.seen_classes(step))
            test = select(rows, step, "test")["image"].tolist()
            assert sorted(test) == sorted(name for name, of in tested.items() if of & seen)
    for step in range(scenario.n_steps):
        new, seen = set(scenario.new_classes(step)), set(scenario.seen_classes(step))
        overlapped = {name for name, classes in trained.items() if classes & new}
        assert sorted(lists["overlapped"][step]) == sorted(overlapped)
        disjoint = {name for name in overlapped if trained[name] <= seen}
        if scenario.increment:
            assert sorted(lists["disjoint"][step]) == sorted(disjoint)
        assert set(lists["disjoint"][step]) <= overlapped
        assert set(lists["partitioned"][step]) <= overlapped
    given_away = [name for step in lists["partitioned"] for name in step]
    assert sorted(given_away) == sorted(name for name, classes in trained.items() if classes)


# --- Metrics ---------------------------------------------------------------------------------


@st.composite
def labelled(draw: st.DrawFn) -> tuple[int, np.ndarray, np.ndarray]:
    """Classes, truth with void, and prediction; some classes occur in neither."""
    n_classes = draw(st.integers(1, 7))
    pixels = draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    truth = rng.integers(0, draw(st.integers(1, n_classes)), pixels)
    truth[rng.random(pixels) < draw(st.sampled_from([0, 0.2, 1]))] = VOID
    return n_classes, truth, rng.integers(0, n_classes, pixels)


def same(ours: float, theirs: float) -> bool:
    return (math.isnan(ours) and math.isnan(theirs)) or math.isclose(ours, theirs, rel_tol=1e-12)


def mean(values: list[float]) -> float:
    existing = [value for value in values if not math.isnan(value)]
    return sum(existing) / len(existing) if existing else math.nan


@few
@given(labelled(), st.data())
def test_scores_are_those_of_sets_of_pixels(
    drawn: tuple[int, np.ndarray, np.ndarray], data: st.DataObject
) -> None:
    n_classes, truth, predicted = drawn
    counted = [number for number, label in enumerate(truth) if label != VOID]
    are = [{number for number in counted if truth[number] == c} for c in range(n_classes)]
    called = [{number for number in counted if predicted[number] == c} for c in range(n_classes)]
    matrix = confusion_matrix(torch.from_numpy(truth), torch.from_numpy(predicted), n_classes)
    assert matrix.tolist() == [[len(a & b) for b in called] for a in are]

    ious = [100 * len(a & b) / len(a | b) if a else math.nan for a, b in zip(are, called)]  # noqa: B905
    found = [100 * len(a & b) / len(a) if a else math.nan for a, b in zip(are, called)]  # noqa: B905
    right = sum(truth[number] == predicted[number] for number in counted)
    assert all(map(same, iou(matrix).tolist(), ious))
    assert all(map(same, class_accuracy(matrix).tolist(), found))
    assert same(mean_iou(iou(matrix)), mean(ious))
    assert same(mean_accuracy(matrix), mean(found))
    pixels = len(counted)
    assert same(pixel_accuracy(matrix), 100 * right / pixels if pixels else math.nan)
    weighted = sum(len(a) * score for a, score in zip(are, ious, strict=True) if a)
    assert same(frequency_weighted_iou(matrix), weighted / pixels if pixels else math.nan)

    assume(n_classes > 1)
    base = data.draw(st.integers(1, n_classes - 1))
    grouped = grouped_miou(iou(matrix), base, n_classes - 1)
    old, new = mean(ious[: base + 1]), mean(ious[base + 1 :])
    assert same(grouped.old, old)
    assert same(grouped.new, new)
    assert same(grouped.all, mean(ious))
    assert same(grouped.old_without_background, mean(ious[1 : base + 1]))
    assert same(grouped.all_without_background, mean(ious[1:]))
    assert same(grouped.harmonic, 0.0 if old + new == 0 else 2 * old * new / (old + new))


@few
@given(st.data())
def test_what_was_forgotten_is_the_best_before_less_the_last(data: st.DataObject) -> None:
    steps, n_classes = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 6))
    learned = [data.draw(st.integers(0, steps - 1)) for _ in range(n_classes)]
    score = st.integers(0, 100).map(float)
    history = [
        [data.draw(score) if step >= at else math.nan for at in learned] for step in range(steps)
    ]
    expected = [
        max((row[c] for row in history[:-1] if not math.isnan(row[c])), default=math.nan)
        - history[-1][c]
        for c in range(n_classes)
    ]
    found = forgetting(torch.tensor(history, dtype=torch.float64)).tolist()
    assert all(map(same, found, expected))


# --- The order of images ---------------------------------------------------------------------


@few
@given(st.data())
def test_wherever_a_training_was_interrupted_it_sees_the_same_images(data: st.DataObject) -> None:
    """Also when it goes on with another number of processes, or split into micro-batches."""
    accumulate = data.draw(st.integers(1, 3))
    batch = accumulate * data.draw(st.integers(2, 6))
    n_images = data.draw(st.integers(1, 40))
    seed, epochs = data.draw(st.integers(0, 99)), 2
    per_epoch = batches_per_epoch(n_images, batch)
    stop = data.draw(st.integers(0, epochs * per_epoch))
    fewest = min(micro_batches(n_images, batch, accumulate))
    before, after = (data.draw(st.integers(1, min(fewest, 4))) for _ in range(2))

    def seen(first: int, last: int, world_size: int, parts: int) -> list[list[tuple[int, int]]]:
        """Images of each batch from number ``first`` on, of all processes together, sorted."""
        batches = []
        for epoch in range(first // per_epoch, epochs):
            start = first % per_epoch if epoch == first // per_epoch else 0
            shares = [
                list(
                    EpochBatches(
                        *(n_images, batch, seed, epoch, start),
                        accumulate=parts,
                        rank=rank,
                        world_size=world_size,
                    )
                )
                for rank in range(world_size)
            ]
            batches += [sorted(chain.from_iterable(rows)) for rows in zip(*shares, strict=True)]
        return batches[: last - first]

    whole = seen(0, epochs * per_epoch, 1, 1)
    assert len(whole) == epochs * per_epoch
    assert seen(0, stop, before, accumulate) + seen(stop, len(whole), after, accumulate) == whole
    for epoch in range(epochs):
        positions = [
            position
            for images in whole[epoch * per_epoch : (epoch + 1) * per_epoch]
            for of_epoch, position in images
            if of_epoch == epoch
        ]
        if n_images > 1:  # a single image is taken twice, for batch norm
            assert len(set(positions)) == len(positions) == min(n_images, per_epoch * batch)
