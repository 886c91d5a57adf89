"""Datasets: one module a *kind* (a layout on disk with its classes).

A kind is found by its file's name: to add one, add a module beside ``voc.py`` that offers what
``base.Kind`` lists. Which datasets there are, of which kind and where, the configuration says.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ciss.datasets.base import BACKGROUND, INVALID, VOID, Dataset, Kind, Listing, as_kind
from ciss.errors import CissError
from ciss.names import unknown

__all__ = [
    "BACKGROUND",
    "BACKGROUNDS",
    "INVALID",
    "VOID",
    "Dataset",
    "Kind",
    "Listing",
    "get_kind",
    "kinds",
    "list_images",
    "open_dataset",
]

#: what pixels without a class are: the background, class 0, or void
BACKGROUNDS = {"unlabelled": BACKGROUND, "ignore": VOID}


@cache
def kinds() -> tuple[str, ...]:
    """Names of all kinds of dataset: the modules of this package."""
    return tuple(
        sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base")
    )


@cache
def get_kind(kind: str) -> Kind:
    """Return what the module of ``kind`` offers; ``CissError`` where there is none."""
    if kind not in kinds():
        raise CissError(unknown("dataset kind", kind, kinds()))
    return as_kind(importlib.import_module(f"{__name__}.{kind}"))


def open_dataset(
    name: str,
    kind: str,
    root: Path,
    classes: Sequence[str] | None = None,
    order: str = "",
    *,
    background: str | None = None,
    values: Mapping[str, int | Sequence[int]] | None = None,
    void: int | Sequence[int] | None = None,
    files: Mapping[str, Any] | None = None,
) -> Dataset:
    """Describe a dataset without touching the disk.

    ``classes`` chooses and orders classes by name, background excluded; ``None`` takes all of the
    kind's. ``order`` is the letter of one of the kind's class orders and goes with all classes
    only. ``background`` is one of ``BACKGROUNDS``, ``None`` what the kind's ``VALUES`` say.
    ``values`` (name -> raw mask value or values) and ``void`` (raw values) are for kinds whose
    classes the user names, ``files`` for kinds with ``check_files``; ``None`` where no files are
    going to be listed. Raises ``CissError`` where one of them does not fit the kind or the others.
    """
    described = get_kind(kind)
    if described.CLASSES is None:
        if classes is None:
            raise CissError(
                f"dataset '{name}' is of kind '{kind}', which has no classes of its own: list "
                f"their names under datasets.{name}.classes"
            )
        table, unlabelled = _own_values(name, described, classes, values, void)
    elif values is not None or void is not None:
        raise CissError(
            f"datasets.{name}.{'void' if values is None else 'values'}: kind '{kind}' knows what "
            "its mask values mean; kind folders leaves it to you"
        )
    else:
        table, unlabelled = described.VALUES, described.UNLABELLED
    if classes is None:
        assert described.CLASSES is not None
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
    if background is not None:
        table = _with_background(name, kind, table, unlabelled, background)
    lookup = _lookup(table, labels, n_known)
    return Dataset(
        name=name,
        kind=kind,
        root=Path(root),
        classes=("background", *names),
        lookup=lookup,
        occurring=_occurring(described, lookup),
        files=files or {},
        subsets=_subsets(name, kind, described, files),
    )


def list_images(dataset: Dataset) -> Listing:
    """Return the (image, mask) paths of the subsets "train" and "val", relative to the root.

    Some kinds have the subset "test" too. Raises ``CissError`` where the root or one of its lists
    is missing, where a name is not UTF-8, and where a kind lists other subsets than it declares.
    """
    described = get_kind(dataset.kind)
    if not dataset.root.is_dir():
        where = "`snakemake prepare` and docs/data.md say how to get them"
        if not described.IMAGES:
            where = "docs/add-a-dataset.md says how it must look"
        raise CissError(
            f"there is no folder {dataset.root} for dataset '{dataset.name}': set "
            f"datasets.{dataset.name}.root to where its images are; {where}"
        )
    declared = dataset.subsets
    if described.check_files is not None:
        declared = described.check_files(dataset.name, dataset.files)
    listing = described.list_images(dataset.root, **dataset.files)
    _check_names(dataset, listing)
    if set(listing) != set(declared):
        # Which images are evaluated is decided by what is declared, before any file is read.
        found = ", ".join(listing)
        raise CissError(
            f"kind '{dataset.kind}' lists the subsets {found}, but declares {', '.join(declared)}; "
            f"set SUBSETS in ciss/datasets/{dataset.kind}.py to what list_images returns"
        )
    return listing


def _check_names(dataset: Dataset, listing: Listing) -> None:
    """Refuse names of files that tables, which are UTF-8, could not hold."""
    for path in chain.from_iterable(chain.from_iterable(listing.values())):
        # Python has no other letters that UTF-8 lacks than those it makes of bytes that are not.
        if not path.isascii() and any("\ud800" <= letter <= "\udfff" for letter in path):
            raise CissError(
                f"{path!a} in {dataset.root} has a name that is not UTF-8; rename it (the "
                "program convmv does it for many)"
            )


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
    options = [class_ for class_ in names if class_.startswith("-")]
    if options:
        raise CissError(
            f"datasets.{name}.classes lists {options[0]}, which programs take for an option; "
            "choose a name that does not begin with a hyphen"
        )
    if described.CLASSES is None:
        return range(1, len(names) + 1)
    for class_ in names:
        if class_ not in described.CLASSES:
            raise CissError(
                f"datasets.{name}.classes: {unknown('class', class_, described.CLASSES[1:])}"
            )
    return [described.CLASSES.index(class_) for class_ in names]


def _own_values(
    name: str,
    described: Kind,
    classes: Sequence[str],
    values: Mapping[str, int | Sequence[int]] | None,
    void: int | Sequence[int] | None,
) -> tuple[npt.NDArray[np.int16], tuple[int, ...]]:
    """Return what the user says of raw values, and which are of pixels without a class.

    The table is int16[256]: raw value -> position in ``classes``, 0, void or invalid.
    """
    if values is None and void is None:
        return described.VALUES, (BACKGROUND,)
    if values is None:
        meanings = {class_: [label] for label, class_ in enumerate(classes, start=1)}
    else:
        meanings = {key: _as_list(raw) for key, raw in values.items()}
        for class_ in classes:
            if class_ not in meanings:
                raise CissError(
                    f"datasets.{name}.values lacks class '{class_}': give the mask values of every "
                    "class"
                )
        if "void" in meanings:
            raise CissError(
                f"datasets.{name}.values lists void: give its mask values as datasets.{name}.void"
            )
    meanings["void"] = _as_list(VOID if void is None else void)
    if not any(0 in raw for raw in meanings.values()):
        meanings.setdefault("background", [0])
    labels = {class_: label for label, class_ in enumerate(classes, start=1)} | {"void": VOID}
    table = np.full(256, INVALID, dtype=np.int16)
    owner: dict[int, str] = {}
    for key, raw in meanings.items():
        for value in raw:
            if value not in range(256):
                raise CissError(
                    f"datasets.{name}: mask value {value} of '{key}' is not in 0 to 255"
                )
            if value in owner:
                raise CissError(
                    f"datasets.{name}: mask value {value} is both '{owner[value]}' and '{key}'; "
                    "each value has one meaning (settings classes, values, void)"
                )
            owner[value] = key
            table[value] = labels.get(key, BACKGROUND)
    return table, tuple(meanings.get("background", ()))


def _as_list(raw: int | Sequence[int]) -> list[int]:
    return [raw] if isinstance(raw, int) else list(raw)


def _with_background(
    name: str,
    kind: str,
    table: npt.NDArray[np.int16],
    unlabelled: tuple[int, ...],
    background: str,
) -> npt.NDArray[np.int16]:
    if background not in BACKGROUNDS:
        raise CissError(f"datasets.{name}.background: {unknown('value', background, BACKGROUNDS)}")
    if not unlabelled:
        raise CissError(
            f"datasets.{name}.background is '{background}', but kind '{kind}' has no unlabelled "
            "pixels, its background is a class; leave the setting out"
        )
    changed = table.copy()
    changed[list(unlabelled)] = BACKGROUNDS[background]
    return changed


def _lookup(
    table: npt.NDArray[np.int16], labels: Sequence[int], n_known: int
) -> npt.NDArray[np.int16]:
    """Compose raw value -> the kind's label -> learning order, int16[256]."""
    order = np.full(256, INVALID, dtype=np.int16)
    order[: n_known + 1] = BACKGROUND
    order[VOID] = VOID
    order[list(labels)] = np.arange(1, len(labels) + 1)
    lookup = np.where(table == INVALID, INVALID, order[table])
    lookup = lookup.astype(np.int16)
    lookup.setflags(write=False)
    return lookup


def _occurring(described: Kind, lookup: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    occurring = lookup != INVALID
    if described.OCCURRING is not None:
        occurring &= np.isin(np.arange(256), described.OCCURRING)
    occurring.setflags(write=False)
    return occurring


def _subsets(
    name: str, kind: str, described: Kind, files: Mapping[str, Any] | None
) -> tuple[str, ...]:
    if described.check_files is not None and files is not None:
        return described.check_files(name, files)
    if files:
        raise CissError(
            f"datasets.{name}.files: kind '{kind}' has a layout of its own; kind folders leaves it "
            "to you"
        )
    return tuple(described.IMAGES) or described.SUBSETS
