"""What a dataset is to the rest of the library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from ciss.errors import CissError

BACKGROUND = 0
VOID = 255
#: marks a raw mask value that must not occur in a dataset
INVALID = -1

#: subset ("train", "val") -> (image path, mask path) relative to the root, in the lists' order
Listing = dict[str, list[tuple[str, str]]]


class Kind(Protocol):
    """What a module of this package offers to describe one dataset layout.

    ``CLASSES`` starts with "background"; it is ``None`` where the user has to name the classes.
    ``VALUES`` is int16[256]: raw mask value -> 0, a position in ``CLASSES``, ``VOID`` or
    ``INVALID``. ``ORDERS`` names permutations of 1..K by a letter.
    """

    CLASSES: tuple[str, ...] | None
    VALUES: npt.NDArray[np.int16]
    ORDERS: dict[str, tuple[int, ...]]
    list_images: Callable[[Path], Listing]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset as the configuration declares it; making one does not touch the disk.

    ``classes`` are in learning order with the background first. ``lookup`` is int16[256]: raw
    mask value -> label in learning order; 0 also for classes that the user left out, 255 void,
    -1 for a value that must not occur.
    """

    name: str
    kind: str
    root: Path
    classes: tuple[str, ...]
    lookup: npt.NDArray[np.int16]

    @property
    def n_classes(self) -> int:
        """Number of classes without the background."""
        return len(self.classes) - 1


def value_table(labels: dict[int, int], default: int = INVALID) -> npt.NDArray[np.int16]:
    """Build int16[256] from ``labels`` (raw mask value -> label), ``default`` elsewhere."""
    table = np.full(256, default, dtype=np.int16)
    table[list(labels)] = list(labels.values())
    table.setflags(write=False)
    return table


def read_list(path: Path) -> list[str]:
    """Read the lines of a list file, without blank ones; a missing final newline is no matter."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CissError(
            f"cannot read the image list {path}: {error.strerror}; docs/data.md says what must be "
            "there"
        ) from error
    except UnicodeDecodeError as error:
        raise CissError(f"the image list {path} is not a text file") from error
    return [line.strip() for line in lines if line.strip()]


def paired(root: Path, pattern: str, mask_of: Callable[[str], str]) -> list[tuple[str, str]]:
    """Pair every image under ``root`` that matches the glob ``pattern`` with its mask, sorted.

    ``mask_of`` turns an image's path relative to the root into its mask's. Raises ``CissError``
    where nothing matches.
    """
    images = sorted(path.relative_to(root).as_posix() for path in root.glob(pattern))
    if not images:
        raise CissError(f"no images {root}/{pattern}; docs/data.md shows the expected layout")
    return [(image, mask_of(image)) for image in images]


def as_kind(module: object) -> Kind:
    """Take a module of this package as a ``Kind``."""
    return cast(Kind, module)
