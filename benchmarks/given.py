"""What `make bench` gives every benchmark: images, and how often to repeat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ciss.datasets import Dataset, open_dataset
from ciss.datasets.shapes import generate

#: generated where no images are given: about as many pixels as a VOC image of 500 × 333
GENERATED = {"train": 240, "val": 48, "size": 400, "seed": 0}


@dataclass(frozen=True)
class Given:
    """What benchmarks work on."""

    dataset: Dataset
    #: of each comparison that takes below a second a turn
    rounds: int
    #: for whatever a benchmark writes; gone afterwards
    folder: Path
    #: smallest sizes that still do everything, for the tests
    tiny: bool = False


@contextmanager
def given(
    root: Path | None, kind: str, rounds: int, *, tiny: bool = False, workers: int = 1
) -> Iterator[Given]:
    """Open the images in ``root``, or generate some where it is ``None``."""
    with TemporaryDirectory(prefix="ciss-bench-") as name:
        folder = Path(name)
        if root is None:
            kind, root = "shapes", folder / "shapes"
            chosen = GENERATED | ({"train": 24, "val": 8, "size": 64} if tiny else {})
            generate(root, **chosen, workers=workers)
        yield Given(open_dataset(kind, kind, root), rounds, folder, tiny)
