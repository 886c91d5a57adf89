"""One pass over a dataset: what is there, how large, which mask values, and what is wrong.

Splits are table look-ups on its result. Everything that could stop a training run later, or make
its numbers mean something else than they seem to (another release, masks decoded wrongly, an image
in train and val), is found here and reported at once.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

from ciss.datasets import Dataset, Listing, get_kind, list_images
from ciss.errors import CissError
from ciss.files import write_text
from ciss.masks import MaskRules, read_mask
from ciss.processes import in_processes
from ciss.row_files import read_rows, write_rows

COLUMNS = ("subset", "image", "mask", "width", "height", "labels")
#: lines of a report under each heading
MAX_REPORTED = 5

MISSING = "missing files"
EMPTY_FILE = "empty files (0 bytes)"
UNREADABLE = "files that are not images or cannot be read"
TRUNCATED = "truncated or damaged files"
SIZE = "masks of another size than their image"
NOT_8_BIT = "images of more than 8 bits"
TOO_LARGE = (
    "files of so many pixels that they are not read; cut them into tiles, or make them smaller"
)
EMPTY_LIST = "empty lists"
RELEASE = "lists that are not those of the published release"
REPEATED = "images that a list has more than once"
SHARED = "images in more than one list"
NO_IMAGE = "masks without an image (or, where both lie in one folder, images without a mask)"

#: pairs that a worker process takes at a time, and that an interruption may lose
_CHUNK = 16
_VALUE = "(?:1?[0-9]?[0-9]|2[0-4][0-9]|25[0-5]):[0-9]{1,12}"
_LABELS = f"{_VALUE}(?: {_VALUE})*"
_JPEG_END, _JPEG_SCAN = b"\xff\xd9", b"\xff\xda"
_PNG_END = b"IEND\xae\x42\x60\x82"
_EXIF_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)


class Problem(NamedTuple):
    """Something that is wrong: under which heading it is reported, where, and details."""

    heading: str
    where: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.detail}" if self.detail else self.where


class _Entry(NamedTuple):
    """What one image and its mask turned out to be; ``problems`` is empty for a good pair."""

    width: int
    height: int
    labels: str
    problems: list[Problem]


def build_index(
    dataset: Dataset,
    *,
    workers: int = 1,
    is_subset: bool = False,
    progress: Path | None = None,
    full_report: Path | None = None,
    stop: Callable[[], str | None] = lambda: None,
) -> pd.DataFrame:
    """Look at every image and mask of ``dataset``, in ``workers`` processes.

    Returns one row an image, in the lists' order, with the columns ``subset`` ("train", "val" or
    "test"), ``image`` and ``mask`` (relative to the root), ``width``, ``height`` and ``labels``:
    the raw mask values with their pixel counts, as in ``"0:1234 15:345 255:22"``.

    Raises one ``CissError`` with all that is wrong with the data, at most ``MAX_REPORTED`` lines
    of each kind; the rest is written to the file ``full_report``. A published release must be
    complete unless ``is_subset``. ``progress`` is a file that keeps what was looked at: the next
    call looks only at what is missing or has another size or modification time. Who writes the
    index removes it then. When ``stop`` returns a reason, the work ends with a ``CissError``.
    """
    listing = list_images(dataset)
    rows = [(subset, *pair) for subset, pairs in listing.items() for pair in pairs]
    entries = _look_at_all(dataset, [row[1:] for row in rows], workers, progress, stop)
    problems = [*_list_problems(dataset, listing, is_subset)]
    problems += chain.from_iterable(entries[row[1:]].problems for row in rows)
    problems = _with_nearest(dataset.root, problems)
    if problems:
        # An image in two lists is looked at once, and reported once.
        raise CissError(_report(dataset, list(dict.fromkeys(problems)), full_report))
    table = [(*row, *entries[row[1:]][:3]) for row in rows]
    if full_report is not None:
        full_report.unlink(missing_ok=True)
    return pd.DataFrame(table, columns=list(COLUMNS))


def write_index(path: Path, index: pd.DataFrame) -> None:
    """Write an index as CSV, whole or not at all."""
    write_rows(path, index, COLUMNS)


def read_index(path: Path) -> pd.DataFrame:
    """Read what ``write_index`` wrote; ``CissError`` where the file is not a whole index."""
    index = read_rows(path, "index", COLUMNS, numbers=("width", "height"))
    wrong = index[~index["labels"].str.fullmatch(_LABELS)]
    if wrong.empty:
        rows, _, pixels = parse_labels(index["labels"])
        counted = np.bincount(rows, pixels, len(index))
        wrong = index[counted != index["width"] * index["height"]]
    if len(wrong):
        raise CissError(
            f"the index {path} is damaged: the labels of {wrong['image'].iloc[0]} are "
            f"'{wrong['labels'].iloc[0]}', which are not its mask's values and their pixels; copy "
            "it again, or delete it to have it built again"
        )
    return index


def parse_labels(labels: pd.Series) -> tuple[npt.NDArray[np.int64], ...]:
    """Split the ``labels`` column into three int64 arrays: row, raw mask value, pixels."""
    fields = [text.split() for text in labels]
    rows = np.repeat(np.arange(len(fields)), [len(field) for field in fields])
    pairs = " ".join(chain.from_iterable(fields)).replace(":", " ").split()
    numbers = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return rows, numbers[:, 0], numbers[:, 1]


# --- Lists ---------------------------------------------------------------------------------


def _list_problems(dataset: Dataset, listing: Listing, is_subset: bool) -> Iterator[Problem]:
    described = get_kind(dataset.kind)
    hint = f"; if a subset is meant, set datasets.{dataset.name}.subset: true"
    if not is_subset:
        used = {mask for pairs in listing.values() for _, mask in pairs}
        for mask in sorted({*described.list_masks(dataset.root, **dataset.files)} - used):
            yield Problem(NO_IMAGE + hint, mask)
    for subset, pairs in listing.items():
        published = described.IMAGES.get(subset)
        if not pairs:
            yield Problem(EMPTY_LIST, subset)
        elif published is not None and len(pairs) != published and not is_subset:
            known = described.OTHER_LISTS.get(len(pairs), "") if subset == "train" else ""
            known = f" ({known})" if known else ""
            detail = f"{len(pairs):,} images{known}, the release has {published:,}"
            yield Problem(RELEASE + hint, subset, detail)
        counts = Counter(image for image, _ in pairs)
        for image, times in counts.items():
            if times > 1:
                yield Problem(REPEATED, image, f"{times} times in {subset}")
    lists = [(subset, {image for image, _ in pairs}) for subset, pairs in listing.items()]
    for number, (subset, images) in enumerate(lists):
        for other, others in lists[number + 1 :]:
            for image in sorted(images & others):
                yield Problem(SHARED, image, f"in {subset} and {other}")


def _report(dataset: Dataset, problems: list[Problem], full_report: Path | None) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems):,} problems"
    title = f"dataset '{dataset.name}' in {dataset.root} has {count}:"
    if max(Counter(problem.heading for problem in problems).values()) <= MAX_REPORTED:
        return "\n".join([title, *_sections(problems, len(problems))])
    lines = [title, *_sections(problems, MAX_REPORTED)]
    if full_report is not None:
        write_text(full_report, "\n".join([title, *_sections(problems, len(problems)), ""]))
        lines.append(f"all of them are listed in {full_report}")
    return "\n".join(lines)


def _sections(problems: Iterable[Problem], most: int) -> Iterator[str]:
    """Group problems by heading, each heading with its number of problems."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(problem.heading, []).append(problem)
    for heading, found in groups.items():
        yield f"  {len(found):,} {heading}:"
        yield from (f"    {problem}" for problem in found[:most])
        if len(found) > most:
            yield f"    and {len(found) - most:,} more"


# --- Images and masks ----------------------------------------------------------------------


def _look_at_all(
    dataset: Dataset,
    pairs: list[tuple[str, str]],
    workers: int,
    progress: Path | None,
    stop: Callable[[], str | None],
) -> dict[tuple[str, str], _Entry]:
    """Inspect each pair, those of an interrupted attempt only where they have changed."""
    rules = MaskRules.of(dataset)
    title = _progress_title(dataset, rules)
    entries = {} if progress is None else _known(progress, title, dataset.root, set(pairs))
    left = [pair for pair in dict.fromkeys(pairs) if pair not in entries]
    inspect = partial(_inspect, dataset.root, rules)
    with (
        _appending(progress, title, fresh=not entries) as file,
        # An error here must end the processes before it goes on.
        closing(in_processes(inspect, left, workers, _CHUNK)) as results,
    ):
        for pair, (stamp, entry) in zip(left, results, strict=True):
            entries[pair] = entry
            if file is not None and not entry.problems:
                _add_line(file, json.dumps([*pair, *stamp, *entry[:3]]))
            if (reason := stop()) is not None:
                raise CissError(
                    f"interrupted by {reason} after {len(entries)} of {len(pairs)} images; start "
                    "again to go on from there"
                )
    return entries


def _progress_title(dataset: Dataset, rules: MaskRules) -> str:
    """Name the data and the checks: progress of others is of no use."""
    values = hashlib.sha256(rules.occurring.tobytes()).hexdigest()[:16]
    return json.dumps(["index", 1, str(dataset.root.absolute()), dataset.kind, values])


def _known(
    progress: Path, title: str, root: Path, pairs: set[tuple[str, str]]
) -> dict[tuple[str, str], _Entry]:
    """Read the entries of an interrupted attempt whose files are still the same."""
    entries = {}
    with suppress(OSError, UnicodeDecodeError):
        first, *lines = progress.read_text(encoding="utf-8").splitlines()
        for line in lines if first == title else []:
            # The last line may be torn, or follow a torn one.
            with suppress(ValueError, OSError):
                image, mask, *stamp, width, height, labels = json.loads(line)
                if (image, mask) in pairs and stamp == _stamp(root, image, mask):
                    entries[image, mask] = _Entry(width, height, labels, [])
    return entries


@contextmanager
def _appending(progress: Path | None, title: str, fresh: bool) -> Iterator[IO[bytes] | None]:
    """Yield a file to add lines to, which holds each as soon as it is added."""
    if progress is None:
        yield None
        return
    progress.parent.mkdir(parents=True, exist_ok=True)
    with progress.open("wb" if fresh else "ab", buffering=0) as file:
        _add_line(file, title if fresh else "")
        yield file


def _add_line(file: IO[bytes], text: str) -> None:
    with suppress(OSError):  # a full disk is no reason to stop reading
        file.write(f"{text}\n".encode())


def _stamp(root: Path, image: str, mask: str) -> list[int]:
    """Size and modification time of both files; ``OSError`` where one is missing."""
    stats = [(root / path).stat() for path in (image, mask)]
    return [number for stat in stats for number in (stat.st_size, stat.st_mtime_ns)]


def _inspect(root: Path, rules: MaskRules, pair: tuple[str, str]) -> tuple[list[int], _Entry]:
    """Return what the pair's files were when they were read, and what is in them."""
    image, mask = pair
    stamp: list[int] = []
    with suppress(OSError):
        stamp = _stamp(root, image, mask)
    problems: list[Problem] = []
    size, turned, labels = (0, 0), False, ""
    try:
        size, mode, turned = _image_header(root / image)
        if mode.startswith(("I", "F")):
            problems.append(
                Problem(NOT_8_BIT, image, f"mode {mode}; save it with 8 bits a channel")
            )
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        problems.append(_unreadable(root, image, error))
    try:
        content = read_mask(root / mask, rules)
    except Exception as error:
        problems.append(_unreadable(root, mask, error))
    else:
        labels = " ".join(f"{v}:{content.counts[v]}" for v in np.flatnonzero(content.counts))
        problems += [Problem(heading, mask, detail) for heading, detail in content.problems]
        mask_size = (content.width, content.height)
        if size != (0, 0) and mask_size != size:
            hint = (
                ", and its EXIF data ask for it to be turned, which is not done" if turned else ""
            )
            problems.append(
                Problem(
                    SIZE,
                    mask,
                    f"{mask_size[0]} × {mask_size[1]} pixels, its image {image} is "
                    f"{size[0]} × {size[1]}{hint}",
                )
            )
    return stamp, _Entry(*size, labels, problems)


def _unreadable(root: Path, path: str, error: Exception) -> Problem:
    if isinstance(error, FileNotFoundError):
        return Problem(MISSING, path)
    if isinstance(error, Image.DecompressionBombError):
        return Problem(TOO_LARGE, path, f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels")
    with suppress(OSError):
        if (root / path).stat().st_size == 0:
            return Problem(EMPTY_FILE, path)
    if isinstance(error, Image.UnidentifiedImageError):
        return Problem(UNREADABLE, path, "of no known image format")
    reason = str(getattr(error, "strerror", None) or error)
    if isinstance(error, OSError) and error.errno is not None:
        return Problem(UNREADABLE, path, reason)
    return Problem(TRUNCATED, path, reason)


def _with_nearest(root: Path, problems: list[Problem]) -> list[Problem]:
    """Name the files that look like missing ones: other systems take the two for one."""
    folders: dict[str, dict[str, str]] = {}
    told = []
    for problem in problems:
        folder, _, name = problem.where.rpartition("/")
        if problem.heading == MISSING:
            if folder not in folders:
                folders[folder] = _names(root / folder)
            if other := folders[folder].get(_folded(name)):
                detail = f"there is {other}, of other upper and lower case or encoding of accents"
                problem = problem._replace(detail=detail)
        told.append(problem)
    return told


def _names(folder: Path) -> dict[str, str]:
    """Return the files in a folder by what is the same in all spellings of their names."""
    with suppress(OSError):
        return {_folded(path.name): path.name for path in folder.iterdir()}
    return {}


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _image_header(path: Path) -> tuple[tuple[int, int], str, bool]:
    """Return an image's (width, height), its mode, and whether EXIF wants it turned by 90°.

    The pixels are decoded only where the file does not have its format's end.
    """
    with Image.open(path) as image:
        if not _ends(path, image.format):
            image.load()
        if 0 in image.size:
            raise OSError("has no pixels")
        turned = image.format == "JPEG" and image.getexif().get(_EXIF_ORIENTATION) in _TURNED
        return image.size, image.mode, turned


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
        raise OSError("breaks off")
    return False
