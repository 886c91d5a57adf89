"""ADE20K as the SceneParsing benchmark ships it: 20,210 train and 2,000 val images, 150 classes.

Mask value 0 is unlabelled and serves as the background. 255 does not occur: a mask with it was
made for other code, where the classes count from 0.
"""

from __future__ import annotations

from pathlib import Path

from ciss.datasets.base import Listing, paired, value_table

# In the order of the benchmark's labels, by the first of each class's names.
_NAMES = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
    person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa,
    shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp,
    bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand,
    sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool
    table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet,
    flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair,
    boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning,
    streetlight, booth, television, airplane, dirt track, apparel, pole, land, bannister,
    escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer belt,
    canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag,
    minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle,
    lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray,
    ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass,
    clock, flag
"""
CLASSES: tuple[str, ...] = (
    "background",
    *(name.strip() for name in _NAMES.replace("\n", " ").split(",")),
)
VALUES = value_table({value: value for value in range(151)})
#: The published order b is not given here: its list is not known to us.
ORDERS: dict[str, tuple[int, ...]] = {}

_FOLDERS = {"train": "training", "val": "validation"}


def list_images(root: Path) -> Listing:
    """Pair ``images/{training,validation}/ID.jpg`` with ``annotations/…/ID.png``."""
    return {
        subset: paired(root, f"images/{folder}/*.jpg", _mask_of)
        for subset, folder in _FOLDERS.items()
    }


def _mask_of(image: str) -> str:
    return f"annotations/{image.removeprefix('images/').removesuffix('.jpg')}.png"
