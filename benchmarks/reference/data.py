"""The images of a step, found as class-incremental code bases do: by looking at every mask."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path

import numpy as np
from PIL import Image

#: (image, mask), relative to the root
Pair = tuple[str, str]


def images_that_show(
    root: Path, pairs: list[Pair], lookup: np.ndarray, wanted: Container[int]
) -> list[Pair]:
    """Decode every mask and keep the images with a class of ``wanted``.

    ``lookup``: the class of each mask value, in learning order.
    """
    found = []
    for image, mask in pairs:
        with Image.open(root / mask) as picture:
            labels = lookup[np.unique(np.array(picture))]
        if any(int(label) in wanted for label in labels):
            found.append((image, mask))
    return found
