"""One pass over a dataset: what is there, how large, which mask values, and what is wrong.

Splits are table look-ups on its result. Everything that could stop a training run later (missing,
truncated or mismatched files, unknown mask values) is found here and reported at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from ciss.datasets import INVALID, Dataset, list_images
from ciss.errors import CissError
from ciss.files import write_text

COLUMNS = ("subset", "image", "mask", "width", "height", "labels")
MAX_REPORTED = 20

_MASK_MODES = ("L", "P")
_JPEG_END, _JPEG_SCAN = b"\xff\xd9", b"\xff\xda"
_PNG_END = b"IEND\xae\x42\x60\x82"


class _Entry(NamedTuple):
    """What one image and its mask turned out to be; ``problems`` is empty for a good pair."""

    width: int
    height: int
    labels: str
    problems: list[str]


def build_index(dataset: Dataset, *, workers: int = 1) -> pd.DataFrame:
    """Look at every image and mask of ``dataset``, in ``workers`` processes.

    Returns one row an image, in the lists' order, with the columns ``subset`` ("train" or "val"),
    ``image`` and ``mask`` (relative to the root), ``width``, ``height`` and ``labels``: the raw
    mask values with their pixel counts, as in ``"0:1234 15:345 255:22"``. Raises one ``CissError``
    that lists what is wrong with the data, at most ``MAX_REPORTED`` lines of it.
    """
    listing = list_images(dataset)
    rows = [(subset, *pair) for subset, pairs in listing.items() for pair in pairs]
    inspect = partial(_inspect, dataset.root, dataset.lookup)
    entries = _map(inspect, [(image, mask) for _, image, mask in rows], workers)
    problems = [f"the {subset} list is empty" for subset, pairs in listing.items() if not pairs]
    problems += chain.from_iterable(entry.problems for entry in entries)
    if problems:
        raise CissError(_report(dataset, problems))
    table = [
        (*row, entry.width, entry.height, entry.labels)
        for row, entry in zip(rows, entries, strict=True)
    ]
    return pd.DataFrame(table, columns=list(COLUMNS))


def write_index(path: Path, index: pd.DataFrame) -> None:
    """Write an index as CSV, whole or not at all."""
    write_text(path, index.to_csv(index=False, lineterminator="\n"))


def read_index(path: Path) -> pd.DataFrame:
    """Read what ``write_index`` wrote; ``CissError`` where the file is not an index."""
    try:
        index = pd.read_csv(path, dtype={"labels": str}, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise CissError(f"cannot read the index {path}: {error}") from error
    if tuple(index.columns) != COLUMNS:
        raise CissError(
            f"{path} is not an index: its columns are {', '.join(map(str, index.columns))} "
            f"instead of {', '.join(COLUMNS)}; delete it to have it built again"
        )
    return index


def parse_labels(labels: pd.Series) -> tuple[npt.NDArray[np.int64], ...]:
    """Split the ``labels`` column into three int64 arrays: row, raw mask value, pixels."""
    fields = [text.split() for text in labels]
    rows = np.repeat(np.arange(len(fields)), [len(field) for field in fields])
    pairs = " ".join(chain.from_iterable(fields)).replace(":", " ").split()
    numbers = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return rows, numbers[:, 0], numbers[:, 1]


def _map(inspect: partial[_Entry], pairs: list[tuple[str, str]], workers: int) -> list[_Entry]:
    if workers <= 1:
        return [inspect(pair) for pair in pairs]
    with ProcessPoolExecutor(workers) as pool:
        return list(pool.map(inspect, pairs, chunksize=64))


def _report(dataset: Dataset, problems: list[str]) -> str:
    lines = problems[:MAX_REPORTED]
    if len(problems) > MAX_REPORTED:
        lines.append(f"and {len(problems) - MAX_REPORTED} more")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"dataset '{dataset.name}' in {dataset.root} has {count}:\n  " + "\n  ".join(lines)


def _inspect(root: Path, lookup: npt.NDArray[np.int16], pair: tuple[str, str]) -> _Entry:
    image, mask = pair
    image_size, image_problem = _image_size(root / image)
    counts, mask_size, mask_problem = _mask_counts(root / mask)
    problems = [
        f"{path}: {problem}"
        for path, problem in ((image, image_problem), (mask, mask_problem))
        if problem
    ]
    if not problems and image_size != mask_size:
        problems.append(
            f"{mask}: is {mask_size[0]} × {mask_size[1]} pixels, its image {image} is "
            f"{image_size[0]} × {image_size[1]}"
        )
    values = np.flatnonzero(counts)
    problems += _unknown_values(mask, lookup, values, counts)
    labels = " ".join(f"{value}:{counts[value]}" for value in values)
    return _Entry(*image_size, labels, problems)


def _image_size(path: Path) -> tuple[tuple[int, int], str]:
    """Return an image's (width, height) from its header, and what is wrong with it or ""."""
    try:
        with Image.open(path) as image:
            size = image.size
            if not _ends(path, image.format):
                image.load()
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        return (0, 0), _reason(error)
    return size, ""


def _ends(path: Path, format_: str | None) -> bool:
    """Whether a file has its format's end marker: far cheaper than decoding it.

    Raises ``OSError`` where a JPEG file certainly breaks off; its decoder would fill the rest with
    grey when the file is padded with zeros, as an interrupted download may be.
    """
    with path.open("rb") as file:
        file.seek(-min(path.stat().st_size, len(_PNG_END)), 2)
        tail = file.read()
        if format_ != "JPEG":
            return format_ == "PNG" and tail == _PNG_END
        if tail.endswith(_JPEG_END):
            return True
        file.seek(0)
        content = file.read()
    if content.rfind(_JPEG_END) < content.rfind(_JPEG_SCAN):
        raise OSError("truncated")
    return False


def _mask_counts(path: Path) -> tuple[npt.NDArray[np.int64], tuple[int, int], str]:
    """Return pixels of each value (int64[256]), (width, height), and what is wrong or ""."""
    nothing = np.zeros(256, dtype=np.int64)
    try:
        with Image.open(path) as mask:
            if mask.mode not in _MASK_MODES:
                return (
                    nothing,
                    mask.size,
                    f"is of mode {mask.mode}, a mask must hold one 8-bit label a pixel "
                    "(grey or palette PNG)",
                )
            values = np.frombuffer(mask.tobytes(), dtype=np.uint8)
            return np.bincount(values, minlength=256), mask.size, ""
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        return nothing, (0, 0), _reason(error)


def _unknown_values(
    mask: str,
    lookup: npt.NDArray[np.int16],
    values: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
) -> Iterator[str]:
    unknown = values[lookup[values] == INVALID]
    if len(unknown):
        found = ", ".join(f"{value} ({counts[value]} pixels)" for value in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        yield f"{mask}: unknown mask value {found}{more}; known are {_ranges(lookup)}"


def _ranges(lookup: npt.NDArray[np.int16]) -> str:
    """Spell the known values: ``0-20, 255``."""
    known = np.flatnonzero(lookup != INVALID)
    runs = np.split(known, np.flatnonzero(np.diff(known) > 1) + 1)
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    if isinstance(error, Image.UnidentifiedImageError):
        return "is not an image that can be read"
    return f"cannot be read: {getattr(error, 'strerror', None) or error}"
