"""Bringing data sets into their layout: downloading, unpacking, converting, checking.

A kind of data set that can be prepared has a module here of its name (``voc``), which says where
its archives come from and how the layout is made of them; ``Recipe`` lists what it offers.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import pkgutil
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import ciss
from ciss import datasets
from ciss.datasets import Listing
from ciss.download import Remote, Sources, fetch, log, pinned
from ciss.errors import CissError
from ciss.files import write_text

#: note in a prepared folder: which archives it was made of, and how many images it has
NOTE = "prepared.json"


class Target(NamedTuple):
    """A data set of the configuration: its name there, its kind, and its root."""

    name: str
    kind: str
    root: Path
    #: whether the user means a part of the published release
    subset: bool = False


class Archive(NamedTuple):
    """An archive that is at hand and verified."""

    remote: Remote
    path: Path
    sha256: str


class Recipe(Protocol):
    """What a module of this package offers to prepare one kind of data set."""

    #: the data set, for people
    TITLE: str
    #: what is downloaded, how much, and under which terms; a few lines
    ABOUT: str
    #: what somebody has to do by hand where a login or a licence is asked for, else ""
    BY_HAND: str
    REMOTES: tuple[Remote, ...]
    #: write the data set below a folder, from the archives by name, in so many processes;
    #: called again after an interruption it goes on
    build: Callable[[Mapping[str, Archive], Path, int], None]
    #: say what a folder or the archives beside it hold if it is another release, else ""
    other_release: Callable[[list[str]], str]


@cache
def kinds() -> tuple[str, ...]:
    """Names of the kinds of data set that can be prepared: the modules of this package."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def recipe(kind: str) -> Recipe:
    """Return the module that prepares ``kind``; ``CissError`` where there is none."""
    if kind not in kinds():
        raise CissError(
            f"data sets of kind '{kind}' cannot be prepared, only {', '.join(kinds())}; put their "
            "files in place yourself, docs/data.md says how"
        )
    return cast(Recipe, importlib.import_module(f"{__name__}.{kind}"))


def prepare(dataset: Target, sources: Sources, workers: int = 1) -> None:
    """Have ``dataset`` complete in its root: check what is there, or make it from its archives.

    A root that holds anything is only looked at, never written to. A new one appears at once, when
    everything in it is finished; until then its parts lie beside it in ``.NAME.preparing``, and an
    interrupted call goes on from there. Archives stay in ``sources.archives``.

    Raises ``CissError`` when an archive is missing, wrong or damaged, the disk is full, or the root
    holds something else than this data set.
    """
    made = recipe(dataset.kind)
    root = dataset.root.resolve()
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        log.info("%s", _checked(dataset, made))
        return
    archives = _archives(dataset, made, sources)
    root.parent.mkdir(parents=True, exist_ok=True)
    staging = root.with_name(f".{root.name}.preparing")
    with _alone(staging):
        log.info("unpacking into %s", staging)
        made.build(archives, staging / "data", workers)
        for unfinished in (staging / "data").rglob(".*.partial"):
            unfinished.unlink()
        _note(dataset, made, archives, staging / "data")
        # A power cut must not leave a finished folder of unfinished files.
        os.sync()
        try:
            (staging / "data").rename(root)
        except OSError as error:
            raise CissError(
                f"cannot move the prepared files from {staging / 'data'} to {root} "
                f"({error.strerror}); move them yourself, or set datasets.{dataset.name}.root to a "
                "folder that does not exist yet"
            ) from None
        shutil.rmtree(staging)
    log.info("%s", _checked(dataset, made))
    log.info("the archives in %s are no longer needed", sources.archives)


def explain(dataset: Target, sources: Sources) -> str:
    """Say in a few lines what a data set is, where it stands, and what preparing it would do."""
    where = f"{dataset.name}: kind {dataset.kind}, root {dataset.root}"
    root = dataset.root
    absent = not root.exists() or (root.is_dir() and not any(root.iterdir()))
    if dataset.kind not in kinds():
        state = "absent" if absent else "present"
        return f"{where}\n  {state}; files of your own, which no rule prepares"
    made = recipe(dataset.kind)
    lines = [where, f"  {made.TITLE}"]
    if absent:
        lines += [f"  absent; snakemake prepare_{dataset.name} makes it", *_indented(made.ABOUT)]
        there = [r.name for r in made.REMOTES if (sources.archives / r.name).exists()]
        if there:
            lines.append(f"  At hand in {sources.archives}: {', '.join(there)}.")
        if made.BY_HAND and len(there) < len(made.REMOTES):
            lines += _indented(_by_hand(dataset, made, sources))
    else:
        try:
            lines.append(f"  {_checked(dataset, made)}")
        except CissError as error:
            lines.append(f"  present, but {error}")
    return "\n".join(lines)


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.strip().splitlines()]


def _by_hand(dataset: Target, made: Recipe, sources: Sources) -> str:
    names = " and ".join(remote.name for remote in made.REMOTES)
    command = f"snakemake prepare_{dataset.name}"
    return (
        f"{made.BY_HAND.strip()}\nPut {names} into {sources.archives.absolute()} and run "
        f"{command} again, or set datasets.{dataset.name}.root to where the unpacked files are."
    )


def _archives(dataset: Target, made: Recipe, sources: Sources) -> dict[str, Archive]:
    remotes = [pinned(remote, sources.checksums) for remote in made.REMOTES]
    missing = [
        remote
        for remote in remotes
        if not (remote.urls or sources.mirror or (sources.archives / remote.name).exists())
    ]
    if missing:
        names = ", ".join(remote.name for remote in missing)
        found = [path.name for path in sources.archives.glob("*")]
        other = made.other_release(found)
        raise CissError(
            f"{made.TITLE} has to be fetched by hand; missing: {names}.\n"
            f"{_by_hand(dataset, made, sources)}" + (f"\n{other}" if other else "")
        )
    archives = {}
    for remote in remotes:
        path = sources.archives / remote.name
        archives[remote.name] = Archive(remote, path, fetch(remote, path, mirror=sources.mirror))
    return archives


def _checked(dataset: Target, made: Recipe) -> str:
    """Say that a folder is complete; ``CissError`` where it is not, or is something else."""
    root = dataset.root
    keep = f"nothing was changed; to prepare it anew set datasets.{dataset.name}.root elsewhere"
    if not root.is_dir():
        raise CissError(f"{root} is no folder; {keep}")
    other = made.other_release(_names(root))
    if other:
        raise CissError(f"{root}: {other}; {keep}")
    try:
        listing = _listing(dataset, root)
    except CissError as error:
        deeper = _deeper(dataset, root)
        if deeper is not None:
            raise CissError(
                f"the files of {made.TITLE} lie one folder deeper; set datasets.{dataset.name}.root"
                f" to {deeper}"
            ) from None
        raise CissError(f"{root} does not hold {made.TITLE}: {error}; {keep}") from None
    lost = _lost(root, listing)
    if lost:
        raise CissError(f"{root} lacks {len(lost)} files, {lost[0]} first; {keep}")
    counts = {subset: len(pairs) for subset, pairs in listing.items()}
    published = datasets.get_kind(dataset.kind).IMAGES
    expected = _read_note(root).get("images") or published
    if dataset.subset:
        expected = counts
    wrong = [
        f"{count:,} {_SUBSETS[subset]} images of {expected[subset]:,}"
        for subset, count in counts.items()
        if count != expected.get(subset, count)
    ]
    if wrong:
        raise CissError(f"{root} has {' and '.join(wrong)}; {keep}")
    text = " and ".join(f"{count:,} {_SUBSETS[subset]}" for subset, count in counts.items())
    if counts == published:
        return f"{root} is complete: {text} images"
    whence = "its archives were others" if not dataset.subset else "a subset is meant"
    return f"{root} is complete: {text} images, NOT those of the published release, as {whence}"


_SUBSETS = {"train": "training", "val": "validation", "test": "test"}


def _listing(dataset: Target, folder: Path) -> Listing:
    return datasets.list_images(datasets.open_dataset(dataset.name, dataset.kind, folder))


def _lost(root: Path, listing: Listing) -> list[str]:
    """Return the listed files that are not there, looking at each folder once."""
    paths = [path for pairs in listing.values() for pair in pairs for path in pair]
    folders = {path.rpartition("/")[0] for path in paths}
    there: set[str] = set()
    for folder in folders:
        if (root / folder).is_dir():
            prefix = f"{folder}/" if folder else ""
            there.update(prefix + path.name for path in (root / folder).iterdir())
    return [path for path in paths if path not in there]


def _names(root: Path, depth: int = 3) -> list[str]:
    """Return some paths below a folder, relative to it: enough to tell releases apart."""
    found = []
    for path in islice(root.iterdir(), 100):
        found.append(path.name)
        if depth > 1 and path.is_dir():
            found += [f"{path.name}/{inner}" for inner in _names(path, depth - 1)]
    return found


def _deeper(dataset: Target, root: Path) -> Path | None:
    """Return the folder below ``root`` that holds the data set: archives often have one more."""
    for path in islice(root.iterdir(), 10):
        if path.is_dir():
            with suppress(CissError):
                _listing(dataset, path)
                return path
    return None


def _note(dataset: Target, made: Recipe, archives: Mapping[str, Archive], folder: Path) -> None:
    listing = _listing(dataset, folder)
    counts = {subset: len(pairs) for subset, pairs in listing.items()}
    for subset, published in datasets.get_kind(dataset.kind).IMAGES.items():
        if counts[subset] != published:
            log.warning(
                "warning: %d %s images, the published release has %d",
                counts[subset],
                _SUBSETS[subset],
                published,
            )
    note = {
        "data set": made.TITLE,
        "images": counts,
        "archives": {name: {"sha256": archive.sha256} for name, archive in archives.items()},
        "by": f"ciss {ciss.__version__}",
        "on": time.strftime("%Y-%m-%d"),
    }
    write_text(folder / NOTE, json.dumps(note, indent=2) + "\n")


def _read_note(root: Path) -> dict[str, Any]:
    try:
        content = json.loads((root / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def _alone(staging: Path) -> Iterator[None]:
    """Keep other processes out of ``staging`` within the block."""
    staging.mkdir(exist_ok=True)
    with (staging / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CissError(f"another process works in {staging}; wait for it, or end it") from None
        except OSError:
            # Some network file systems have no locks.
            pass
        yield
