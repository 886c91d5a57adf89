"""Fetching files: interrupted downloads go on, and nothing unverified is seen under its name.

Proxies are taken from the environment (``https_proxy``, ``no_proxy``), as ``urllib`` does. A mirror
or a ``file://`` address stands in for the public servers where these cannot be reached.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, build_opener

import ciss
from ciss.errors import CissError
from ciss.files import write_text
from ciss.units import size_text

log = logging.getLogger("ciss")

#: beside downloaded files; `sha256sum -c SHA256SUMS` reads it too
RECORD = "SHA256SUMS"

_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a byte
_ATTEMPTS = 4  # in a row without a byte of progress
_LOG_SECONDS = 20
#: servers' answers that another attempt may change
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_HOPELESS = (
    FileNotFoundError,
    IsADirectoryError,
    PermissionError,
    socket.gaierror,
    ssl.SSLCertVerificationError,
)


@dataclass(frozen=True)
class Remote:
    """A file that others publish: its name here, where it is, and what it must be."""

    #: file name, under which it is also looked for on a mirror and among the user's own files
    name: str
    #: addresses, the first that answers counts; none where a login or a licence stands before it
    urls: tuple[str, ...] = ()
    #: hexadecimal digests by algorithm; ``sha256`` may be a beginning of at least 8 digits
    digests: Mapping[str, str] = field(default_factory=dict)
    #: git's ids of the folders inside, where the publisher's archive has no fixed bytes
    trees: Mapping[str, str] = field(default_factory=dict)
    #: whether the user said which digest to expect, in place of what is published
    pinned: bool = False


@dataclass(frozen=True)
class Sources:
    """Where files are kept and come from: the section ``prepare`` of the configuration."""

    #: folder that archives go to, and where files fetched by hand are looked for
    archives: Path
    #: address or folder with the files, in place of the public servers
    mirror: str = ""
    #: SHA-256 that the user expects, by the file's name
    checksums: Mapping[str, str] = field(default_factory=dict)


def pinned(remote: Remote, checksums: Mapping[str, str]) -> Remote:
    """Return ``remote`` with the SHA-256 that ``checksums`` holds under its name, if any.

    What was known of the file before is dropped: the user may have another edition of it.
    """
    if remote.name not in checksums:
        return remote
    digests = {"sha256": checksums[remote.name].lower()}
    return replace(remote, digests=digests, trees={}, pinned=True)


def fetch(
    remote: Remote,
    target: Path,
    *,
    mirror: str = "",
    own: Path | None = None,
    check: Callable[[Path], None] | None = None,
) -> str:
    """Have ``remote`` at ``target``, downloading what is missing of it, and return its SHA-256.

    A file that is there already is verified and left alone. Else it comes from ``own``, a copy of
    the user's, where that exists; else from the folder or address ``mirror``, where one is given;
    else from its publisher. What has arrived is kept in a hidden file beside ``target`` until it
    is whole and verified: by its known digests, by the one noted in ``SHA256SUMS`` when it was
    fetched first, and by ``check``, which raises ``CissError`` for a wrong content.

    Raises ``CissError`` when the file cannot be had, is not the expected one, or does not fit on
    the disk; a partial download is kept then and continued by the next call.
    """
    if target.exists():
        return _verify(remote, target, target)
    urls = _sources(remote, mirror, own)
    _make_folder(target.parent)
    partial = target.with_name(f".{target.name}.partial")
    with _opened_alone(partial, target) as file:
        if file is None:
            return fetch(remote, target, mirror=mirror, own=own, check=check)
        resumed = _download_any(remote, urls, partial, file)
        if resumed and not _as_expected(remote, partial, target):
            # The beginning may stem from another edition of the file than the rest.
            log.info("%s does not fit together; downloading it from the start", remote.name)
            _restart(file, partial)
            _download_any(remote, urls, partial, file)
        try:
            digest = _verify(remote, partial, target)
            if check is not None:
                check(partial)
        except CissError:
            _discard(partial)
            raise
        os.fsync(file.fileno())
        partial.replace(target)
        _state_file(partial).unlink(missing_ok=True)
    _note(remote, target, digest)
    return digest


def recorded(target: Path) -> str | None:
    """Return the SHA-256 that was noted for ``target`` when it was fetched first."""
    return _read_record(target.parent).get(target.name)


def digests_of(path: Path, algorithms: Sequence[str] = ("sha256",)) -> dict[str, str]:
    """Return hexadecimal digests of a file by algorithm, from one pass over it."""
    hashes = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            for made in hashes.values():
                made.update(chunk)
    return {name: made.hexdigest() for name, made in hashes.items()}


# --- Where from ----------------------------------------------------------------------------


def _sources(remote: Remote, mirror: str, own: Path | None) -> tuple[str, ...]:
    if own is not None and own.is_file():
        return (own.absolute().as_uri(),)
    if mirror:
        base = mirror if urlsplit(mirror).scheme else Path(mirror).expanduser().absolute().as_uri()
        return (f"{base.rstrip('/')}/{quote(remote.name)}",)
    if not remote.urls:
        raise CissError(f"{remote.name} cannot be downloaded without its publisher's leave")
    return remote.urls


def _download_any(remote: Remote, urls: Sequence[str], partial: Path, file: IO[bytes]) -> bool:
    """Download from the first address that gives the whole file; whether it was continued."""
    reasons = []
    for url in urls:
        try:
            return _download(remote, url, partial, file)
        except (_RefusedError, OSError, HTTPException) as error:
            reasons.append(f"{url}: {_reason(error)}")
    arrived = partial.stat().st_size
    kept = f"; the {size_text(arrived)} that came are kept" if arrived else ""
    if not arrived:
        _discard(partial)
    raise CissError(
        f"cannot download {remote.name} ({'; '.join(reasons)}){kept}. Try again later, or get the "
        f"file elsewhere and put it at {partial.with_name(partial.name[1 : -len('.partial')])}; "
        "docs/data.md says how to use a mirror"
    )


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


# --- The transfer --------------------------------------------------------------------------


class _RefusedError(Exception):
    """An answer that no further attempt will change."""


def _download(remote: Remote, url: str, partial: Path, file: IO[bytes]) -> bool:
    """Bring ``file`` to its end from ``url``, in as many attempts as make progress."""
    state = _read_state(partial)
    resumed = _continuable(remote, url, state) and file.seek(0, os.SEEK_END) > 0
    if not resumed:
        _restart(file, partial)
    log.info("%s %s", "continuing" if resumed else "downloading", url)
    failures = 0
    while True:
        before = file.seek(0, os.SEEK_END)
        try:
            _attempt(url, partial, file)
            return resumed
        except (OSError, HTTPException) as error:
            if isinstance(error, HTTPError) and error.code not in _PASSING:
                raise
            if not _continuable(remote, url, _read_state(partial)):
                _restart(file, partial)
            failures = 0 if file.seek(0, os.SEEK_END) > before else failures + 1
            if failures == _ATTEMPTS or _final(error):
                raise
            log.info("%s; trying again", _reason(error))
            time.sleep(_pause(failures))


def _pause(failures: int) -> float:
    """Seconds to wait before another attempt."""
    return min(2.0**failures, 30)


def _final(error: Exception) -> bool:
    """Whether waiting is pointless: no such local file, host or protocol, or no trust in it."""
    if not isinstance(error, URLError) or isinstance(error, HTTPError):
        return False
    return not isinstance(error.reason, OSError) or isinstance(error.reason, _HOPELESS)


def _attempt(url: str, partial: Path, file: IO[bytes]) -> None:
    """Ask once for what is missing, and append it. Raises an ``OSError`` where it breaks off."""
    have = file.seek(0, os.SEEK_END)
    headers = {"User-Agent": f"ciss/{ciss.__version__}", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        state = _read_state(partial)
        # Another server marks the same file otherwise.
        if state.get("url") == url and state.get("validator"):
            headers["If-Range"] = state["validator"]
    try:
        response = build_opener().open(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        if error.code == 416 and have:
            if error.headers.get("Content-Range", "").rpartition("/")[2] == str(have):
                return
            _restart(file, partial)
            raise ConnectionError("the server has less of the file than arrived before") from None
        raise
    with response:
        total = _prepare(response, url, have, partial, file)
        got = _copy(response, file, partial, total)
    if total is not None and got != total:
        raise ConnectionError(f"the connection broke off at {size_text(got)} of {size_text(total)}")


def _prepare(response: Any, url: str, have: int, partial: Path, file: IO[bytes]) -> int | None:
    """Set ``file`` to where the answer goes on; the size of the whole file, if it says so."""
    headers = response.headers
    if urlsplit(url).scheme in ("http", "https") and headers.get_content_type() == "text/html":
        raise _RefusedError("the server sent a web page in place of the file")
    continued = (
        have
        and getattr(response, "status", None) == 206
        and re.match(rf"bytes {have}-", headers.get("Content-Range", ""))
    )
    if have and not continued:
        log.info("the server does not continue downloads; starting again")
        _restart(file, partial)
        have = 0
    validator = headers.get("ETag") or headers.get("Last-Modified")
    if validator and validator.startswith("W/"):
        validator = None
    write_text(_state_file(partial), json.dumps({"url": url, "validator": validator}))
    length = headers.get("Content-Length")
    if length is None:
        return None
    free = shutil.disk_usage(partial.parent).free
    if int(length) > free:
        raise CissError(
            f"{url} needs {size_text(int(length))} more, but {partial.parent} has only "
            f"{size_text(free)} left; free some space or choose another folder"
        )
    return have + int(length)


def _copy(response: Any, file: IO[bytes], partial: Path, total: int | None) -> int:
    """Append the answer to ``file``; the size that it then has."""
    got, told = file.tell(), time.monotonic()
    while chunk := response.read(_CHUNK):
        try:
            file.write(chunk)
            file.flush()
        except OSError as error:
            raise CissError(
                f"cannot write {partial}: {error.strerror}; free some space or choose another "
                "folder, and run this again: what has arrived is kept"
            ) from None
        got += len(chunk)
        if time.monotonic() - told > _LOG_SECONDS:
            told = time.monotonic()
            log.info("%s%s", size_text(got), f" of {size_text(total)}" if total else "")
    return got


# --- The partial file ----------------------------------------------------------------------


@contextmanager
def _opened_alone(partial: Path, target: Path) -> Iterator[IO[bytes] | None]:
    """Open ``partial`` for this process alone; ``None`` where another has just finished it."""
    with partial.open("ab+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CissError(
                f"another process is downloading {target}; wait for it, or end it"
            ) from None
        except OSError:
            # Some network file systems have no locks.
            pass
        same = partial.exists() and partial.stat().st_ino == os.fstat(file.fileno()).st_ino
        yield file if same else None


def _state_file(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.json")


def _read_state(partial: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        content = json.loads(_state_file(partial).read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return content
    return {}


def _continuable(remote: Remote, url: str, state: Mapping[str, Any]) -> bool:
    """Whether a partial file may be continued: a digest will tell, or the server's own mark."""
    return bool(remote.digests) or (state.get("url") == url and bool(state.get("validator")))


def _restart(file: IO[bytes], partial: Path) -> None:
    file.seek(0)
    file.truncate()
    _state_file(partial).unlink(missing_ok=True)


def _discard(partial: Path) -> None:
    partial.unlink(missing_ok=True)
    _state_file(partial).unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CissError(f"cannot make the folder {folder}: {error.strerror}") from None


# --- Verification --------------------------------------------------------------------------


def _verify(remote: Remote, path: Path, target: Path) -> str:
    """Return the SHA-256 of ``path``; ``CissError`` where the file is not what it must be."""
    source = "set under prepare.checksums" if remote.pinned else "published"
    known = [(name, digest, source) for name, digest in remote.digests.items()]
    note = recorded(target)
    if note is not None and not remote.pinned and not remote.trees:
        known.append(("sha256", note, f"noted in {target.with_name(RECORD)} when it was fetched"))
    found = digests_of(path, sorted({"sha256", *(name for name, _, _ in known)}))
    for name, digest, source in known:
        if not found[name].startswith(digest):
            there = path == target
            todo = "move it away to have it fetched again" if there else "it is not kept"
            raise CissError(
                f"{target if there else remote.name} is not the expected file: its {name} is "
                f"{found[name]}, the one {source} is {digest}; {todo}. If you trust it, set "
                f"prepare.checksums: {{{remote.name}: {found['sha256']}}}"
            )
    return found["sha256"]


def _as_expected(remote: Remote, path: Path, target: Path) -> bool:
    try:
        _verify(remote, path, target)
    except CissError:
        return False
    return True


def _note(remote: Remote, target: Path, digest: str) -> None:
    """Remember a fetched file's SHA-256, so that a later one can be compared with it."""
    if remote.trees:
        log.info("%s has no fixed checksum; its content is compared once it is unpacked", target)
        return
    if _read_record(target.parent).get(target.name) != digest:
        with _record_locked(target.parent):
            known = _read_record(target.parent) | {target.name: digest}
            lines = [f"{value}  {name}\n" for name, value in sorted(known.items())]
            write_text(target.with_name(RECORD), "".join(lines))
    if remote.digests:
        log.info("%s is verified, sha256 %s", target, digest)
    else:
        log.info(
            "no checksum of %s is published: sha256 %s is noted in %s and compared from now on; "
            "pin it with prepare.checksums",
            remote.name,
            digest,
            target.with_name(RECORD),
        )


@contextmanager
def _record_locked(folder: Path) -> Iterator[None]:
    """Let downloads into one folder note their digests one after the other."""
    with (folder / f".{RECORD}.lock").open("a") as file:
        # Some network file systems have no locks.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_record(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / RECORD).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    found = [re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in lines]
    return {match[2]: match[1] for match in found if match}
