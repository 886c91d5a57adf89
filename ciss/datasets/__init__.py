"""Datasets: one module a *kind* (a layout on disk with its classes).

A kind is found by its file's name: to add one, add a module beside ``voc.py`` that offers what
``base.Kind`` lists. Which datasets there are, of which kind and where, the configuration says.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from ciss.datasets.base import BACKGROUND, INVALID, VOID, Dataset, Kind, Listing, as_kind
from ciss.errors import CissError
from ciss.names import unknown

__all__ = [
    "BACKGROUND",
    "INVALID",
    "VOID",
    "Dataset",
    "Listing",
    "get_kind",
    "kinds",
    "list_images",
    "open_dataset",
]


@cache
def kinds() -> tuple[str, ...]:
    """Names of all kinds of dataset: the modules of this package."""
    return tuple(
        sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
    )


def get_kind(kind: str) -> Kind:
    """Return the module that describes ``kind``; ``CissError`` where there is none."""
    if kind not in kinds():
        raise CissError(unknown("dataset kind", kind, kinds()))
    return as_kind(importlib.import_module(f"{__name__}.{kind}"))


def open_dataset(
    name: str, kind: str, root: Path, classes: Sequence[str] | None = None, order: str = ""
) -> Dataset:
    """Describe a dataset without touching the disk.

    ``classes`` chooses and orders classes by name, background excluded; ``None`` takes all of the
    kind's. ``order`` is the letter of one of the kind's class orders and goes with all classes
    only. Raises ``CissError`` for an unknown kind, class or letter.
    """
    described = get_kind(kind)
    if classes is None:
        if described.CLASSES is None:
            raise CissError(
                f"dataset '{name}' is of kind '{kind}', which has no classes of its own: list "
                f"their names under datasets.{name}.classes"
            )
        labels = _ordered_labels(name, kind, described, order)
        names = tuple(described.CLASSES[label] for label in labels)
    else:
        if order:
            raise CissError(
                f"dataset '{name}' lists its classes in an order of its own: it has no class "
                f"order '{order}'"
            )
        names = tuple(classes)
        labels = _chosen_labels(name, described, names)
    n_known = len(names) if described.CLASSES is None else len(described.CLASSES) - 1
    return Dataset(
        name=name,
        kind=kind,
        root=Path(root),
        classes=("background", *names),
        lookup=_lookup(described, labels, n_known),
    )


def list_images(dataset: Dataset) -> Listing:
    """Return the (image, mask) paths of the subsets "train" and "val", relative to the root.

    Raises ``CissError`` where the root or one of its lists is missing.
    """
    if not dataset.root.is_dir():
        raise CissError(
            f"there is no folder {dataset.root} for dataset '{dataset.name}': set "
            f"datasets.{dataset.name}.root to where its images are; docs/data.md says how to get "
            "them"
        )
    return get_kind(dataset.kind).list_images(dataset.root)


def _ordered_labels(name: str, kind: str, described: Kind, order: str) -> Sequence[int]:
    assert described.CLASSES is not None
    if not order:
        return range(1, len(described.CLASSES))
    if order not in described.ORDERS:
        available = ", ".join(sorted(described.ORDERS)) or "none"
        raise CissError(
            f"class order '{order}' of dataset '{name}' is unknown; kind '{kind}' has: {available}"
        )
    return described.ORDERS[order]


def _chosen_labels(name: str, described: Kind, names: Sequence[str]) -> Sequence[int]:
    if not names:
        raise CissError(f"datasets.{name}.classes is empty: list at least one class")
    repeated = sorted({class_ for class_ in names if names.count(class_) > 1})
    if repeated:
        raise CissError(f"datasets.{name}.classes lists {', '.join(repeated)} more than once")
    if "background" in names:
        raise CissError(
            f"datasets.{name}.classes lists background, which is always class 0: leave it out"
        )
    if described.CLASSES is None:
        return range(1, len(names) + 1)
    for class_ in names:
        if class_ not in described.CLASSES:
            raise CissError(
                f"datasets.{name}.classes: {unknown('class', class_, described.CLASSES[1:])}"
            )
    return [described.CLASSES.index(class_) for class_ in names]


def _lookup(described: Kind, labels: Sequence[int], n_known: int) -> np.ndarray:
    """Compose raw value -> the kind's label -> learning order, int16[256]."""
    order = np.full(256, INVALID, dtype=np.int16)
    order[: n_known + 1] = BACKGROUND
    order[VOID] = VOID
    order[list(labels)] = np.arange(1, len(labels) + 1)
    lookup = np.where(described.VALUES == INVALID, INVALID, order[described.VALUES])
    lookup = lookup.astype(np.int16)
    lookup.setflags(write=False)
    return lookup
