"""Downloads from a local server with the faults of real ones."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import full_disk
from web import Site, serving

from ciss import download
from ciss.download import Remote, digests_of, fetch, pinned, recorded
from ciss.errors import CissError

CONTENT = random.Random(0).randbytes(300_000)
SHA = hashlib.sha256(CONTENT).hexdigest()
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_pause", lambda failures: 0.0)


@pytest.fixture
def site() -> Iterator[Site]:
    with serving({"file.bin": CONTENT}) as served:
        yield served


def remote(site: Site, **digests: str) -> Remote:
    return Remote("file.bin", (f"{site.url}/file.bin",), digests)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".SHA256SUMS.lock")


def test_a_file_is_fetched_once(tmp_path: Path, site: Site) -> None:
    target = tmp_path / "new" / "file.bin"
    assert fetch(remote(site, md5=MD5), target) == SHA
    assert target.read_bytes() == CONTENT
    assert recorded(target) == SHA
    assert names(target.parent) == ["SHA256SUMS", "file.bin"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~umask()
    assert fetch(remote(site, md5=MD5), target) == SHA
    assert len(site.asked) == 1


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_record_is_one_that_sha256sum_reads(tmp_path: Path, site: Site) -> None:
    fetch(remote(site), tmp_path / "file.bin")
    if shutil.which("sha256sum") is None:
        pytest.skip("needs sha256sum")
    subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=tmp_path, check=True)


def test_a_broken_connection_is_continued(tmp_path: Path, site: Site) -> None:
    site.breaks = [100_000, 50_000]
    fetch(remote(site, sha256=SHA), tmp_path / "file.bin")
    assert [asked for _, asked in site.asked] == [None, "bytes=100000-", "bytes=150000-"]
    assert site.sent == len(CONTENT)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_download_is_continued_by_the_next_call(tmp_path: Path, site: Site) -> None:
    site.breaks = [100_000, 0, 0, 0, 0]
    with pytest.raises(CissError, match=r"broke off at 100 kB of 300 kB.*the 100 kB .* are kept"):
        fetch(remote(site, sha256=SHA), tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()
    site.asked.clear()
    site.breaks.clear()
    fetch(remote(site, sha256=SHA), tmp_path / "file.bin")
    assert [asked for _, asked in site.asked] == ["bytes=100000-"]
    assert site.sent == len(CONTENT)
    assert names(tmp_path) == ["SHA256SUMS", "file.bin"]


def test_a_whole_partial_file_needs_no_more_bytes(tmp_path: Path, site: Site) -> None:
    (tmp_path / ".file.bin.partial").write_bytes(CONTENT)
    fetch(remote(site, sha256=SHA), tmp_path / "file.bin")
    assert site.sent == 0
    (tmp_path / "file.bin").unlink()
    (tmp_path / ".file.bin.partial").write_bytes(CONTENT + b"more")
    fetch(remote(site, sha256=SHA), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_without_ranges_it_starts_again(tmp_path: Path, site: Site) -> None:
    site.ranges = False
    site.breaks = [100_000]
    fetch(remote(site, sha256=SHA), tmp_path / "file.bin")
    assert len(site.asked) == 2
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("known", [True, False], ids=["digest known", "no digest"])
def test_a_file_that_changed_meanwhile_is_not_patched_together(
    tmp_path: Path, site: Site, known: bool
) -> None:
    other = random.Random(1).randbytes(300_000)
    site.files["file.bin"] = other
    site.breaks = [100_000, 0, 0, 0, 0]
    wanted = remote(site, sha256=SHA) if known else remote(site)
    with pytest.raises(CissError):
        fetch(wanted, tmp_path / "file.bin")
    assert (tmp_path / ".file.bin.partial").read_bytes() == other[:100_000]
    site.files["file.bin"] = CONTENT
    site.breaks.clear()
    # Even where the server does not notice, a known digest does.
    site.etag = '"first"' if known else '"second"'
    fetch(wanted, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_another_server_continues_what_a_first_one_began(tmp_path: Path, site: Site) -> None:
    site.breaks = [100_000, 0, 0, 0, 0]
    with pytest.raises(CissError):
        fetch(remote(site, sha256=SHA), tmp_path / "file.bin")
    with serving({"file.bin": CONTENT}) as other:
        other.etag = '"its own"'
        fetch(remote(other, sha256=SHA), tmp_path / "file.bin")
    assert [asked for _, asked in other.asked] == ["bytes=100000-"]
    assert other.sent == 200_000


def test_without_any_mark_a_partial_file_is_not_trusted(tmp_path: Path, site: Site) -> None:
    site.etag = None
    site.breaks = [100_000]
    fetch(remote(site), tmp_path / "file.bin")
    assert [asked for _, asked in site.asked] == [None, None]
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_an_answer_of_unknown_length(tmp_path: Path, site: Site) -> None:
    site.length = False
    fetch(remote(site, sha256=SHA), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha256"])
def test_a_wrong_checksum(tmp_path: Path, site: Site, algorithm: str) -> None:
    digest = hashlib.new(algorithm, b"other").hexdigest()
    with pytest.raises(CissError, match=f"not the expected file: its {algorithm} is") as caught:
        fetch(remote(site, **{algorithm: digest}), tmp_path / "file.bin")
    assert digest in str(caught.value)
    assert f"prepare.checksums: {{file.bin: {SHA}}}" in str(caught.value)
    assert names(tmp_path) == []


def test_a_beginning_of_the_digest_is_enough(tmp_path: Path, site: Site) -> None:
    fetch(remote(site, sha256=SHA[:8]), tmp_path / "file.bin")
    (tmp_path / "file.bin").unlink()
    (tmp_path / "SHA256SUMS").unlink()
    with pytest.raises(CissError, match="not the expected file"):
        fetch(remote(site, sha256="0" * 8), tmp_path / "file.bin")


def test_what_was_fetched_first_is_expected_from_then_on(
    tmp_path: Path, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    target = tmp_path / "file.bin"
    with caplog.at_level(logging.INFO, "ciss"):
        fetch(remote(site), target)
    assert f"no checksum of file.bin is published: sha256 {SHA} is noted" in caplog.text
    target.unlink()
    site.files["file.bin"] = b"another"
    with pytest.raises(CissError, match=f"noted in .*SHA256SUMS when it was fetched is {SHA}"):
        fetch(remote(site), target)
    # The user may know better.
    other = hashlib.sha256(b"another").hexdigest()
    fetch(pinned(remote(site), {"file.bin": other.upper()}), target)
    assert recorded(target) == other


def test_a_repository_s_archive_may_have_other_bytes_next_time(tmp_path: Path, site: Site) -> None:
    packed = Remote("file.bin", (f"{site.url}/file.bin",), trees={"folder": "0" * 40})
    fetch(packed, tmp_path / "file.bin")
    assert recorded(tmp_path / "file.bin") is None
    (tmp_path / "file.bin").unlink()
    site.files["file.bin"] = b"packed anew"
    fetch(packed, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == b"packed anew"


def test_a_pinned_digest_replaces_the_published_one(tmp_path: Path, site: Site) -> None:
    published = remote(site, md5="0" * 32)
    assert pinned(published, {"another": SHA}) is published
    fetch(pinned(published, {"file.bin": SHA}), tmp_path / "file.bin")
    with pytest.raises(CissError, match=r"set under prepare\.checksums is 1111"):
        fetch(pinned(published, {"file.bin": "1" * 64}), tmp_path / "file.bin")


def test_a_file_that_is_there_is_verified_and_never_replaced(tmp_path: Path, site: Site) -> None:
    (tmp_path / "file.bin").write_bytes(b"mine")
    with pytest.raises(CissError, match=r"file\.bin is not the expected file.*move it away"):
        fetch(remote(site, sha256=SHA), tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == b"mine"
    assert site.asked == []


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (403, 1), (503, 4)])
def test_a_server_that_refuses(tmp_path: Path, site: Site, status: int, asked: int) -> None:
    site.statuses = [status] * 9
    with pytest.raises(CissError, match=f"the server answers {status}") as caught:
        fetch(remote(site, sha256=SHA), tmp_path / "file.bin")
    assert len(site.asked) == asked
    assert str(tmp_path / "file.bin") in str(caught.value)
    assert not (tmp_path / "file.bin").exists()


def test_a_passing_fault_passes(tmp_path: Path, site: Site) -> None:
    site.statuses = [503, 502]
    fetch(remote(site, sha256=SHA), tmp_path / "file.bin")
    assert len(site.asked) == 3


def test_the_next_address_is_tried(tmp_path: Path, site: Site) -> None:
    urls = (f"{site.url}/gone", f"{site.url}/file.bin")
    fetch(Remote("file.bin", urls, {"sha256": SHA}), tmp_path / "file.bin")
    assert [path for path, _ in site.asked] == ["/gone", "/file.bin"]


def test_a_web_page_in_place_of_the_file(tmp_path: Path, site: Site) -> None:
    site.kind = "text/html; charset=utf-8"
    with pytest.raises(CissError, match="a web page in place of the file"):
        fetch(remote(site), tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()


def test_no_server_at_all(tmp_path: Path) -> None:
    with serving({}) as gone:
        pass
    with pytest.raises(CissError, match="Connection refused"):
        fetch(remote(gone), tmp_path / "file.bin")
    assert names(tmp_path) == []


def test_a_check_decides_too(tmp_path: Path, site: Site) -> None:
    def refuse(path: Path) -> None:
        assert path.read_bytes() == CONTENT
        raise CissError("no weights")

    with pytest.raises(CissError, match="no weights"):
        fetch(remote(site), tmp_path / "file.bin", check=refuse)
    assert names(tmp_path) == []


@pytest.mark.parametrize("spelled", ["folder", "file address", "server"])
def test_a_mirror_stands_in_for_the_servers(tmp_path: Path, site: Site, spelled: str) -> None:
    folder = tmp_path / "a mirror"
    folder.mkdir()
    (folder / "file.bin").write_bytes(CONTENT)
    mirrors = {"folder": str(folder), "file address": folder.as_uri(), "server": f"{site.url}/"}
    mirror = mirrors[spelled]
    away = Remote("file.bin", ("http://127.0.0.1:9/file.bin",), {"sha256": SHA})
    fetch(away, tmp_path / "got" / "file.bin", mirror=mirror)
    assert (tmp_path / "got" / "file.bin").read_bytes() == CONTENT
    (folder / "file.bin").unlink()
    site.files.clear()
    with pytest.raises(CissError, match=r"cannot download other\.bin"):
        fetch(Remote("other.bin"), tmp_path / "got" / "other.bin", mirror=mirror)


def test_a_copy_of_the_user_s_is_taken_first(tmp_path: Path, site: Site) -> None:
    (tmp_path / "own.bin").write_bytes(CONTENT)
    fetch(remote(site, sha256=SHA), tmp_path / "got" / "file.bin", own=tmp_path / "own.bin")
    assert (tmp_path / "got" / "file.bin").read_bytes() == CONTENT
    fetch(remote(site, sha256=SHA), tmp_path / "more" / "file.bin", own=tmp_path / "none")
    assert len(site.asked) == 1


def test_what_needs_a_licence_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(CissError, match="without its publisher's leave"):
        fetch(Remote("licensed.zip"), tmp_path / "licensed.zip")


def test_a_full_disk_is_one_sentence_and_the_download_goes_on(tmp_path: Path, site: Site) -> None:
    with full_disk(120_000), pytest.raises(CissError, match=r"cannot write .*what has arrived"):
        fetch(remote(site, sha256=SHA), tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()
    fetch(remote(site, sha256=SHA), tmp_path / "file.bin")
    assert site.asked[-1][1] == "bytes=120000-"
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_a_disk_that_is_too_small_is_seen_before(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CissError, match=r"needs 300 kB more, but .* has only 1 kB left"):
        fetch(remote(site, sha256=SHA), tmp_path / "file.bin")


def test_two_processes_do_not_write_one_file(tmp_path: Path, site: Site) -> None:
    with (tmp_path / ".file.bin.partial").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CissError, match="another process is downloading"):
            fetch(remote(site, sha256=SHA), tmp_path / "file.bin")
    fetch(remote(site, sha256=SHA), tmp_path / "file.bin")


def test_proxies_come_from_the_environment(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", site.url)
    site.files["http://example.invalid/file.bin"] = CONTENT
    url = "http://example.invalid/file.bin"
    fetch(Remote("file.bin", (url,), {"sha256": SHA}), tmp_path / "file.bin")
    assert site.asked == [(url, None)]


def test_digests() -> None:
    path = Path(__file__)
    found = digests_of(path, ["md5", "sha256"])
    assert found["md5"] == hashlib.md5(path.read_bytes()).hexdigest()
    assert found["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_downloads_into_one_folder_note_their_digests_one_after_the_other(
    tmp_path: Path, site: Site
) -> None:
    with (tmp_path / ".SHA256SUMS.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        other = threading.Thread(
            target=fetch, args=(remote(site), tmp_path / "file.bin"), daemon=True
        )
        other.start()
        other.join(0.5)
        assert not (tmp_path / "SHA256SUMS").exists()
        (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  another.bin\n")
    other.join(60)
    assert [line[66:] for line in (tmp_path / "SHA256SUMS").read_text().splitlines()] == [
        "another.bin",
        "file.bin",
    ]
