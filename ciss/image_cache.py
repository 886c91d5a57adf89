"""A data set's training images and masks, decoded once and kept in one memory-mapped file.

Decoding is most of the work of reading an image, and a training reads each one dozens of times.
The file holds the pixels as decoded, at their own size: crops stay random, and batches have the
same bits with it and without. All steps, methods, seeds and jobs of a data set share it.

Its name holds a digest of which images there are, their sizes in bytes and modification times: a
changed data set has another file, and a stale one is never read.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pandas as pd

from ciss.errors import CissError
from ciss.files import remove_partial, replacing
from ciss.fingerprint import stat_files
from ciss.images import Pixels, read_pair
from ciss.index import read_index
from ciss.runtime import log
from ciss.units import size_text

Pair = tuple[str, str]

#: space that must be left on the disk, for what else is written there
MARGIN = 2 * 2**30

_VERSION = 1
_PAGE = 4096
_LENGTH = 8  # bytes at the beginning that say how long the header is
_CHANNELS = 4  # three of the image, one of the mask


class ImageCache:
    """Reads pairs from a cache file, and from the images' own files what is not in it."""

    def __init__(self, path: Path, root: Path) -> None:
        header = _read_header(path)
        self.path = path
        self.root = root
        self.pairs = {(image, mask): number for number, (image, mask) in enumerate(header["pairs"])}
        self.sizes: list[tuple[int, int]] = header["sizes"]
        self.places = _places(self.sizes, header["start"])
        if path.stat().st_size != self.places[-1]:
            raise ValueError("its size is wrong")
        self.content = np.asarray(np.memmap(path, np.uint8, mode="r"))

    def read_pair(self, pair: Pair) -> tuple[Pixels, Pixels]:
        """Return an image, uint8 [H, W, 3], and its mask's raw values, uint8 [H, W]."""
        number = self.pairs.get(pair)
        if number is None:
            return read_pair(self.root, pair)
        width, height = self.sizes[number]
        start = self.places[number]
        middle = start + 3 * width * height
        image = self.content[start:middle].reshape(height, width, 3)
        return image, self.content[middle : middle + width * height].reshape(height, width)


def cache_folder(spelled: str) -> Path:
    """Return the folder that ``runtime.cache`` means here, with ~ and variables filled in.

    Raises ``CissError`` for a variable that is not set.
    """
    expanded = os.path.expandvars(spelled)
    if "$" in expanded:
        raise CissError(
            f"runtime.cache is '{spelled}', but this job's environment lacks a variable of it; "
            "write the folder out, or set runtime.cache to none"
        )
    return Path(expanded).expanduser()


def open_cache(
    spelled: str,
    index: Path | None,
    name: str,
    root: Path,
    *,
    workers: int = 1,
    stopped: Callable[[], str | None] = lambda: None,
) -> ImageCache | None:
    """Open the cache that a training's ``--cache`` asks for, written where there is none.

    ``index`` is the path of the data set's index; without the file there is a warning and no cache.
    The rest is as in ``cached_images``.
    """
    folder = cache_folder(spelled)
    if index is None or not index.is_file():
        log.warning("no cache of decoded images: --index %s is no file", index)
        return None
    cache = cached_images(folder, name, root, read_index(index), workers=workers, stopped=stopped)
    if cache is not None:
        log.info("decoded images from %s", cache.path)
    return cache


def cached_images(
    folder: Path,
    name: str,
    root: Path,
    index: pd.DataFrame,
    *,
    workers: int = 1,
    stopped: Callable[[], str | None] = lambda: None,
) -> ImageCache | None:
    """Open the cache of a data set's training images in ``folder``; write it where there is none.

    ``index`` is the data set's index, ``workers`` threads decode. Where another job is writing the
    file, wait for it. Returns ``None``, after a warning, where the disk has no room for it: the
    training then decodes as without a cache. Raises ``CissError`` for a folder that cannot be
    written, an image that cannot be read, and when ``stopped`` gives a reason to stop.
    """
    rows = index[index["subset"] == "train"]
    pairs = list(zip(rows["image"], rows["mask"], strict=True))
    sizes = list(zip(rows["width"].tolist(), rows["height"].tolist(), strict=True))
    path = folder / f"{name}-{_digest(root, pairs)}.images"
    if cache := _opened(path, root):
        return cache
    _check_folder(folder)
    try:
        with _lock(folder / f".{path.name}.lock", stopped) as alone:
            if cache := _opened(path, root):
                return cache
            if alone:
                remove_partial(path)
            if not _fits(path, sizes):
                return None
            _write(path, root, pairs, sizes, workers, stopped)
    except OSError as error:
        log.warning("no cache of decoded images: writing %s failed (%s)", path, error.strerror)
        return None
    return _opened(path, root)


def _check_folder(folder: Path) -> None:
    reason = "no folder that can be written"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return
    except OSError as error:
        reason = error.strerror or reason
    raise CissError(
        f"cannot keep decoded images in {folder}: {reason}; set runtime.cache to a folder that can "
        "be written, or to none"
    )


def _digest(root: Path, pairs: Sequence[Pair]) -> str:
    """Name what is cached: which files, their sizes and modification times, and the format."""
    stats = stat_files(root, {path for pair in pairs for path in pair})
    digest = blake2b(f"{_VERSION}\n".encode(), digest_size=8)
    for pair in pairs:
        digest.update("".join(f"{path}\0{stats[path]}\n" for path in pair).encode())
    return digest.hexdigest()


def _opened(path: Path, root: Path) -> ImageCache | None:
    try:
        return ImageCache(path, root)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("the cache %s is damaged (%s): writing it anew", path, error)
        return None


def _fits(path: Path, sizes: Sequence[tuple[int, int]]) -> bool:
    """Say whether the disk has room for the file, with a warning where it has not."""
    needed = _places(sizes, 0)[-1]
    free = shutil.disk_usage(path.parent).free
    if needed + MARGIN <= free:
        return True
    log.warning(
        "no cache of decoded images: %s would need %s and has %s free, of which %s must be left; "
        "make room, or set runtime.cache to a folder on a larger disk or to none",
        path,
        size_text(needed),
        size_text(free),
        size_text(MARGIN),
    )
    return False


def _write(
    path: Path,
    root: Path,
    pairs: Sequence[Pair],
    sizes: Sequence[tuple[int, int]],
    workers: int,
    stopped: Callable[[], str | None],
) -> None:
    header = _header(pairs, sizes)
    places = _places(sizes, len(header))
    log.info("writing %d decoded images, %s, to %s", len(pairs), size_text(places[-1]), path)
    begun = time.monotonic()
    with replacing(path) as temporary, temporary.open("r+b") as file:
        _write_at(file.fileno(), header, 0)
        store = partial(_store, file.fileno(), root)
        with ThreadPoolExecutor(max(workers, 1), "cache") as pool:
            try:
                for _ in pool.map(store, pairs, sizes, places):
                    if reason := stopped():
                        raise CissError(
                            f"stopped by {reason} while the cache {path} was written; run it again"
                        )
            finally:
                pool.shutdown(cancel_futures=True)
    log.info("written in %.0f s", time.monotonic() - begun)


def _store(file: int, root: Path, pair: Pair, size: tuple[int, int], place: int) -> None:
    image, values = read_pair(root, pair)
    if image.shape[1::-1] != size:
        raise CissError(
            f"cannot use {root / pair[0]}: it is {image.shape[1]} × {image.shape[0]} pixels, the "
            f"index says {size[0]} × {size[1]}; delete the index to have everything checked again"
        )
    _write_at(file, np.ascontiguousarray(image).data.cast("B"), place)
    _write_at(file, np.ascontiguousarray(values).data.cast("B"), place + image.size)


def _write_at(file: int, content: bytes | memoryview, place: int) -> None:
    view = memoryview(content)
    while view:
        # Not through the map: a disk that is full would kill the process.
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written


def _header(pairs: Sequence[Pair], sizes: Sequence[tuple[int, int]]) -> bytes:
    text = json.dumps({"pairs": pairs, "sizes": sizes}, separators=(",", ":")).encode()
    padding = -(_LENGTH + len(text)) % _PAGE
    return len(text).to_bytes(_LENGTH, "little") + text + bytes(padding)


def _read_header(path: Path) -> dict:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        if length > path.stat().st_size:
            raise ValueError("it does not begin as one")
        header: dict = json.loads(file.read(length))
    return {**header, "start": _LENGTH + length + -(_LENGTH + length) % _PAGE}


def _places(sizes: Sequence[tuple[int, int]], start: int) -> list[int]:
    """Return where each pair begins, and the end of the last."""
    areas = [_CHANNELS * width * height for width, height in sizes]
    places: list[int] = np.cumsum([start, *areas], dtype=np.int64).tolist()
    return places


@contextmanager
def _lock(path: Path, stopped: Callable[[], str | None]) -> Iterator[bool]:
    """Hold the lock in the block; yield whether there is one: some file systems have none."""
    with path.open("a") as file:
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waiting:
                    log.info("waiting for the cache that another job is writing")
                waiting = True
                if reason := stopped():
                    raise CissError(
                        f"stopped by {reason} while another job's cache was waited for"
                    ) from None
                time.sleep(0.5)
            except OSError:
                yield False
                return
            else:
                yield True
                return
