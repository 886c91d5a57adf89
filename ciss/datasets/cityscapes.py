"""Cityscapes, fine annotations: 2,975 train and 500 val street scenes.

As in the published protocol the label id 0 (unlabelled) is the background, and the other ids
outside the 19 evaluation classes are void.
"""

from __future__ import annotations

from pathlib import Path

from ciss.datasets.base import BACKGROUND, VOID, Listing, paired, value_table

#: label id -> evaluation class, in the usual order
_EVALUATED = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
CLASSES: tuple[str, ...] = ("background", *_EVALUATED.values())
VALUES = value_table(
    {0: BACKGROUND, **{value: label for label, value in enumerate(_EVALUATED, start=1)}},
    default=VOID,
)
ORDERS: dict[str, tuple[int, ...]] = {}


def list_images(root: Path) -> Listing:
    """Pair ``leftImg8bit/{train,val}/CITY/*`` with ``gtFine/{train,val}/CITY/*_labelIds.png``."""
    return {
        subset: paired(root, f"leftImg8bit/{subset}/*/*_leftImg8bit.png", _mask_of)
        for subset in ("train", "val")
    }


def _mask_of(image: str) -> str:
    scene = image.removeprefix("leftImg8bit/").removesuffix("_leftImg8bit.png")
    return f"gtFine/{scene}_gtFine_labelIds.png"
