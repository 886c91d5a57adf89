"""Which images each step of a scenario trains and is tested on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ciss.datasets import INVALID, VOID, Dataset
from ciss.errors import CissError
from ciss.files import write_text
from ciss.index import parse_labels
from ciss.scenarios import Scenario

COLUMNS = ("step", "subset", "image", "mask")


def split(
    index: pd.DataFrame, dataset: Dataset, scenario: Scenario, steps: Sequence[int]
) -> pd.DataFrame:
    """Return the images of ``steps``: rows of ``step``, ``subset``, ``image`` and ``mask``.

    "train" rows are the train images with at least one of the step's new classes; in the disjoint
    setup, those without any class that comes later. "test" rows are the val images with at least
    one class seen so far (MiB, Cermelli et al., CVPR 2020). Rows keep the index's order.
    Raises ``CissError`` for a step without images.
    """
    if scenario.n_classes != dataset.n_classes:
        raise CissError(
            f"scenario {scenario.name} is for {scenario.n_classes} classes, dataset "
            f"'{dataset.name}' has {dataset.n_classes}"
        )
    present = presence(index, dataset)
    parts = [
        _rows(index, step, subset, chosen)
        for step in steps
        for subset, chosen in _choose(index, dataset, scenario, step, present)
    ]
    return pd.concat(parts, ignore_index=True)


def presence(index: pd.DataFrame, dataset: Dataset) -> npt.NDArray[np.bool_]:
    """Return bool [images, 1 + classes]: which classes, in learning order, each mask shows."""
    rows, values, _ = parse_labels(index["labels"])
    labels = dataset.lookup[values]
    if (labels == INVALID).any():
        value = values[labels == INVALID][0]
        raise CissError(
            f"the index has mask value {value}, which dataset '{dataset.name}' does not know; "
            "build the index again"
        )
    present = np.zeros((len(index), 1 + dataset.n_classes), dtype=np.bool_)
    shown = labels != VOID
    present[rows[shown], labels[shown]] = True
    return present


def select(rows: pd.DataFrame, step: int, subset: str) -> pd.DataFrame:
    """Return the ``image`` and ``mask`` columns of one step's "train" or "test" rows."""
    chosen = rows[(rows["step"] == step) & (rows["subset"] == subset)]
    return chosen[["image", "mask"]].reset_index(drop=True)


def split_hash(rows: pd.DataFrame) -> str:
    """Return the SHA-256 of a split's rows in their order, hexadecimal: equal splits, equal hash.

    It is that of the file that ``write_split`` writes.
    """
    return hashlib.sha256(_as_csv(rows).encode()).hexdigest()


def write_split(path: Path, rows: pd.DataFrame) -> None:
    """Write a split as CSV, whole or not at all."""
    write_text(path, _as_csv(rows))


def read_split(path: Path) -> pd.DataFrame:
    """Read what ``write_split`` wrote; ``CissError`` where the file is not a split."""
    try:
        rows = pd.read_csv(path, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise CissError(f"cannot read the split {path}: {error}") from error
    if tuple(rows.columns) != COLUMNS:
        raise CissError(
            f"{path} is not a split: its columns are {', '.join(map(str, rows.columns))} "
            f"instead of {', '.join(COLUMNS)}; delete it to have it made again"
        )
    return rows


def _choose(
    index: pd.DataFrame,
    dataset: Dataset,
    scenario: Scenario,
    step: int,
    present: npt.NDArray[np.bool_],
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    new, seen = scenario.new_classes(step), scenario.seen_classes(step)
    subset = index["subset"].to_numpy()
    train = (subset == "train") & present[:, list(new)].any(axis=1)
    if scenario.setup == "disjoint":
        train &= ~present[:, seen.stop :].any(axis=1)
    test = (subset == "val") & present[:, list(seen)].any(axis=1)
    for name, chosen, classes in (("train", train, new), ("test", test, seen)):
        if not chosen.any():
            names = ", ".join(dataset.classes[label] for label in classes)
            raise CissError(
                f"step {step} of {dataset.name} {scenario.name} has no {name} images: none "
                f"shows {names}"
                + (" without a later class" if scenario.setup == "disjoint" else "")
            )
        yield name, chosen


def _rows(
    index: pd.DataFrame, step: int, subset: str, chosen: npt.NDArray[np.bool_]
) -> pd.DataFrame:
    rows = index.loc[chosen, ["image", "mask"]]
    return rows.assign(step=step, subset=subset)[list(COLUMNS)]


def _as_csv(rows: pd.DataFrame) -> str:
    return rows.to_csv(columns=list(COLUMNS), index=False, lineterminator="\n")
