"""Which images, classes and steps the figures of models show: chosen by rule, never by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from ciss.datasets import VOID, Dataset
from ciss.index import parse_labels

#: share of an image's pixels from which it is taken to show a class
SHOWN = 0.03
#: share that a class should have in an image that stands for it: large, with its surroundings
_TYPICAL = 0.3


def class_shares(index: pd.DataFrame, dataset: Dataset) -> npt.NDArray[np.float64]:
    """Share of each image's pixels that shows each class: [images, 1 + classes], learning order.

    Void pixels belong to no class, classes that the user left out to the background.
    """
    rows, values, pixels = parse_labels(index["labels"])
    labels = dataset.lookup[values]
    shown = labels != VOID
    shares = np.zeros((len(index), 1 + dataset.n_classes))
    np.add.at(shares, (rows[shown], labels[shown]), pixels[shown])
    return shares / (index["width"] * index["height"]).to_numpy(float)[:, None]


def mixed(
    shares: npt.NDArray[np.float64], old: Sequence[int], new: Sequence[int], count: int
) -> list[int]:
    """Choose rows that show old and new classes, together where there are such images.

    Every other row is the one with the largest share, up to one half, of a new class that no row
    before it shows; those between, of an old class. ``shares``: of ``class_shares``. Returns
    ``count`` positions, fewer where there are fewer images; the first of equals wins.
    """
    chosen: list[int] = []
    seen: set[int] = set()
    together = np.zeros(len(shares), dtype=bool)
    if len(old) and len(new):
        together = (shares[:, old].max(axis=1) >= SHOWN) & (shares[:, new].max(axis=1) >= SHOWN)
    for turn in range(min(count, len(shares))):
        wanted = (new, old)[turn % 2] or new or old
        fresh = [label for label in wanted if label not in seen] or list(wanted)
        largest = shares[:, fresh].max(axis=1).clip(max=0.5)
        score = np.where(largest >= SHOWN, together + largest, largest - 1)
        score[chosen] = -np.inf
        best = int(np.argmax(score))
        chosen.append(best)
        seen.update(np.flatnonzero(shares[best] >= SHOWN).tolist())
    return chosen


def typical(shares: npt.NDArray[np.float64], label: int) -> int:
    """Choose the row in which ``label`` has nearest to three tenths of the pixels."""
    return int(np.argmin(np.abs(shares[:, label] - _TYPICAL)))


def spread(count: int, available: Sequence[int]) -> list[int]:
    """Choose at most ``count`` of ``available``: the first, the last, and evenly between."""
    last = len(available) - 1
    places = np.linspace(0, last, min(count, last + 1)).round().astype(int)
    return [available[place] for place in dict.fromkeys(places.tolist())]


def shown_steps(n_steps: int, count: int = 4) -> list[int]:
    """Steps whose predictions a figure shows."""
    return spread(count, range(n_steps))


def shown_classes(classes_per_step: Sequence[int], count: int = 4) -> list[tuple[int, int]]:
    """Choose (step, class) pairs of later steps: one class of each step, then the next of each.

    With more than ``count`` later steps, of the first, the last and steps evenly between.
    ``classes_per_step``: outputs added at each step, the background's included in step 0's.
    """
    steps = spread(count, range(1, len(classes_per_step)))
    first = np.cumsum([0, *classes_per_step]).tolist()
    most = max((classes_per_step[step] for step in steps), default=0)
    pairs = [
        (step, first[step] + turn)
        for turn in range(most)
        for step in steps
        if turn < classes_per_step[step]
    ]
    return sorted(pairs[:count])
