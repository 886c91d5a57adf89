"""What a dataset is to the rest of the library."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ciss.errors import CissError

BACKGROUND = 0
VOID = 255
#: label of background that may belong to a class yet to come, for methods that tell it apart
UNKNOWN = 254
#: where maps of salient objects, which say so, come from, if not from a folder
SALIENCY = BUILTIN, NONE = "builtin", "none"
#: marks a raw mask value that must not occur in a dataset
INVALID = -1

#: subset ("train", "val", "test") -> (image path, mask path) relative to the root, in their order
Listing = dict[str, list[tuple[str, str]]]


@dataclass(frozen=True)
class Kind:
    """What a module of this package offers to describe one dataset layout.

    ``CLASSES`` starts with "background"; it is ``None`` where the user has to name the classes.
    ``VALUES`` is int16[256]: raw mask value -> 0, a position in ``CLASSES``, ``VOID`` or
    ``INVALID``. ``list_images`` takes the root, and the settings ``files`` where the kind has
    ``check_files``. A module may leave the others out.
    """

    CLASSES: tuple[str, ...] | None
    VALUES: npt.NDArray[np.int16]
    list_images: Callable[..., Listing]
    #: permutations of 1..K by a letter
    ORDERS: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    #: raw values of pixels without a class, which ``background`` may ignore or count
    UNLABELLED: tuple[int, ...] = ()
    #: raw values that its masks hold, where that is less than ``VALUES`` has a meaning for
    OCCURRING: tuple[int, ...] | None = None
    #: subsets that ``list_images`` returns, unless ``IMAGES`` or ``check_files`` say so
    SUBSETS: tuple[str, ...] = ("train", "val")
    #: number of images of each subset in the published release
    IMAGES: Mapping[str, int] = field(default_factory=dict)
    #: other numbers of training images that are known, and of what
    OTHER_LISTS: Mapping[int, str] = field(default_factory=dict)
    #: uint8 [256, 3], colours by which its masks are commonly shown
    PALETTE: npt.NDArray[np.uint8] | None = None
    #: what the user may say of where files lie: raises ``CissError``, returns the subsets
    check_files: Callable[[str, Mapping[str, Any]], tuple[str, ...]] | None = None
    #: all masks that there are, by the same arguments as ``list_images``: one without an image is
    #: a problem
    list_masks: Callable[..., list[str]] = lambda root, **files: []
    #: what may have happened to a mask, from its mode and raw values; empty for no idea
    explain: Callable[[str, npt.NDArray[np.int64]], str] = lambda mode, values: ""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A dataset as the configuration declares it; making one does not touch the disk.

    ``classes`` are in learning order with the background first. ``lookup`` is int16[256]: raw
    mask value -> label in learning order; 0 also for classes that the user left out, 255 void,
    -1 for a value that must not occur. ``occurring``: bool[256], raw values that masks may hold.
    ``files``: where images and masks lie, for kinds that leave this to the user. ``subsets``:
    "train" and "val", and "test" where the images to report on are apart from "val".
    """

    name: str
    kind: str
    root: Path
    classes: tuple[str, ...]
    lookup: npt.NDArray[np.int16]
    occurring: npt.NDArray[np.bool_]
    files: Mapping[str, Any] = field(default_factory=dict)
    subsets: tuple[str, ...] = ("train", "val")

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
        # Some editors begin a text file with a mark of its encoding.
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise CissError(
            f"cannot read the image list {path}: {error.strerror}; docs/data.md says what must be "
            "there"
        ) from error
    except UnicodeDecodeError as error:
        raise CissError(
            f"the image list {path} is not a text file in UTF-8; save it as one"
        ) from error
    if "\0" in text:
        raise CissError(
            f"the image list {path} is damaged: it holds zero bytes, as a crash of the machine "
            "leaves them; copy it again"
        )
    return [line.strip() for line in text.splitlines() if line.strip()]


def paired(root: Path, pattern: str, mask_of: Callable[[str], str]) -> list[tuple[str, str]]:
    """Pair every image under ``root`` that matches the glob ``pattern`` with its mask, sorted.

    ``mask_of`` turns an image's path relative to the root into its mask's. Raises ``CissError``
    where nothing matches.
    """
    # Not through `Path.glob`, whose object for each file costs more than the rest of a start.
    found = glob.iglob(pattern, root_dir=root)  # noqa: PTH207
    images = sorted(path.replace(os.sep, "/") for path in found)
    if not images:
        raise CissError(f"no images {root}/{pattern}; docs/data.md shows the expected layout")
    return [(image, mask_of(image)) for image in images]


def as_kind(module: object) -> Kind:
    """Read a module of this package as a ``Kind``."""
    offered = [entry.name for entry in fields(Kind) if hasattr(module, entry.name)]
    return Kind(**{name: getattr(module, name) for name in offered})
