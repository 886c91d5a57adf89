from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from helpers import golden_cases, load_case, relative_difference

from ciss import metrics
from ciss.errors import CissError

COUNTS = [case for case in golden_cases("6_metrics") if "/csv_" not in str(case.id)]
SUMMARIES = [case for case in golden_cases("6_metrics") if "/n" not in str(case.id)]


@pytest.mark.parametrize("case", COUNTS)
def test_scores_agree_with_the_published_ones(case):
    golden = load_case(case)
    n = case["hyperparameters"]["n_classes"]
    matrix = metrics.confusion_matrix(
        torch.from_numpy(golden["labels"]), torch.from_numpy(golden["predictions"]), n
    )
    assert matrix.dtype == torch.int64
    np.testing.assert_array_equal(matrix.numpy(), golden["confusion"])
    for ours, name in (
        (metrics.iou(matrix), "class_iou"),
        (metrics.class_accuracy(matrix), "class_acc"),
    ):
        np.testing.assert_array_equal(np.isnan(ours.numpy()), np.isnan(golden[name]))
        assert (
            relative_difference(np.nan_to_num(ours.numpy()) / 100, np.nan_to_num(golden[name]))
            < 1e-8
        )
    for ours, name in (
        (metrics.pixel_accuracy(matrix), "overall_acc"),
        (metrics.mean_accuracy(matrix), "mean_acc"),
        (metrics.frequency_weighted_iou(matrix), "freqw_acc"),
        (metrics.mean_iou(metrics.iou(matrix)), "mean_iou"),
    ):
        assert relative_difference(np.array(ours / 100), golden[name]) < 1e-8


@pytest.mark.parametrize("case", SUMMARIES)
def test_summaries_agree_with_the_published_ones(case):
    golden = load_case(case)
    n_classes = case["hyperparameters"]["num_classes"] - 1
    base = case["hyperparameters"]["classes_per_step"][0] - 1
    new = range(base + 1, n_classes + 1)
    for step, row in enumerate(golden["csv_iou"]):
        iou = torch.from_numpy(np.where(row == -1, np.nan, row) * 100)
        groups = metrics.grouped_miou(iou, base, n_classes)
        assert groups.all == pytest.approx(100 * golden["csv_mean"][step], rel=1e-12)
        published = [
            groups.all,
            metrics.diluted_mean_iou(iou, range(base + 1)),
            metrics.diluted_mean_iou(iou, new),
        ]
        np.testing.assert_allclose(np.round(published, 2), golden["printed"][step], atol=1e-9)
    if not case["hyperparameters"]["absent_in_ground_truth"]:
        assert round(groups.old, 2) == golden["printed"][-1, 1]
        assert round(groups.new, 2) == golden["printed"][-1, 2]


def test_confusion_matrix_ignores_void_and_unknown_truth():
    truth = torch.tensor([[0, 1, 255, 2, 3]], dtype=torch.uint8)
    prediction = torch.tensor([[0, 0, 1, 2, 2]])
    assert metrics.confusion_matrix(truth, prediction, 3).tolist() == [
        [1, 0, 0],
        [1, 0, 0],
        [0, 0, 1],
    ]


def test_confusion_matrix_does_not_overflow_small_integers():
    labels = torch.full((300,), 200, dtype=torch.uint8)
    assert metrics.confusion_matrix(labels, labels, 201)[200, 200] == 300


def test_confusion_matrix_of_nothing():
    nothing = torch.empty(0, dtype=torch.uint8)
    assert metrics.confusion_matrix(nothing, nothing, 2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("wrong", [-1, 3])
def test_confusion_matrix_refuses_a_prediction_that_is_no_class(wrong):
    with pytest.raises(ValueError, match="for 3 classes"):
        metrics.confusion_matrix(torch.tensor([0, 1]), torch.tensor([0, wrong]), 3)


def test_confusion_matrix_refuses_other_shapes_and_the_void_as_a_class():
    with pytest.raises(ValueError, match="truth is"):
        metrics.confusion_matrix(torch.zeros(2).long(), torch.zeros(1).long(), 3)
    with pytest.raises(ValueError, match="void"):
        metrics.confusion_matrix(torch.zeros(1).long(), torch.zeros(1).long(), 256)


def test_absent_class_is_left_out_even_when_predicted():
    matrix = torch.tensor([[8, 2, 0], [0, 0, 0], [0, 0, 5]])
    iou = metrics.iou(matrix)
    assert iou[0] == 80
    assert iou[2] == 100
    assert math.isnan(iou[1])
    assert metrics.mean_iou(iou) == 90
    assert math.isnan(metrics.mean_iou(iou, [1]))
    assert math.isnan(metrics.mean_iou(iou, []))
    assert metrics.mean_accuracy(matrix) == 90
    assert math.isnan(metrics.pixel_accuracy(torch.zeros(2, 2).long()))


def test_groups_with_and_without_background():
    # Also where classes that come later have a row.
    groups = metrics.grouped_miou(torch.tensor([90.0, 60.0, 30.0, 20.0, 5.0]), 1, 3)
    assert groups.old == 75
    assert groups.new == 25
    assert groups.all == 50
    assert groups.old_without_background == 60
    assert groups.all_without_background == pytest.approx(110 / 3)
    assert groups.harmonic == pytest.approx(2 * 75 * 25 / 100)


def test_first_step_has_no_new_classes():
    groups = metrics.grouped_miou(torch.tensor([90.0, 60.0]), 1, 1)
    assert groups.old == groups.all == 75
    assert math.isnan(groups.new)
    assert math.isnan(groups.harmonic)


def test_harmonic_mean_of_nothing_learned_is_zero():
    assert metrics.harmonic_mean(0.0, 0.0) == 0
    assert metrics.harmonic_mean(60.0, 0.0) == 0


def test_forgetting_counts_from_the_best_earlier_step():
    nan = math.nan
    history = torch.tensor([[50.0, nan, nan], [70.0, 10.0, nan], [40.0, 30.0, 20.0]])
    lost = metrics.forgetting(history)
    assert lost[:2].tolist() == [30, -20]
    assert math.isnan(lost[2])
    assert torch.isnan(metrics.forgetting(history[:1])).all()


def test_mean_over_steps_needs_every_step():
    assert metrics.mean_over_steps([80.0, 40.0, 30.0]) == 50
    assert math.isnan(metrics.mean_over_steps([80.0, math.nan]))
    assert math.isnan(metrics.mean_over_steps([]))


NAMES = ["background", 'screen, "silver"', "träffic # light"]


def test_confusion_file_keeps_every_integer(tmp_path):
    matrix = torch.tensor([[2**60 + 1, 0, 3], [1, 2, 3], [0, 0, 7]])
    metadata = {"dataset": "voc", "step": 1, "images": 1449, "model": "ab12", "note": "ä\nb"}
    path = tmp_path / "confusion.csv"
    metrics.write_confusion(path, matrix, NAMES, metadata)
    read = metrics.read_confusion(path)
    assert torch.equal(read.matrix, matrix)
    assert read.matrix.dtype == torch.int64
    assert list(read.class_names) == NAMES
    assert read.metadata == metadata
    first, header = path.read_text().splitlines()[:2]
    assert json.loads(first.removeprefix("# "))["images"] == 1449
    assert header.startswith("truth,background,")


def test_confusion_file_refuses_a_matrix_of_other_classes(tmp_path):
    with pytest.raises(ValueError, match="expected integers for 3"):
        metrics.write_confusion(tmp_path / "a.csv", torch.zeros(2, 2).long(), NAMES, {})
    with pytest.raises(ValueError, match="float32"):
        metrics.write_confusion(tmp_path / "a.csv", torch.zeros(3, 3), NAMES, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.partition("\n")[2],
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("7", "7.5"),
        lambda text: text.replace("7", "-7"),
        lambda text: "",
        lambda text: text.replace("# {", "# "),
        lambda text: text.replace("truth,background", "truth,sky"),
    ],
)
def test_spoiled_confusion_file_is_an_error(tmp_path, spoil):
    path = tmp_path / "confusion.csv"
    metrics.write_confusion(path, torch.full((3, 3), 7), NAMES, {"a": 1})
    path.write_text(spoil(path.read_text()))
    with pytest.raises(CissError, match="is not a confusion matrix"):
        metrics.read_confusion(path)


def test_missing_confusion_file_is_an_error(tmp_path):
    with pytest.raises(CissError, match="does not exist"):
        metrics.read_confusion(tmp_path / "none.csv")
