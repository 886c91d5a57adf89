"""CamVid with 11 classes: 367 train and 101 val frames of 480 × 360 pixels.

It has no background: every pixel that is not void belongs to a class, as in Cityscapes.
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
ORDERS: dict[str, tuple[int, ...]] = {}


def list_images(root: Path) -> Listing:
    """Pair ``{train,val}/ID.*`` with ``{train,val}annot/ID.png``."""
    return {
        subset: paired(root, f"{subset}/*.*", lambda image: _mask_of(Path(image)))
        for subset in ("train", "val")
    }


def _mask_of(image: Path) -> str:
    return f"{image.parent}annot/{image.stem}.png"
