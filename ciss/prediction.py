"""Segmenting a folder of a user's own images with a finished model.

Images keep their own size and lie the way a viewer shows them (EXIF orientation). Each gives a
palette PNG of class values and an overlay of the classes' colours; ``classes.csv`` says what the
values are, ``images.csv`` what was found in each image.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ciss.datasets import BACKGROUND, VOID, get_kind, kinds
from ciss.datasets.voc import PALETTE
from ciss.errors import CissError
from ciss.evaluation import segment
from ciss.files import replacing, write_text
from ciss.flags import values_from
from ciss.images import Pixels, read_mask
from ciss.models import SegmentationNetwork
from ciss.photos import Photo, UnreadableError, read_photo
from ciss.runtime import is_out_of_memory

#: what the values of masks are: the data set's own mask values, or positions in the learning order
VALUES = ("dataset", "learning")
MASKS, OVERLAYS = "masks", "overlays"
CLASSES_TABLE, IMAGES_TABLE = "classes.csv", "images.csv"

#: pixels that count as one image of a batch; larger images count as several
_UNIT = 512 * 512
#: entry of a mask's PNG that says what it was made of
_MADE_OF = "ciss"
_JPEG_QUALITY = 90


@dataclass(frozen=True)
class Legend:
    """What a model's outputs are called, and how they are written: an entry for each output.

    ``dataset_values`` is empty where the data set's mask values are not known.
    """

    names: tuple[str, ...]
    steps: tuple[int, ...]
    dataset_values: tuple[int, ...]
    #: uint8 [N, 3]
    colours: Pixels
    #: what masks hold: uint8 [N]
    values: Pixels

    def palette(self) -> Pixels:
        """Colours of the masks' values, uint8 [256, 3]; black where there is no class."""
        colours = np.zeros((256, 3), np.uint8)
        colours[self.values] = self.colours
        return colours

    def csv(self) -> str:
        """Return the legend as a table, a row for each output."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("value", "name", "label", "dataset_value", "step", "colour"))
        own = self.dataset_values or [""] * len(self.names)
        columns = (self.values.tolist(), self.names, range(len(self.names)), own, self.steps)
        for row, colour in zip(zip(*columns, strict=True), self.colours.tolist(), strict=True):
            writer.writerow((*row, "#{:02x}{:02x}{:02x}".format(*colour)))
        return text.getvalue()


def class_names(metadata: Mapping[str, Any], n_classes: int, path: Path) -> tuple[str, ...]:
    """Return the names of a model's outputs from its header.

    Raises ``CissError`` where the header has none: the network is not a trained model.
    """
    names = metadata.get("classes")
    if not isinstance(names, list) or len(names) != n_classes:
        what = "before its training" if "initialisation" in metadata else "without class names"
        raise CissError(f"{path} holds a network {what}; give the model.safetensors of a step")
    return tuple(names)


def legend_of(
    network: SegmentationNetwork, metadata: Mapping[str, Any], path: Path, values: str = VALUES[0]
) -> Legend:
    """Describe the outputs of the model in ``path`` by its header; ``values``: of ``VALUES``.

    Where the header does not name the kind of data set, as those of older versions, a data set
    called as a kind is taken to be of it, and for another the values are those of the learning
    order. Raises ``CissError`` for an unknown ``values``, for a network without class names, and
    for the values of a class that the data set does not have.
    """
    if values not in VALUES:
        raise CissError(f"prediction.values is '{values}'; choose one of {', '.join(VALUES)}")
    names = class_names(metadata, network.n_classes, path)
    kind = metadata.get("kind", metadata.get("dataset"))
    own: tuple[int, ...] = ()
    if kind in kinds():
        absent = {*names} - {*(get_kind(kind).CLASSES or names)}
        if not absent:
            own = dataset_values(kind, names, metadata)
        elif values == VALUES[0]:
            raise CissError(
                f"{path} has classes that data sets of kind '{kind}' do not have "
                f"({', '.join(sorted(absent))}); set prediction.values to {VALUES[1]}"
            )
    counts = network.classes_per_step
    steps = tuple(step for step, count in enumerate(counts) for _ in range(count))
    labels = np.arange(len(names), dtype=np.uint8)
    published = get_kind(kind).PALETTE if own else None
    colours = PALETTE[labels] if published is None else published[list(own)]
    colours[BACKGROUND] = 0
    chosen = np.array(own, np.uint8) if own and values == VALUES[0] else labels
    return Legend(names, steps, own, colours, chosen)


def dataset_values(kind: str, names: Sequence[str], metadata: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the value that each of ``names`` has in a data set's masks; the first of several.

    ``names`` begin with the background. Where it has no value of its own, it is that of unlabelled
    pixels, or else of void.
    """
    described = get_kind(kind)
    if described.CLASSES is None:
        given = values_from(metadata.get("values") or [])
        given.setdefault("background", [VOID if any(0 in raw for raw in given.values()) else 0])
        return tuple(given.get(name, [label])[0] for label, name in enumerate(names))
    labels = [described.CLASSES.index(name) for name in names[1:]]
    found = [described.VALUES.tolist().index(label) for label in labels]
    background = [*described.UNLABELLED, *np.flatnonzero(described.VALUES == BACKGROUND), VOID]
    return int(background[0]), *found


class Segmented(NamedTuple):
    """An image that has its mask: pixels of each output of the model, int64 [N]."""

    photo: Photo
    counts: npt.NDArray[np.int64]


def batches(found: Sequence[Photo], batch: int) -> list[list[Photo]]:
    """Put images of one size together: as many as ``batch`` images of 512 × 512 have pixels."""
    by_size: dict[tuple[int, int], list[Photo]] = {}
    for photo in found:
        by_size.setdefault((photo.width, photo.height), []).append(photo)
    made = []
    for (width, height), same in by_size.items():
        count = max(batch * _UNIT // max(width * height, _UNIT), 1)
        made += [same[first : first + count] for first in range(0, len(same), count)]
    return made


def overlay(pixels: Pixels, labels: Pixels, colours: Pixels, opacity: float) -> Pixels:
    """Tint an image, uint8 [H, W, 3], with its labels' colours; background stays as it is."""
    mixed = (1 - opacity) * pixels + opacity * colours[labels]
    return np.where((labels == BACKGROUND)[:, :, None], pixels, mixed.round()).astype(np.uint8)


@dataclass(frozen=True)
class Output:
    """Where and how predictions are written; ``model`` identifies the checkpoint.

    ``opacity`` of the overlays; 0 writes none.
    """

    folder: Path
    legend: Legend
    opacity: float
    model: str

    def mask(self, photo: Photo) -> Path:
        """Path of an image's mask."""
        return self.folder / MASKS / f"{photo.stem}.png"

    def overlay(self, photo: Photo) -> Path:
        """Path of an image's overlay."""
        return self.folder / OVERLAYS / f"{photo.stem}.jpg"

    def write(self, photo: Photo, pixels: Pixels, labels: Pixels) -> Segmented:
        """Write an image's overlay, then its mask, each whole or not at all."""
        if self.opacity:
            tinted = Image.fromarray(overlay(pixels, labels, self.legend.colours, self.opacity))
            with replacing(self.overlay(photo)) as temporary:
                tinted.save(temporary, "JPEG", quality=_JPEG_QUALITY)
        mask = Image.fromarray(self.legend.values[labels])
        mask.putpalette(self.legend.palette().tobytes())
        about = PngInfo()
        about.add_text(_MADE_OF, self._made_of(photo))
        with replacing(self.mask(photo)) as temporary:
            mask.save(temporary, "PNG", pnginfo=about)
        return Segmented(photo, np.bincount(labels.ravel(), minlength=len(self.legend.names)))

    def finished(self, photo: Photo) -> Segmented | None:
        """Return what an earlier run made of the same image with the same model and settings."""
        path = self.mask(photo)
        try:
            with Image.open(path) as mask:
                if getattr(mask, "text", {}).get(_MADE_OF) != self._made_of(photo):
                    return None
            if self.opacity and not self.overlay(photo).is_file():
                return None
            counts = np.bincount(read_mask(path).ravel(), minlength=256)
        except (OSError, SyntaxError, CissError):
            return None
        return Segmented(photo, counts[self.legend.values])

    def _made_of(self, photo: Photo) -> str:
        """Digest of model, settings and the image's file, known by its size and time."""
        stat = photo.path.stat()
        legend = self.legend
        parts = (self.model, legend.csv(), self.opacity, photo.name, stat.st_size, stat.st_mtime_ns)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def write_tables(self, done: Iterable[Segmented]) -> None:
        """Write ``classes.csv`` and ``images.csv``, which has the shares of classes in percent."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("image", "mask", "overlay", "width", "height", "classes"))
        for photo, counts in sorted(done, key=lambda one: one.photo.name):
            shares = 100 * counts / counts.sum()
            shown = "; ".join(
                f"{self.legend.names[label]} {shares[label]:.2f}"
                for label in np.argsort(-shares, kind="stable")
                if counts[label]
            )
            files = [self.mask(photo), self.overlay(photo)] if self.opacity else [self.mask(photo)]
            paths = [path.relative_to(self.folder).as_posix() for path in files]
            paths += [""] * (2 - len(paths))
            writer.writerow((photo.name, *paths, photo.width, photo.height, shown))
        write_text(self.folder / CLASSES_TABLE, self.legend.csv())
        write_text(self.folder / IMAGES_TABLE, text.getvalue())


@torch.inference_mode()
def predict_all(
    network: SegmentationNetwork,
    found: Sequence[Photo],
    output: Output,
    device: torch.device,
    *,
    batch: int,
    workers: int,
    failed: Callable[[str, str], None],
) -> Iterator[Segmented]:
    """Segment images and write their files; yields each when that is done.

    ``workers`` threads read ahead and as many write behind. ``failed`` is told name and reason of
    each image that cannot be segmented; the others go on.
    """
    network = network.to(device).eval()
    with ThreadPoolExecutor(max(workers, 1), "images") as pool:
        reading: deque[tuple[list[Photo], list[Future[Pixels]]]] = deque()
        writing: deque[Future[Segmented]] = deque()
        waiting = iter(batches(found, batch))
        try:
            while True:
                while len(reading) < 2 and (group := next(waiting, None)) is not None:
                    reading.append((group, [pool.submit(read_photo, p.path) for p in group]))
                if not reading:
                    break
                group, futures = reading.popleft()
                read = dict(_read(group, futures, failed))
                for photo, labels in _segmented(network, read, device, failed):
                    writing.append(pool.submit(output.write, photo, read[photo], labels))
                while len(writing) > 2 * max(workers, 1):
                    yield writing.popleft().result()
            while writing:
                yield writing.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _read(
    group: Sequence[Photo],
    futures: Sequence[Future[Pixels]],
    failed: Callable[[str, str], None],
) -> Iterator[tuple[Photo, Pixels]]:
    for photo, future in zip(group, futures, strict=True):
        try:
            pixels = future.result()
        except UnreadableError as error:
            failed(photo.name, str(error))
            continue
        if pixels.shape[:2] == (photo.height, photo.width):
            yield photo, pixels
        else:
            failed(photo.name, "has changed since it was listed; start again")


def _segmented(
    network: SegmentationNetwork,
    read: Mapping[Photo, Pixels],
    device: torch.device,
    failed: Callable[[str, str], None],
) -> Iterator[tuple[Photo, Pixels]]:
    """Segment images of one size; where memory does not do for all of them, in halves."""
    group = list(read)
    if not group:
        return
    pixels = torch.from_numpy(np.stack([read[photo] for photo in group])).permute(0, 3, 1, 2)
    try:
        labels = segment(network, pixels.to(device)).to(torch.uint8).cpu().numpy()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        labels = None
    if labels is not None:
        yield from zip(group, labels, strict=True)
    elif len(group) > 1:
        middle = len(group) // 2
        for part in (group[:middle], group[middle:]):
            yield from _segmented(network, {p: read[p] for p in part}, device, failed)
    else:
        size = f"{group[0].width} × {group[0].height}"
        failed(group[0].name, f"of {size} pixels does not fit into the memory; scale it down")
