"""What a dataset's files are, in one short string: equal content, equal fingerprint.

It lets a workflow notice that images or masks were exchanged, and stay calm when they were only
copied elsewhere or touched.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from array import array
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ciss.datasets import Dataset, Listing, list_images
from ciss.files import write_text

#: relative path -> (size, modification time in ns)
Stats = dict[str, tuple[int, int]]
#: relative path -> [size, modification time in ns, hash of the content]
_Hashes = dict[str, list[int | str]]

#: file that a generator leaves beside the images it made
GENERATED = "fingerprint.txt"

_THREADS = 8
_MISSING = (-1, 0)
_UNREADABLE = "unreadable"
# A file changed again within its time stamp's granularity would go unnoticed: too young a file is
# hashed, but not remembered. Two seconds is the coarsest granularity in use (FAT).
_SETTLED_NS = 2_000_000_000


def fingerprint(dataset: Dataset, cache: Path) -> str:
    """Return a hexadecimal BLAKE2b digest of the dataset's lists and files.

    It covers the lists (which files, in which order), every file's size, and the masks' content;
    images count by their size alone. Neither the root's place nor any time stamp enters.

    ``cache`` is a file of the masks' hashes, valid while size and modification time stay the same:
    with it, a second call reads no mask. Its first line is JSON of the state that all files were
    in; while they are, not even the hashes are read. An unreadable cache is ignored, and so is a
    place where none can be written. Raises ``CissError`` as ``list_images`` does; a missing image
    or mask is part of the fingerprint, and the index's to report.
    """
    listing = list_images(dataset)
    pairs = [pair for subset in listing.values() for pair in subset]
    stats = stat_files(dataset.root, itertools.chain.from_iterable(pairs))
    listed = _listing_bytes(listing)
    state = _state(dataset.root, listed, pairs, stats)
    known = _summary(cache)
    if known.get("state") == state:
        return str(known["fingerprint"])
    images = {image for image, _ in pairs}
    masks = {mask for _, mask in pairs}
    remembered = _read_cache(cache, dataset.root)
    hashes = _mask_hashes(dataset.root, masks, stats, remembered)
    digest = blake2b(digest_size=16)
    digest.update(listed)
    digest.update("".join(f"{path}\0{stats[path][0]}\n" for path in sorted(images)).encode())
    digest.update("".join(f"{path}\0{hashes[path]}\n" for path in sorted(masks)).encode())
    found = digest.hexdigest()
    settled = _settled(hashes, stats)
    if len(settled) < len(masks):
        state = ""
    if remembered != settled or (known.get("fingerprint"), known.get("state")) != (found, state):
        _write_cache(cache, dataset.root, found, settled, state)
    return found


def of_folder(folder: Path, suffix: str, cache: Path) -> str:
    """Return a digest of the files of a folder that end in ``suffix``: their names and contents.

    ``cache`` is as for ``fingerprint``. Raises ``OSError`` where the folder cannot be read.
    """
    names = {path.name for path in folder.iterdir() if path.suffix == suffix}
    stats = stat_files(folder, names)
    known = _read_cache(cache, folder)
    hashes = _mask_hashes(folder, names, stats, known)
    lines = "".join(f"{name}\0{hashes[name]}\n" for name in sorted(names))
    found = blake2b(lines.encode(), digest_size=16).hexdigest()
    settled = _settled(hashes, stats)
    if known != settled:
        _write_cache(cache, folder, found, settled)
    return found


def last_known(cache: Path) -> str | None:
    """Return the fingerprint that the last call with this ``cache`` found, if there was one."""
    known = _summary(cache)
    return str(known["fingerprint"]) if "fingerprint" in known else None


def of_generated(dataset: Dataset, cache: Path) -> str:
    """Fingerprint of a generated dataset, equal before and after it is generated.

    It is ``as generated`` while the files are those that ``write_generated`` saw, or not there
    yet, and their own fingerprint once somebody changed them.
    """
    try:
        original = (dataset.root / GENERATED).read_text(encoding="utf-8").strip()
    except OSError:
        return "as generated"
    found = fingerprint(dataset, cache)
    return "as generated" if found == original else found


def write_generated(dataset: Dataset) -> None:
    """Note the fingerprint of freshly generated files beside them."""
    found = fingerprint(dataset, dataset.root / f".{GENERATED}.cache")
    (dataset.root / f".{GENERATED}.cache").unlink(missing_ok=True)
    write_text(dataset.root / GENERATED, f"{found}\n")


def _listing_bytes(listing: Listing) -> bytes:
    """Serialise the lists: what their files say, whatever their layout and line ends."""
    return json.dumps(listing, separators=(",", ":"), sort_keys=True).encode()


def stat_files(root: Path, paths: Iterable[str]) -> Stats:
    """Return size and modification time of files below ``root``; (-1, 0) for a missing one.

    Files in a folder that cannot be read count as missing. Folder by folder, which takes far less
    of the system's time than one by one.
    """
    stats = dict.fromkeys(paths, _MISSING)
    for folder in {path.rpartition("/")[0] for path in stats}:
        prefix = f"{folder}/" if folder else ""
        with suppress(OSError), os.scandir(root / folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                if path in stats:
                    try:
                        stat = entry.stat()
                    except OSError:  # gone since, or a link to nothing
                        continue
                    stats[path] = (stat.st_size, stat.st_mtime_ns)
    return stats


def _state(root: Path, listed: bytes, pairs: list[tuple[str, str]], stats: Stats) -> str:
    """Digest of all that decides the fingerprint, but masks by size and time: reads no file."""
    numbers = array("q")
    for image, mask in pairs:
        numbers.append(stats[image][0])
        numbers.extend(stats[mask])
    digest = blake2b(str(root.absolute()).encode(), digest_size=16)
    digest.update(listed)
    digest.update(numbers)
    return digest.hexdigest()


def _mask_hashes(root: Path, masks: set[str], stats: Stats, known: _Hashes) -> dict[str, str]:
    unknown = [path for path in masks if known.get(path, [])[:2] != [*stats[path]]]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(unknown, pool.map(lambda path: _hash(root / path), unknown), strict=True))
    return {path: found[path] if path in found else str(known[path][2]) for path in masks}


def _settled(hashes: dict[str, str], stats: Stats) -> _Hashes:
    """What may be remembered of the masks' hashes."""
    latest = time.time_ns() - _SETTLED_NS
    return {
        path: [*stats[path], content]
        for path, content in hashes.items()
        if stats[path][1] < latest and content != _UNREADABLE
    }


def _hash(path: Path) -> str:
    try:
        return blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return _UNREADABLE


def _summary(cache: Path) -> dict[str, Any]:
    """Read the first line of a cache: what it found, for which state of the files."""
    with suppress(OSError, ValueError), cache.open(encoding="utf-8") as file:
        known = json.loads(file.readline())
        return known if isinstance(known, dict) else {}
    return {}


def _read_cache(cache: Path, root: Path) -> _Hashes:
    # Whatever else may be in a file of that name, it is no reason to stop.
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        first, _, masks = cache.read_text(encoding="utf-8").partition("\n")
        if json.loads(first)["root"] == str(root.absolute()):
            return {path: entry for path, entry in json.loads(masks).items() if len(entry) == 3}
    return {}


def _write_cache(cache: Path, root: Path, found: str, hashes: _Hashes, state: str = "") -> None:
    summary = {"root": str(root.absolute()), "fingerprint": found, "state": state}
    lines = (json.dumps(part, separators=(",", ":")) for part in (summary, hashes))
    with suppress(OSError):
        write_text(cache, "\n".join(lines))
