"""Unpacking archives that others made: only the wanted regular files, at the places we choose."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from ciss.errors import CissError
from ciss.units import size_text

_CHUNK = 1 << 20
# zipfile raises RuntimeError for what it cannot read, as an encrypted member.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    gzip.BadGzipFile,
    EOFError,
    RuntimeError,
)


@dataclass(frozen=True)
class Member:
    """An entry of an archive that is no folder."""

    name: str
    size: int
    #: a file with a content of its own: no link, no device
    regular: bool


def unpack(
    archive: Path, folder: Path, place: Callable[[str], str | None], *, skip_known: bool = True
) -> int:
    """Write those members of a tar or zip archive below ``folder`` that ``place`` wants there.

    ``place`` turns a member's name into a path relative to ``folder``, or into ``None`` for what is
    not wanted. Files that are there with their full size are kept, so that an interrupted call
    goes on; each is written beside its place and renamed. Returns the number of wanted members.

    Raises ``CissError`` for a damaged archive, a full disk, and for a wanted member that is not a
    regular file or whose place lies outside ``folder``.
    """
    count = 0
    with _reading(archive):
        _check_room(archive, folder, place)
        for member, open_member in _members(archive):
            relative = place(member.name)
            if relative is None:
                continue
            count += 1
            target = folder / _safe(archive, member, relative)
            if skip_known and _is_there(target, member):
                continue
            _write(target, open_member)
    return count


def read_members(archive: Path, names: set[str]) -> dict[str, bytes]:
    """Return the content of some small members; those that are not there are left out."""
    found = {}
    with _reading(archive):
        for member, open_member in _members(archive):
            if member.name in names and member.regular:
                with open_member() as source:
                    found[member.name] = source.read()
            if len(found) == len(names):
                break
    return found


def member_names(archive: Path) -> list[str]:
    """Return the names of all members but folders."""
    with _reading(archive):
        return [member.name for member, _ in _members(archive)]


def git_tree_id(folder: Path) -> str:
    """Return the id that git gives to a folder of plain files: it pins names and content.

    A repository's archive is packed anew at every download and has no fixed checksum; the ids of
    its folders are part of the commit. Format: Git's documentation, "Git Objects".
    """
    entries = b""
    for path in sorted(folder.iterdir(), key=lambda path: path.name.encode()):
        content = path.read_bytes()
        entries += b"100644 " + path.name.encode() + b"\0" + _git_object(b"blob", content)
    return _git_object(b"tree", entries).hex()


def _git_object(kind: bytes, content: bytes) -> bytes:
    header = kind + b" " + str(len(content)).encode() + b"\0"
    return hashlib.sha1(header + content, usedforsecurity=False).digest()


def _members(archive: Path) -> Iterator[tuple[Member, Callable[[], IO[bytes]]]]:
    """Yield each entry that is no folder, and how to read it, which works until the next one."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                mode = info.external_attr >> 16
                if not info.is_dir():
                    regular = stat.S_IFMT(mode) in (0, stat.S_IFREG)
                    yield (
                        Member(info.filename, info.file_size, regular),
                        lambda info=info: zipped.open(info),  # type: ignore[misc]
                    )
        return
    with tarfile.open(archive) as tar:
        for entry in tar:
            if not entry.isdir():
                yield (
                    Member(entry.name, entry.size, entry.isreg()),
                    lambda entry=entry: tar.extractfile(entry),  # type: ignore[misc]
                )


def _safe(archive: Path, member: Member, relative: str) -> PurePosixPath:
    path = PurePosixPath(relative)
    if not member.regular or path.is_absolute() or ".." in path.parts or "\0" in relative:
        what = "is a link or a device" if not member.regular else f"would be written to {relative}"
        raise CissError(
            f"{archive} holds {member.name}, which {what}; such an archive is not unpacked: get it "
            "from its publisher again"
        )
    return path


def _check_room(archive: Path, folder: Path, place: Callable[[str], str | None]) -> None:
    """Compare what will be written with what is free, where the sizes are cheap to know."""
    if not zipfile.is_zipfile(archive) and not _plain_tar(archive):
        return
    needed = 0
    for member, _ in _members(archive):
        relative = place(member.name)
        if relative is not None and not _is_there(folder / relative, member):
            needed += member.size
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CissError(
            f"unpacking {archive} needs {size_text(needed)}, but {folder} has only "
            f"{size_text(free)} left; free some space or choose another folder"
        )


def _is_there(target: Path, member: Member) -> bool:
    return target.is_file() and target.stat().st_size == member.size


def _plain_tar(archive: Path) -> bool:
    try:
        with tarfile.open(archive, "r:"):
            return True
    except tarfile.ReadError:
        return False


def _write(target: Path, open_member: Callable[[], IO[bytes]]) -> None:
    # Without flushing each of many thousand files to the disk: the whole folder is, at the end.
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.partial")
    with open_member() as source:
        try:
            file = temporary.open("wb")
        except OSError as error:
            raise _unwritable(temporary, error) from None
        with file:
            while chunk := source.read(_CHUNK):
                try:
                    file.write(chunk)
                    file.flush()
                except OSError as error:
                    raise _unwritable(temporary, error) from None
    temporary.replace(target)


def _unwritable(path: Path, error: OSError) -> CissError:
    return CissError(
        f"cannot write {path}: {error.strerror}; free some space or choose another folder, and run "
        "this again: it goes on where it stopped"
    )


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise CissError(
            f"{archive} is no archive or is damaged ({str(error) or type(error).__name__}); move "
            "it away and fetch it again"
        ) from None
