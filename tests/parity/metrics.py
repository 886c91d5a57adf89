"""Confusion matrices, scores and summaries."""

from __future__ import annotations

import numpy as np
import torch

from ciss import metrics

from .case import Case, UnknownCaseError

INPUTS = {
    "labels": "input",
    "predictions": "input",
    "csv_iou": "IoU of each class after each step, input of the summaries",
    "total_samples": "a count of the images given; our confusion matrix counts pixels only",
}


def check(case: Case) -> None:
    """Check scores of predictions, or summaries of a table of IoU."""
    if "predictions" in case:
        _check_scores(case)
    elif "csv_iou" in case:
        _check_summaries(case)
    else:
        raise UnknownCaseError("neither predictions nor csv_iou")


def _check_scores(case: Case) -> None:
    labels, predictions = case.tensor("labels"), case.tensor("predictions")
    half = len(labels) // 2
    # Matrices of batches add up.
    matrix = sum(
        (
            metrics.confusion_matrix(labels[rows], predictions[rows], case.hyper["n_classes"])
            for rows in (slice(half), slice(half, None))
        ),
        torch.zeros((), dtype=torch.int64, device=case.device),
    )
    case.exact("confusion", matrix)
    case.close("overall_acc", metrics.pixel_accuracy(matrix) / 100)
    case.close("mean_acc", metrics.mean_accuracy(matrix) / 100)
    case.close("freqw_acc", metrics.frequency_weighted_iou(matrix) / 100)
    case.close("mean_iou", metrics.mean_iou(metrics.iou(matrix)) / 100)
    case.close("class_iou", metrics.iou(matrix) / 100)
    case.close("class_acc", metrics.class_accuracy(matrix) / 100)


def _check_summaries(case: Case) -> None:
    classes = case.hyper["classes_per_step"]
    base, n_classes = classes[0] - 1, case.hyper["num_classes"] - 1
    rows = []
    for row in case.array("csv_iou"):
        # -1 marks a class that is not learned yet, as NaN does one without ground truth
        iou = torch.from_numpy(np.where(row == -1, np.nan, 100 * row))
        rows.append(
            [
                metrics.grouped_miou(iou, base, n_classes).all,
                metrics.diluted_mean_iou(iou, range(base + 1)),
                metrics.diluted_mean_iou(iou, range(base + 1, n_classes + 1)),
            ]
        )
    summaries = np.array(rows)
    case.close("csv_mean", summaries[:, 0] / 100)
    if "printed" in case:
        # Two decimals are printed; which way a half is rounded is nobody's business.
        distance = np.abs(summaries - case.array("printed")).max(initial=0.0)
        case.record("printed", max(float(distance) - 0.005, 0.0), 1e-9)
