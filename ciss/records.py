"""What results were made of, kept beside them, so that they mean the same wherever they lie.

Snakemake notes of every file which rule, parameters and inputs made it, but in ``.snakemake``, by
the file's path and time. That is lost when ``results/`` is copied, or used by another checkout.
``records.json`` in each folder of the results holds those notes, and of each file its size, time
and SHA-256. ``keep`` writes it from Snakemake's notes; ``adopt`` gives Snakemake the notes that it
lacks, for files that are what their record says, and gives these their times back.

``adopt`` runs whenever Snakemake begins, so it must be quick where nothing has changed: a folder
whose files, notes and records were found to agree is not looked into again while all of their times
and sizes stay.
"""

from __future__ import annotations

import hashlib
import json
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ciss.files import write_text

FILE = "records.json"
#: what is kept of Snakemake's notes: what it compares or reports, and no path
_NOTES = ["rule", "params", "code", "software_stack_hash", "container_img_url"]
_NOTES += ["record_format_version", "starttime", "endtime"]
#: folders of thousands of files without records
_PASSED_OVER = {"logs", "benchmarks", "JPEGImages", "SegmentationClassAug"}

_Record = dict[str, Any]


def keep(results: Path, snakemake_folder: Path) -> None:
    """Write what Snakemake knows of the files under ``results`` into their folders' records.

    Only of files that are still those which Snakemake saw: their time tells. Content is read of
    files that are new since the last call.
    """
    settled = _settled(snakemake_folder)
    for place, files in _notes(results, snakemake_folder).items():
        if not _is_settled(settled, place, files):
            _keep_folder(place, files, results)


def adopt(results: Path, snakemake_folder: Path, say: Callable[[str], None]) -> list[Path]:
    """Make Snakemake know the files under ``results`` as whoever made them does, and the reverse.

    What Snakemake knows is kept first, as by ``keep``. Content is read of files whose time is not
    that of their record: once, as they get it back. ``say`` is told before. Returns the files that
    are not what their record says; these are left to Snakemake as they are.
    """
    unknown, changed = [], []
    settled = _settled(snakemake_folder)
    agreed = {}
    notes = _notes(results, snakemake_folder)
    for place in sorted({*_folders(results), *notes}):
        files = notes.get(place, {})
        if _is_settled(settled, place, files):
            agreed[place] = settled[place]
            continue
        folder = Path(place)
        _keep_folder(place, files, results)
        records = _read(folder)
        state = _state(place, {*records, *files}, files)
        agree = bool(records) and files.keys() <= records.keys()
        for name, record in records.items():
            path = folder / name
            with suppress(OSError):
                stat = path.stat()
                note = _load(_note_file(snakemake_folder, path))
                if not note or note.get("endtime") != record["made"]["endtime"]:
                    agree = False
                    if note and _same_time(note.get("endtime", 0), stat):
                        continue  # made anew here since
                elif _is(stat, record):
                    continue
                agree = False
                unknown.append((path, record, _is(stat, record)))
        if agree:
            agreed[place] = state
    if agreed != {place: state for place, state in settled.items() if _below(place, results)}:
        elsewhere = {p: state for p, state in settled.items() if not _below(p, results)}
        _settle(snakemake_folder, elsewhere | agreed)
    to_read = [path for path, record, is_it in unknown if not is_it]
    if to_read:
        size = sum(path.stat().st_size for path in to_read)
        say(f"Comparing {len(to_read)} files ({size / 1e6:.0f} MB) with their records, once.")
    for path, record, is_it in unknown:
        if not is_it and not _restore_time(path, record):
            changed.append(path)
            continue
        note_file = _note_file(snakemake_folder, path)
        note_file.parent.mkdir(parents=True, exist_ok=True)
        note = {**_absolute(record["made"], path.parent), "incomplete": False}
        write_text(note_file, json.dumps(note))
    if unknown:
        # Without it, Snakemake takes its folder for one of an older version.
        (snakemake_folder / "incomplete").mkdir(exist_ok=True)
    return changed


def _keep_folder(place: str, files: dict[str, _NoteFile], results: Path) -> None:
    """Write the notes of a folder's files into its records."""
    folder = Path(place)
    known = _read(folder)
    records = {name: record for name, record in known.items() if (folder / name).exists()}
    for name, note_file in files.items():
        note = _load(note_file.path)
        if not isinstance(note.get("endtime"), float):
            continue
        with suppress(OSError):
            stat = (folder / name).stat()
            if not _same_time(note["endtime"], stat):
                continue
            record = records.get(name)
            if record is None or not _is(stat, record):
                record = {
                    "size": stat.st_size,
                    "mtime_ns": stat.st_mtime_ns,
                    "sha256": _sha256(folder / name),
                }
            records[name] = {**record, "made": _relative(note, results, folder)}
    if records != known:
        _write(folder, records)


def _restore_time(path: Path, record: _Record) -> bool:
    """Give a file the time of its record, if it has the content; return whether it has."""
    if path.stat().st_size != record["size"] or _sha256(path) != record["sha256"]:
        return False
    # Fails where the file is another user's; then Snakemake sees the time of the copy.
    with suppress(OSError):
        os.utime(path, ns=(record["mtime_ns"], record["mtime_ns"]))
        if not _is(path.stat(), record):
            # A file system that keeps times less exactly.
            rounded = {**record, "mtime_ns": path.stat().st_mtime_ns}
            _write(path.parent, _read(path.parent) | {path.name: rounded})
    return True


def _is(stat: os.stat_result, record: _Record) -> bool:
    """Whether size and time are those of the record; as for Git, the content is then too."""
    # File systems keep times at different resolutions, microseconds the coarsest in use.
    near = abs(stat.st_mtime_ns - record["mtime_ns"]) < 1000
    return near and stat.st_size == record["size"]


def _same_time(seconds: float, stat: os.stat_result) -> bool:
    return abs(seconds - stat.st_mtime) < 1e-5


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folders(results: Path) -> Iterator[str]:
    """Yield the folders with records, links not followed."""
    for folder, subfolders, files in os.walk(results):
        subfolders[:] = sorted(name for name in subfolders if name not in _PASSED_OVER)
        if FILE in files:
            yield folder


def _read(folder: Path) -> dict[str, _Record]:
    content = _load(folder / FILE)
    needed = {"size", "mtime_ns", "sha256", "made"}
    whole = all(isinstance(r, dict) and needed <= r.keys() for r in content.values())
    return content if whole else {}


def _write(folder: Path, records: dict[str, _Record]) -> None:
    # Where the results cannot be written there is nothing to keep either.
    with suppress(OSError):
        write_text(folder / FILE, json.dumps(dict(sorted(records.items())), indent=1) + "\n")


def _load(path: Path | str) -> dict[str, Any]:
    """Read a JSON object; empty where there is none, or no whole one."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _relative(note: _Record, results: Path, folder: Path) -> _Record:
    """Return what is kept of a note; paths under the results as seen from the file's folder."""

    def seen(path: str) -> str:
        inside = Path(path).is_relative_to(results)
        return f"{{here}}/{os.path.relpath(path, folder)}" if inside else path

    kept = {name: note[name] for name in _NOTES if name in note}
    return kept | _with_paths(note, seen)


def _absolute(made: _Record, folder: Path) -> _Record:
    """Undo ``_relative`` for a file that lies in ``folder`` now."""

    def found(path: str) -> str:
        return os.path.normpath(folder / path[7:]) if path.startswith("{here}/") else path

    return made | _with_paths(made, found)


def _with_paths(note: _Record, change: Callable[[str], str]) -> _Record:
    checksums = note.get("input_checksums") or {}
    # Snakemake compares sorted lists.
    return {
        "input": sorted(change(path) for path in note.get("input") or []),
        "log": sorted(change(path) for path in note.get("log") or []),
        "input_checksums": {change(path): value for path, value in sorted(checksums.items())},
    }


# --- How Snakemake 9 keeps its notes: a JSON file for each output, named by the path in base64, cut
# --- into folders that begin with @ where it is longer than a file name may be.


def _note_file(snakemake_folder: Path, path: Path) -> Path:
    name = urlsafe_b64encode(str(path).encode()).decode()
    folder = snakemake_folder / "metadata"
    size = os.pathconf(snakemake_folder.parent, "PC_NAME_MAX") - 1
    parts = [name[begin : begin + size] for begin in range(0, len(name), size)]
    return folder.joinpath(*(f"@{part}" for part in parts[:-1]), parts[-1])


class _NoteFile(NamedTuple):
    """A note, not read yet."""

    path: str
    mtime_ns: int


def _notes(results: Path, snakemake_folder: Path) -> dict[str, dict[str, _NoteFile]]:
    """Return the notes of files under ``results``: by folder, then by the file's name."""
    found: dict[str, dict[str, _NoteFile]] = {}
    for name, note in _note_files(str(snakemake_folder / "metadata"), ""):
        try:
            path = os.path.normpath(urlsafe_b64decode(name).decode())
        except ValueError:
            continue
        folder, _, name = path.rpartition(os.sep)
        if _below(folder, results):
            found.setdefault(folder, {})[name] = note
    return found


def _note_files(folder: str, begin: str) -> Iterator[tuple[str, _NoteFile]]:
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("@") and entry.is_dir():
                yield from _note_files(entry.path, begin + entry.name[1:])
            elif not entry.name.startswith("@") and entry.is_file():
                yield begin + entry.name, _NoteFile(entry.path, entry.stat().st_mtime_ns)


# --- Which folders need not be looked into.

#: beside Snakemake's notes, since it is about these
_SETTLED = "settled_records.json"


def _settled(snakemake_folder: Path) -> dict[str, Any]:
    """Return the folders that were found to agree, with their state then."""
    return _load(snakemake_folder / _SETTLED)


def _settle(snakemake_folder: Path, folders: dict[str, Any]) -> None:
    # Where it cannot be written all folders are looked into each time.
    with suppress(OSError):
        write_text(snakemake_folder / _SETTLED, json.dumps(folders, separators=(",", ":")))


def _is_settled(settled: dict[str, Any], folder: str, notes: dict[str, _NoteFile]) -> bool:
    try:
        known = settled[folder]
        names = known["files"].keys()
        return notes.keys() <= names and _state(folder, names, notes) == known
    except (KeyError, TypeError, AttributeError):
        return False


def _state(folder: str, names: Iterable[str], notes: dict[str, _NoteFile]) -> dict[str, Any]:
    """Sizes and times of files, their notes and their records, as JSON keeps them."""
    files = {
        name: [*_size_and_time(f"{folder}/{name}"), notes[name].mtime_ns if name in notes else 0]
        for name in names
    }
    return {"records": _size_and_time(f"{folder}/{FILE}"), "files": files}


def _size_and_time(path: str) -> list[int]:
    try:
        stat = os.stat(path)  # noqa: PTH116 - of thousands of files, at every start
    except OSError:
        return [-1, 0]
    return [stat.st_size, stat.st_mtime_ns]


def _below(folder: str, results: Path) -> bool:
    return folder == str(results) or folder.startswith(f"{results}{os.sep}")
