"""CamVid with 11 classes: 367 train, 101 val and 233 test frames of 480 × 360 pixels.

It has no background: every pixel that is not void belongs to a class. Papers report on the test
frames (SegNet, Badrinarayanan et al., TPAMI 2017, whose version of the labels this is).
"""

from __future__ import annotations

from pathlib import Path

from ciss.datasets.base import VOID, Listing, paired, value_table

CLASSES: tuple[str, ...] = (
    "background",
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
VALUES = value_table({**{value: value + 1 for value in range(11)}, 11: VOID})
UNLABELLED = (11,)
IMAGES = {"train": 367, "val": 101, "test": 233}


def list_images(root: Path) -> Listing:
    """Pair ``{train,val,test}/ID.*`` with ``{train,val,test}annot/ID.png``."""
    return {
        subset: paired(root, f"{subset}/*.*", lambda image: _mask_of(Path(image)))
        for subset in IMAGES
    }


def _mask_of(image: Path) -> str:
    return f"{image.parent}annot/{image.stem}.png"
