"""Cityscapes, fine annotations: 2,975 train and 500 val street scenes.

As in the published protocol the label id 0 (unlabelled) is the background, and the other ids
outside the 19 evaluation classes are void.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

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
#: label ids; the licence plate's, -1, is not drawn
OCCURRING = tuple(range(34))
UNLABELLED = (0,)
IMAGES = {"train": 2975, "val": 500}


def list_images(root: Path) -> Listing:
    """Pair ``leftImg8bit/{train,val}/CITY/*`` with ``gtFine/{train,val}/CITY/*_labelIds.png``."""
    return {
        subset: paired(root, f"leftImg8bit/{subset}/*/*_leftImg8bit.png", _mask_of)
        for subset in ("train", "val")
    }


def explain(mode: str, values: npt.NDArray[np.int64]) -> str:
    """Say what may have happened to a mask."""
    if mode.startswith("RGB"):
        return "the *_gtFine_color.png files; take *_gtFine_labelIds.png"
    if mode.startswith("I"):
        return "the *_gtFine_instanceIds.png files; take *_gtFine_labelIds.png"
    if 255 in values and values[values != 255].max(initial=0) < len(_EVALUATED):
        return "trainIds, where 255 is void; take *_gtFine_labelIds.png as they were published"
    return ""


def _mask_of(image: str) -> str:
    scene = image.removeprefix("leftImg8bit/").removesuffix("_leftImg8bit.png")
    return f"gtFine/{scene}_gtFine_labelIds.png"
