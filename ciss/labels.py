"""From raw mask values to labels in learning order, as tables of 256 entries.

Applying one is a look-up (``table[mask]``). The raw values' meaning comes from the dataset; which
classes keep their label, from the scenario's step.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from ciss.datasets.base import BACKGROUND, VOID
from ciss.errors import CissError


def training_lookup(
    dataset_lookup: npt.NDArray[np.int16], new: Iterable[int]
) -> npt.NDArray[np.uint8]:
    """Return uint8[256] for training: ``new`` classes keep their label, void stays 255.

    Everything else, old and future classes included, is background: CISS's background shift.
    ``dataset_lookup`` is ``Dataset.lookup``, ``new`` are positions in the learning order. Raises
    ``CissError`` for one that the dataset does not have.
    """
    return _keep(dataset_lookup, new)


def evaluation_lookup(
    dataset_lookup: npt.NDArray[np.int16], seen: Iterable[int]
) -> npt.NDArray[np.uint8]:
    """Return uint8[256] for evaluation: all classes ``seen`` so far keep their label.

    Void stays 255; classes that come later are background. Raises ``CissError`` for one that the
    dataset does not have.
    """
    return _keep(dataset_lookup, seen)


def _keep(lookup: npt.NDArray[np.int16], classes: Iterable[int]) -> npt.NDArray[np.uint8]:
    wanted = list(classes)
    known = int(lookup[lookup != VOID].max(initial=BACKGROUND))
    if max(wanted, default=BACKGROUND) > known:
        raise CissError(
            f"class {max(wanted)} of the learning order is asked for, but the data set has {known} "
            "classes; name all of its classes, or learn fewer"
        )
    kept = np.isin(lookup, [*wanted, VOID])
    return np.where(kept, lookup, BACKGROUND).astype(np.uint8)
