"""Which images each step of a scenario trains and is tested on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from ciss.datasets import INVALID, VOID, Dataset
from ciss.errors import CissError
from ciss.index import parse_labels
from ciss.row_files import as_csv, read_rows, write_rows
from ciss.scenarios import Scenario

COLUMNS = ("step", "subset", "image", "mask")
#: of the classes drawn for the images in the partitioned setup, as in its authors' lists
PARTITION_SEED = 0


def split(
    index: pd.DataFrame, dataset: Dataset, scenario: Scenario, steps: Sequence[int]
) -> pd.DataFrame:
    """Return the images of ``steps``: rows of ``step``, ``subset``, ``image`` and ``mask``.

    "train" rows are train images with at least one of the step's new classes: all of them in the
    overlapped setup, those without any class that comes later in the disjoint one (MiB, Cermelli
    et al., CVPR 2020), those given to one of the new classes in the partitioned one
    (``partition``). "test" rows are the images to report on with at least one class seen so far:
    the index's "test" images, or its "val" images where it has no others. Where it has both,
    "val" rows are the latter. Rows keep the index's order. Raises ``CissError`` for a step without
    train or test images.
    """
    if scenario.n_classes != dataset.n_classes:
        raise CissError(
            f"scenario {scenario.name} is for {scenario.n_classes} classes, dataset "
            f"'{dataset.name}' has {dataset.n_classes}"
        )
    present = presence(index, dataset)
    home = partition(index, dataset, present) if scenario.setup == "partitioned" else None
    parts = [
        _rows(index, step, subset, chosen)
        for step in steps
        for subset, chosen in _choose(index, dataset, scenario, step, present, home)
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


def partition(
    index: pd.DataFrame, dataset: Dataset, present: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    """Give each train image to one class that it shows: int64 [images], 0 for none.

    Classes are positions in the learning order; ``present`` is ``presence``'s result. The class is
    drawn with equal chances (Kwak, Cha and Moon, arXiv 2405.09858), images in the order
    of their paths, an image's classes in that of their mask values. So neither the scenario nor
    the class order has a say, and the lists of the authors' code (seed 0) come out.
    """
    first_value = [np.flatnonzero(dataset.lookup == label)[0] for label in _labels(dataset)]
    labels = np.array(_labels(dataset))[np.argsort(first_value)]
    shown = present[:, labels]
    candidates = (index["subset"].to_numpy() == "train") & shown.any(axis=1)
    rows = np.flatnonzero(candidates)
    rows = rows[np.argsort(index["image"].to_numpy(dtype=str)[rows], kind="stable")]
    # The old generator, whose stream NumPy keeps as it is.
    drawn = np.random.RandomState(PARTITION_SEED).randint(0, shown[rows].sum(axis=1))
    place = np.argmax(shown[rows].cumsum(axis=1) > drawn[:, None], axis=1)
    home = np.zeros(len(index), dtype=np.int64)
    home[rows] = labels[place]
    return home


def manifest(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what identifies the lists of a split: ``step``, ``subset``, ``images``, ``sha256``.

    The hash is of the images' names without folder and suffix, sorted, each with a line feed. It
    is the same in every layout of a dataset, so lists can be compared with anyone's.
    """
    groups = rows.groupby(["step", "subset"], sort=False)["image"]
    table = [(*key, len(images), ids_hash(images)) for key, images in groups]
    return pd.DataFrame(table, columns=["step", "subset", "images", "sha256"])


def ids_hash(images: Iterable[str]) -> str:
    """Return the SHA-256 of images' names, as in ``manifest``."""
    ids = sorted(Path(image).stem for image in images)
    return hashlib.sha256("".join(f"{name}\n" for name in ids).encode()).hexdigest()


def select(rows: pd.DataFrame, step: int, subset: str) -> pd.DataFrame:
    """Return the ``image`` and ``mask`` columns of one step's "train", "test" or "val" rows."""
    chosen = rows[(rows["step"] == step) & (rows["subset"] == subset)]
    return chosen[["image", "mask"]].reset_index(drop=True)


def read_images(path: Path, step: int, subset: str) -> pd.DataFrame:
    """Read one step's "train", "test" or "val" rows of the split in ``path``, as ``select``.

    Raises ``CissError`` where the file is not a split, or has no such rows.
    """
    rows = read_split(path)
    chosen = select(rows, step, subset)
    if chosen.empty:
        there = ", ".join(f"{number} ({name})" for number, name in _lists(rows)) or "none"
        raise CissError(
            f"{path} has no {subset} images for step {step}, but for: {there}; give the split of "
            "the scenario and its step (evaluation.images chooses the list to evaluate on), or "
            "delete the split to have it made again"
        )
    return chosen


def _lists(rows: pd.DataFrame) -> list[tuple[int, str]]:
    return list(rows[["step", "subset"]].drop_duplicates().itertuples(index=False, name=None))


def split_hash(rows: pd.DataFrame) -> str:
    """Return the SHA-256 of a split's rows in their order, hexadecimal: equal splits, equal hash.

    It is that of a CSV file with the columns ``COLUMNS``.
    """
    return hashlib.sha256(as_csv(rows, COLUMNS).encode()).hexdigest()


def write_split(path: Path, rows: pd.DataFrame) -> None:
    """Write a split as CSV, whole or not at all."""
    write_rows(path, rows, COLUMNS)


def read_split(path: Path) -> pd.DataFrame:
    """Read what ``write_split`` wrote; ``CissError`` where the file is not a whole split."""
    return read_rows(path, "split", COLUMNS, numbers=("step",))


def _choose(
    index: pd.DataFrame,
    dataset: Dataset,
    scenario: Scenario,
    step: int,
    present: npt.NDArray[np.bool_],
    home: npt.NDArray[np.int64] | None,
) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    new, seen = scenario.new_classes(step), scenario.seen_classes(step)
    subset = index["subset"].to_numpy()
    condition = ""
    if home is not None:
        train = np.isin(home, new)
        condition = " and was given to it"
    else:
        train = (subset == "train") & present[:, list(new)].any(axis=1)
        if scenario.setup == "disjoint":
            train &= ~present[:, seen.stop :].any(axis=1)
            condition = " without a later class"
    shows_seen = present[:, list(seen)].any(axis=1)
    reported = "test" if (subset == "test").any() else "val"
    test = (subset == reported) & shows_seen
    for name, chosen, classes, but in (
        ("train", train, new, condition),
        ("test", test, seen, ""),
    ):
        if not chosen.any():
            names = ", ".join(dataset.classes[label] for label in classes)
            raise CissError(
                f"step {step} of {dataset.name} {scenario.name} has no {name} images: none "
                f"shows {names}{but}"
            )
        yield name, chosen
    if reported != "val":
        yield "val", (subset == "val") & shows_seen


def _labels(dataset: Dataset) -> range:
    return range(1, dataset.n_classes + 1)


def _rows(
    index: pd.DataFrame, step: int, subset: str, chosen: npt.NDArray[np.bool_]
) -> pd.DataFrame:
    rows = index.loc[chosen, ["image", "mask"]]
    return rows.assign(step=step, subset=subset)[list(COLUMNS)]
