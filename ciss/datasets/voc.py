"""PASCAL VOC 2012 with the augmented (SBD) masks, and anything in the same layout.

Two layouts are understood: ``splits/{train_aug,val}.txt`` with an image and a mask path a line,
and the plain devkit with ids in ``VOCdevkit/VOC2012/ImageSets/Segmentation{Aug,}``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ciss.datasets.base import VOID, Listing, read_list, value_table
from ciss.errors import CissError

CLASSES: tuple[str, ...] = (
    "background",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
VALUES = value_table({**{label: label for label in range(21)}, 255: VOID})

IMAGES = {"train": 10582, "val": 1449}
OTHER_LISTS = {
    1464: "the plain VOC 2012 train list, not the augmented one",
    2913: "the plain VOC 2012 trainval list, not the augmented train list",
    8498: "SBD's own train list, which has images of VOC's val",
    12031: "the augmented train list and val together",
}

#: The published random class orders of 15-1: 15-1a … 15-1j in AWT's task table (tasks.py), in
#: PLOP's 15-5s_b … 15-5s_k.
ORDERS: dict[str, tuple[int, ...]] = {
    "a": (12, 9, 20, 7, 15, 8, 14, 16, 5, 19, 4, 1, 13, 2, 11, 17, 3, 6, 18, 10),
    "b": (13, 19, 15, 17, 9, 8, 5, 20, 4, 3, 10, 11, 18, 16, 7, 12, 14, 6, 1, 2),
    "c": (15, 3, 2, 12, 14, 18, 20, 16, 11, 1, 19, 8, 10, 7, 17, 6, 5, 13, 9, 4),
    "d": (7, 5, 3, 9, 13, 12, 14, 19, 10, 2, 1, 4, 16, 8, 17, 15, 18, 6, 11, 20),
    "e": (7, 13, 5, 11, 9, 2, 15, 12, 14, 3, 20, 1, 16, 4, 18, 8, 6, 10, 19, 17),
    "f": (7, 5, 9, 1, 15, 18, 14, 3, 20, 10, 4, 19, 11, 17, 16, 12, 8, 6, 2, 13),
    "g": (12, 9, 19, 6, 4, 10, 5, 18, 14, 15, 16, 3, 8, 7, 11, 13, 2, 20, 17, 1),
    "h": (13, 10, 15, 8, 7, 19, 4, 3, 16, 12, 14, 11, 5, 20, 6, 2, 18, 9, 17, 1),
    "i": (1, 14, 9, 5, 2, 15, 8, 20, 6, 16, 18, 7, 11, 10, 19, 3, 4, 17, 12, 13),
    "j": (16, 13, 1, 11, 12, 18, 6, 14, 5, 3, 7, 9, 20, 19, 15, 4, 2, 10, 8, 17),
}

_DEVKIT = Path("VOCdevkit/VOC2012")
# In order of preference: the augmented lists are the protocol's, the plain ones a fallback.
_DEVKIT_LISTS = {
    "train": (
        "SegmentationAug/train_aug.txt",
        "SegmentationAug/trainaug.txt",
        "SegmentationAug/train.txt",
        "Segmentation/train_aug.txt",
        "Segmentation/trainaug.txt",
        "Segmentation/train.txt",
    ),
    "val": ("SegmentationAug/val.txt", "Segmentation/val.txt"),
}


def list_images(root: Path) -> Listing:
    """Read the train and val lists of either layout under ``root``."""
    if (root / "splits").is_dir():
        return {
            "train": _read_pairs(root / "splits" / "train_aug.txt"),
            "val": _read_pairs(root / "splits" / "val.txt"),
        }
    for devkit in (root / _DEVKIT, root):
        if (devkit / "ImageSets").is_dir():
            prefix = devkit.relative_to(root)
            return {subset: _read_ids(root, prefix, subset) for subset in _DEVKIT_LISTS}
    raise CissError(
        f"{root} is in neither VOC layout: it has no splits/train_aug.txt, no ImageSets/ and no "
        f"{_DEVKIT}/ImageSets/, but {_contents(root)}; docs/data.md says what it must hold"
    )


def palette() -> npt.NDArray[np.uint8]:
    """Return VOC's colours of labels, uint8 [256, 3]; 255 is void.

    The bits of a label are dealt to red, green and blue in turn, lowest first, and fill each from
    its highest bit down.
    """
    label = np.arange(256)
    colours = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        colours[:, bit % 3] |= ((label >> bit & 1) << 7 - bit // 3).astype(np.uint8)
    return colours


PALETTE = palette()


def _read_pairs(path: Path) -> list[tuple[str, str]]:
    pairs = []
    for number, line in enumerate(read_list(path), start=1):
        fields = line.split()
        if len(fields) != 2:
            raise CissError(
                f"{path}, entry {number}: expected an image and a mask path, found '{line}'"
            )
        pairs.append((fields[0].lstrip("/"), fields[1].lstrip("/")))
    return pairs


def _read_ids(root: Path, devkit: Path, subset: str) -> list[tuple[str, str]]:
    lists = root / devkit / "ImageSets"
    path = next((lists / name for name in _DEVKIT_LISTS[subset] if (lists / name).is_file()), None)
    if path is None:
        raise CissError(
            f"no {subset} list under {lists}: expected one of {', '.join(_DEVKIT_LISTS[subset])}"
        )
    augmented = (root / devkit / "SegmentationClassAug").is_dir()
    masks = devkit / ("SegmentationClassAug" if augmented else "SegmentationClass")
    pairs = []
    for line in read_list(path):
        fields = line.split()
        if len(fields) == 2:
            pairs.append(tuple((devkit / field.lstrip("/")).as_posix() for field in fields))
        else:
            image = devkit / "JPEGImages" / f"{fields[0]}.jpg"
            pairs.append((image.as_posix(), (masks / f"{fields[0]}.png").as_posix()))
    return [(image, mask) for image, mask in pairs]


def _contents(root: Path) -> str:
    names = sorted(path.name for path in root.iterdir())
    return ", ".join(names[:5]) + (" …" if len(names) > 5 else "") or "nothing"
