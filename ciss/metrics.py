"""Confusion matrices, what is computed from them, and their files.

All scores are in percent. A class without a ground-truth pixel has the score NaN and is left out
of every mean, even where it was predicted (its false positives still lower other classes' IoU).
The published implementation adds 1e-6 to each denominator; here the quotients are exact, and the
two agree to 1e-6 / (pixels of the class), relatively.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ciss.datasets.base import VOID
from ciss.errors import CissError
from ciss.files import write_text

_CORNER = "truth"


def confusion_matrix(
    truth: Tensor, prediction: Tensor, n_classes: int, *, checked: bool = True
) -> Tensor:
    """Count pixels by ground truth (rows) and prediction (columns): [n, n] int64, exact.

    ``truth`` and ``prediction``: integer tensors of one shape on one device, where the result
    stays. Pixels whose truth is void (255) or otherwise at least ``n_classes`` are not counted.
    Raises ``ValueError`` when the shapes differ, a prediction is no class, or there are more
    than 255 classes. Without ``checked``, predictions are trusted and a GPU is not waited for.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth is {tuple(truth.shape)}, prediction {tuple(prediction.shape)}")
    if n_classes > VOID:
        raise ValueError(f"{VOID} is void: at most {VOID} classes, not {n_classes}")
    if not prediction.numel():
        return torch.zeros(n_classes, n_classes, dtype=torch.int64, device=truth.device)
    if checked:
        lowest, highest = prediction.aminmax()
        if lowest < 0 or highest >= n_classes:
            raise ValueError(f"predictions {int(lowest)}..{int(highest)} for {n_classes} classes")
    # One bin more, for the pixels that are not counted: selecting the others takes longer.
    cells = n_classes**2
    cell = torch.where(truth < n_classes, truth.long() * n_classes + prediction, cells)
    cell = cell.reshape(-1)
    if cell.device.type == "cpu":
        counts = torch.bincount(cell, minlength=cells + 1)
    else:  # bincount would wait for the GPU
        counts = torch.zeros(cells + 1, dtype=torch.int64, device=cell.device)
        counts.scatter_add_(0, cell, torch.ones_like(cell))
    return counts[:cells].reshape(n_classes, n_classes)


def iou(confusion: Tensor) -> Tensor:
    """Intersection over union of each class: [n] float64 on the CPU, NaN without ground truth."""
    matrix = confusion.cpu().double()
    hits, truth, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
    return _percent(hits, truth + predicted - hits, exists=truth > 0)


def class_accuracy(confusion: Tensor) -> Tensor:
    """Share of each class's pixels that are found: [n] float64, NaN without ground truth."""
    matrix = confusion.cpu().double()
    truth = matrix.sum(1)
    return _percent(matrix.diagonal(), truth, exists=truth > 0)


def pixel_accuracy(confusion: Tensor) -> float:
    """Share of all counted pixels that are right; NaN for an empty matrix."""
    matrix = confusion.cpu().double()
    return float(_percent(matrix.trace(), matrix.sum(), exists=matrix.sum() > 0))


def mean_accuracy(confusion: Tensor) -> float:
    """Mean of ``class_accuracy`` over the classes that exist in the ground truth."""
    return float(class_accuracy(confusion).nanmean())


def frequency_weighted_iou(confusion: Tensor) -> float:
    """Mean IoU of the existing classes, weighted by their share of the ground truth's pixels."""
    frequency = confusion.cpu().double().sum(1)
    return float((iou(confusion) * frequency).nansum() / frequency.sum())


def mean_iou(iou: Tensor, classes: Iterable[int] | None = None) -> float:
    """Mean over those of ``classes`` (default: all) that exist; NaN where none does."""
    return float((iou if classes is None else iou[list(classes)]).nanmean())


def diluted_mean_iou(iou: Tensor, classes: Iterable[int]) -> float:
    """Mean in which an absent class counts as 0, as the published tables were averaged.

    Only for comparison with numbers made that way: it sinks with every class that the evaluation
    images do not show.
    """
    return float(iou[list(classes)].nan_to_num(0.0).mean())


class GroupedMiou(NamedTuple):
    """Mean IoU by group, percent; NaN for a group without classes (``new`` at step 0).

    ``old`` and ``all`` count the background, as AWT, PLOP and SSUL report it; MiB reports the
    values without.
    """

    old: float
    new: float
    all: float
    old_without_background: float
    all_without_background: float
    harmonic: float


def grouped_miou(iou: Tensor, base_classes: int, seen_classes: int) -> GroupedMiou:
    """Group ``iou`` ([1 + seen_classes] or longer, background first) by when a class was learned.

    ``base_classes`` and ``seen_classes`` are numbers of foreground classes: for VOC 15-1 after
    the last step 15 and 20, which gives old = 0-15, new = 16-20 and all = 0-20.
    """
    old = mean_iou(iou, range(base_classes + 1))
    new = mean_iou(iou, range(base_classes + 1, seen_classes + 1))
    return GroupedMiou(
        old=old,
        new=new,
        all=mean_iou(iou, range(seen_classes + 1)),
        old_without_background=mean_iou(iou, range(1, base_classes + 1)),
        all_without_background=mean_iou(iou, range(1, seen_classes + 1)),
        harmonic=harmonic_mean(old, new),
    )


def harmonic_mean(old: float, new: float) -> float:
    """Harmonic mean of two scores: 0 when both are 0, NaN when one is."""
    return 2 * old * new / (old + new) if old + new != 0 else 0.0


def forgetting(history: Tensor) -> Tensor:
    """Best IoU before the final step minus the final one: [n] float64, negative after a gain.

    ``history``: [steps, n] IoU after each step, NaN where a class was not learned yet or does not
    exist. NaN for classes that only the last step knows.
    """
    history = history.double()
    lowest = torch.full((1, history.shape[1]), -torch.inf, dtype=torch.float64)
    earlier = torch.cat([lowest, history[:-1].nan_to_num(-torch.inf)])
    best = earlier.amax(0)
    return torch.where(best.isinf(), torch.nan, best) - history[-1]


def mean_over_steps(miou: Sequence[float]) -> float:
    """Mean of the mIoU (all seen classes) after each step, step 0 included ("avg" in PLOP)."""
    return float(np.mean(miou)) if len(miou) else float("nan")


class Confusion(NamedTuple):
    """What a confusion file holds: ``matrix`` is [n, n] int64, rows ground truth."""

    matrix: Tensor
    class_names: tuple[str, ...]
    metadata: dict[str, Any]


def write_confusion(
    path: Path | str, matrix: Tensor, class_names: Sequence[str], metadata: Mapping[str, Any]
) -> None:
    """Write an [n, n] integer matrix as CSV, whole or not at all.

    The first line is ``# `` and ``metadata`` as JSON, the second the class names; then one line a
    ground-truth class. Raises ``ValueError`` when matrix and names do not fit.
    """
    counts = matrix.cpu().tolist()
    if tuple(matrix.shape) != (len(class_names),) * 2 or matrix.is_floating_point():
        raise ValueError(
            f"expected integers for {len(class_names)} classes, got {matrix.dtype} "
            f"{tuple(matrix.shape)}"
        )
    text = io.StringIO()
    text.write(f"# {json.dumps(dict(metadata), ensure_ascii=False)}\n")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_CORNER, *class_names])
    writer.writerows([name, *row] for name, row in zip(class_names, counts, strict=True))
    write_text(path, text.getvalue())


def read_confusion(path: Path | str) -> Confusion:
    """Read what ``write_confusion`` wrote.

    Raises ``CissError`` when the file is missing or is not such a file.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            first = file.readline()
            header, *rows = csv.reader(file)
        if not first.startswith("# "):
            raise ValueError("the first line is not '# {metadata}'")
        metadata = json.loads(first.removeprefix("# "))
        names = tuple(header[1:])
        if tuple(row[0] for row in rows) != names:
            raise ValueError("rows and columns do not name the same classes")
        counts = np.array([row[1:] for row in rows], dtype=str).astype(np.int64)
        if counts.shape != (len(names), len(names)) or counts.min(initial=0) < 0:
            raise ValueError("the counts are not a square of numbers from 0")
    except FileNotFoundError as error:
        raise CissError(
            f"confusion matrix {path} does not exist; evaluate that step first"
        ) from error
    except (ValueError, IndexError, OSError) as error:
        raise CissError(
            f"{path} is not a confusion matrix ({error}); delete it and evaluate again"
        ) from error
    return Confusion(torch.from_numpy(counts), names, metadata)


def _percent(part: Tensor, whole: Tensor, exists: Tensor) -> Tensor:
    return torch.where(exists, 100 * part / whole, torch.nan)
