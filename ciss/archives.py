"""Unpacking archives that others made: only the wanted regular files, at the places we choose.

Nothing is written before the whole archive has been looked through. Of what a hostile one may hold,
paths that lead elsewhere, links, devices and contents far larger than the archive are refused.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from ciss.errors import CissError
from ciss.units import size_text

_CHUNK = 1 << 20
#: What an archive may grow to: images and masks are compressed already and stay as large as they
#: are; a text, a matrix or a few small files may grow more.
_GROWTH, _GROWTH_OF_SMALL = 20, 64_000_000
#: bytes that are read into the memory at once, at most: a member that is a list, a long name
_READ_WHOLE = 16_000_000
#: bytes that a file takes on most disks, at least
_BLOCK = 4096
#: bytes of a path in an archive: beyond it file systems begin to refuse
_LONGEST = 240
# Of what it cannot read, as an encrypted member, zipfile raises RuntimeError; tarfile ValueError
# for some headers.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    gzip.BadGzipFile,
    EOFError,
    RuntimeError,
    ValueError,
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

    Raises ``CissError`` and writes nothing for an archive that is damaged or larger than the disk,
    that would grow to more than 20 times its size, and for a wanted member that is not a regular
    file or whose place lies outside ``folder`` or is that of another's folder. Raises ``CissError``
    too where the disk turns out to be full.
    """
    with _reading(archive):
        count = _check(archive, folder, place)
        for member, open_member in _members(archive):
            relative = place(member.name)
            if relative is not None and not (skip_known and _is_there(folder / relative, member)):
                _write(folder / relative, member, open_member)
    return count


def read_members(archive: Path, names: set[str]) -> dict[str, bytes]:
    """Return the content of some small members; those that are not there are left out.

    Raises ``CissError`` for a damaged archive and for a member of more than 16 MB.
    """
    found = {}
    with _reading(archive):
        for member, open_member in _members(archive):
            if member.name in names and member.regular:
                if member.size > _READ_WHOLE:
                    raise _too_large(archive, f"{member.name} in it {size_text(member.size)}")
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
    with _expanded(archive) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (entry := tar.next()) is not None:
            # Else every entry that was passed stays in the memory.
            tar.members.clear()  # type: ignore[attr-defined]
            if entry.size < 0:
                raise tarfile.ReadError(f"{entry.name} has a negative size")
            if not entry.isdir():
                yield (
                    # A sparse file can claim any size; no data set has one.
                    Member(entry.name, entry.size, entry.isreg() and not entry.issparse()),
                    lambda entry=entry: tar.extractfile(entry),  # type: ignore[misc]
                )


@contextmanager
def _expanded(archive: Path) -> Iterator[IO[bytes]]:
    """Open a tar, expanded if it is compressed."""
    with archive.open("rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        with gzip.open(file) if compressed else file as content:
            yield cast(IO[bytes], _Bounded(archive, cast(IO[bytes], content)))


class _Bounded:
    """What a tar expands to, as far as an honest one goes; what tarfile needs of a file."""

    def __init__(self, archive: Path, file: IO[bytes]) -> None:
        self.archive = archive
        self.file = file
        self.bound = _largest(archive)

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, offset: int) -> int:
        self._check(offset)
        return self.file.seek(offset)

    def read(self, size: int) -> bytes:
        # tarfile reads headers whole, whatever size they claim.
        if not 0 <= size <= _READ_WHOLE:
            raise tarfile.ReadError("the header of a member has no possible size")
        self._check(self.tell() + size)
        return self.file.read(size)

    def _check(self, offset: int) -> None:
        if offset > self.bound:
            raise _too_large(self.archive, f"it holds more than {size_text(self.bound)}")


def _largest(archive: Path) -> int:
    return max(_GROWTH * archive.stat().st_size, _GROWTH_OF_SMALL)


def _too_large(archive: Path, what: str) -> CissError:
    return CissError(
        f"{archive} has {size_text(archive.stat().st_size)}, but {what}, far more than images "
        "grow when they are unpacked; such an archive is not unpacked: get it from its publisher "
        "again"
    )


def _check(archive: Path, folder: Path, place: Callable[[str], str | None]) -> int:
    """Look through an archive before anything is written; the number of wanted members."""
    count, taken, needed, new = 0, 0, 0, 0
    bound = _largest(archive)
    files: dict[str, str] = {}
    for member, _ in _members(archive):
        relative = place(member.name)
        if relative is None:
            continue
        path = _safe(archive, member, relative)
        files[str(path)] = member.name
        count += 1
        taken += max(member.size, _BLOCK)
        if taken > bound:
            raise _too_large(archive, f"what is wanted of it takes more than {size_text(bound)}")
        if not _is_there(folder / path, member):
            needed += member.size
            new += 1
    _check_folders(archive, folder, files)
    _check_room(archive, folder, needed, new)
    return count


def _safe(archive: Path, member: Member, relative: str) -> PurePosixPath:
    path = PurePosixPath(relative)
    if not member.regular:
        raise _refused(archive, f"{member.name}, which is a link or a device")
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in relative:
        raise _refused(archive, f"{member.name}, which would be written to {relative!r}")
    if len(os.fsencode(relative)) > _LONGEST:
        raise _refused(archive, f"{member.name[:40]}…, a name of {len(relative)} characters")
    return path


def _refused(archive: Path, what: str) -> CissError:
    return CissError(
        f"{archive} holds {what}; such an archive is not unpacked: get it from its publisher again"
    )


def _check_folders(archive: Path, folder: Path, files: dict[str, str]) -> None:
    """Stop where a file would be in the place of a folder, of the archive or on the disk."""
    folders = {str(parent) for path in files for parent in PurePosixPath(path).parents}
    for path in sorted(folders):
        if path in files:
            raise _refused(archive, f"{files[path]} as a file and as a folder")
        if (folder / path).is_file():
            raise CissError(
                f"{folder / path} is a file, {archive} has a folder there; move it away"
            )
    for path in files:
        if (folder / path).is_dir():
            raise CissError(
                f"{folder / path} is a folder, {archive} has a file there; move it away"
            )


def _check_room(archive: Path, folder: Path, needed: int, new: int) -> None:
    """Compare what will be written, in bytes and in files, with what is free."""
    with _disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CissError(
            f"unpacking {archive} needs {size_text(needed)}, but {folder} has only "
            f"{size_text(free)} left; free some space or choose another folder"
        )
    inodes = os.statvfs(folder)
    # File systems that make them as they need them say 0 of 0.
    if inodes.f_files and new > inodes.f_favail:
        raise CissError(
            f"unpacking {archive} makes {new:,} files, but {folder} has room for "
            f"{inodes.f_favail:,}; delete some or choose another folder"
        )


def _is_there(target: Path, member: Member) -> bool:
    return target.is_file() and target.stat().st_size == member.size


def _write(target: Path, member: Member, open_member: Callable[[], IO[bytes]]) -> None:
    # Without flushing each of many thousand files to the disk: the whole folder is, at the end.
    temporary = target.with_name(f".{target.name}.partial")
    try:
        with open_member() as source, _disk(temporary):
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
            if not _is_there(temporary, member):
                raise EOFError(f"{member.name} is shorter than announced")
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE:
        raise
    except OSError as error:
        raise CissError(
            f"cannot write {path}: {error.strerror}; free some space or choose another folder, and "
            "run this again: it goes on where it stopped"
        ) from None


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise CissError(
            f"{archive} is no archive or is damaged ({str(error) or type(error).__name__}); move "
            "it away and fetch it again"
        ) from None
