"""Unpacking: what is wanted arrives whole, what is dangerous does not."""

from __future__ import annotations

import io
import stat
import subprocess
import tarfile
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import full_disk

from ciss import archives
from ciss.archives import git_tree_id, member_names, read_members, unpack
from ciss.errors import CissError

FILES = {"top/a.txt": b"one", "top/in/b.txt": b"two" * 1000, "top/c.bin": b""}


def write_tar(path: Path, files: dict[str, bytes], *more: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as tar:
        tar.addfile(_folder("top"))
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in more:
            tar.addfile(info)
    return path


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.mkdir("top")
        for name, content in files.items():
            zipped.writestr(name, content)
    return path


def _folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


def make(kind: str, folder: Path) -> Path:
    path = folder / f"archive.{kind}"
    return write_zip(path, FILES) if kind == "zip" else write_tar(path, FILES)


def inside(name: str) -> str:
    return name.removeprefix("top/")


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip"])
def test_what_is_wanted_is_written(tmp_path: Path, kind: str) -> None:
    archive = make(kind, tmp_path)
    assert sorted(member_names(archive)) == sorted(FILES)
    assert read_members(archive, {"top/a.txt", "top/none"}) == {"top/a.txt": b"one"}
    out = tmp_path / "out"
    count = unpack(archive, out, lambda name: None if name.endswith("a.txt") else inside(name))
    assert count == 2
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {"in/b.txt", "c.bin"}
    assert (out / "in/b.txt").read_bytes() == FILES["top/in/b.txt"]


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip"])
def test_an_interrupted_unpacking_goes_on(tmp_path: Path, kind: str) -> None:
    archive = make(kind, tmp_path)
    out = tmp_path / "out"
    unpack(archive, out, inside)
    before = (out / "a.txt").stat().st_mtime_ns
    (out / "in/b.txt").write_bytes(b"half")
    unpack(archive, out, inside)
    assert (out / "in/b.txt").read_bytes() == FILES["top/in/b.txt"]
    assert (out / "a.txt").stat().st_mtime_ns == before


@pytest.mark.parametrize("kind", ["tar", "zip"])
@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_nothing_is_written_elsewhere(tmp_path: Path, kind: str, name: str) -> None:
    path = tmp_path / f"archive.{kind}"
    (write_zip if kind == "zip" else write_tar)(path, {name: b"x"})
    with pytest.raises(CissError, match="would be written to"):
        unpack(path, tmp_path / "in" / "out", lambda name: name)
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("top/link")
    info.type, info.linkname = kind, "/etc/passwd"
    archive = write_tar(tmp_path / "archive.tar", FILES, info)
    with pytest.raises(CissError, match="top/link, which is a link or a device"):
        unpack(archive, tmp_path / "out", inside)
    # Not wanted, they are no matter.
    assert unpack(archive, tmp_path / "out", lambda n: None if "link" in n else inside(n)) == 3


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as zipped:
        zipped.writestr(info, "/etc/passwd")
    with pytest.raises(CissError, match="is a link or a device"):
        unpack(tmp_path / "archive.zip", tmp_path / "out", lambda name: name)


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip"])
def test_a_damaged_archive_is_one_sentence(tmp_path: Path, kind: str) -> None:
    big = {"top/big": bytes(range(256)) * 4000}
    path = tmp_path / f"archive.{kind}"
    (write_zip if kind == "zip" else write_tar)(path, big)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
        path.write_bytes(content)
        with pytest.raises(CissError, match="is no archive or is damaged"):
            unpack(path, tmp_path / "out", inside)
        assert not [*tmp_path.glob("out/**/*big*")]


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "archive.zip"
    with zipfile.ZipFile(path, "w") as zipped:
        zipped.writestr("a", b"content of a")
    path.write_bytes(path.read_bytes().replace(b"content", b"contend", 1))
    with pytest.raises(CissError, match="damaged"):
        unpack(path, tmp_path / "out", lambda name: name)
    assert not (tmp_path / "out" / "a").exists()


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_tar(tmp_path / "archive.tar", {"top/big": b"x" * 100_000})
    with full_disk(50_000), pytest.raises(CissError, match=r"cannot write .*goes on where it"):
        unpack(archive, tmp_path / "out", inside)
    assert not [*tmp_path.glob("out/**/*big*")]
    usage = archives.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CissError, match=r"needs 100 kB, but .* has only 1 kB left"):
        unpack(archive, tmp_path / "new", inside)
    # Of what lies there already, only what is wanted of this archive makes it need less.
    (tmp_path / "new" / "another").write_bytes(b"x" * 100_000)
    with pytest.raises(CissError, match=r"needs 100 kB, but .* has only 1 kB left"):
        unpack(archive, tmp_path / "new", inside)
    (tmp_path / "new" / "big").write_bytes(b"x" * 100_000)
    assert unpack(archive, tmp_path / "new", inside) == 1


def test_a_disk_without_room_for_so_many_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make("tgz", tmp_path)
    full = types.SimpleNamespace(
        f_files=10, f_favail=2, f_blocks=9, f_bfree=9, f_bavail=9, f_frsize=4096
    )
    monkeypatch.setattr(archives.os, "statvfs", lambda path: full)
    with pytest.raises(CissError, match=r"makes 3 files, but .* has room for 2;"):
        unpack(archive, tmp_path / "out", inside)
    (tmp_path / "out" / "a.txt").write_bytes(FILES["top/a.txt"])
    assert unpack(archive, tmp_path / "out", inside) == 3


# --- Archives that were made to do harm ------------------------------------------------------


def zeros(kind: str, path: Path, size: int) -> Path:
    """An archive of one honest file and one of ``size`` zeros."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as zipped:
            zipped.writestr("top/a.txt", b"one")
            zipped.writestr("top/big", bytes(size))
        return path
    info = tarfile.TarInfo("top/a.txt"), tarfile.TarInfo("top/big")
    info[0].size, info[1].size = 3, size
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        tar.addfile(info[0], io.BytesIO(b"one"))
        tar.addfile(info[1], io.BytesIO(bytes(size)))
    return path


def refused(archive: Path, out: Path, says: str, place: Callable[[str], str | None]) -> None:
    """Check that an archive ends in one sentence and leaves nothing behind."""
    with pytest.raises(CissError, match=says) as raised:
        unpack(archive, out, place)
    assert "\n" not in str(raised.value)
    assert not out.exists()


@pytest.mark.parametrize("kind", ["tgz", "zip"])
def test_what_grows_far_beyond_the_archive_is_not_unpacked(tmp_path: Path, kind: str) -> None:
    bomb = zeros(kind, tmp_path / f"bomb.{kind}", 65_000_000)
    assert bomb.stat().st_size < 1_000_000
    out = tmp_path / "out"
    refused(bomb, out, "more than 64 MB, far more than images grow", inside)

    # Of a zip only what is wanted is expanded; a tar is expanded up to what is.
    def small(name: str) -> str | None:
        return "a.txt" if name == "top/a.txt" else None

    if kind == "zip":
        assert unpack(bomb, out, small) == 1
    else:
        refused(bomb, out, "it holds more than 64 MB", small)
    # What is as large in the archive too, or not that large, is welcome.
    fine = zeros(kind, tmp_path / f"fine.{kind}", 2_000_000)
    assert unpack(fine, out, inside) == 2


@pytest.mark.parametrize("kind", ["tgz", "zip"])
def test_a_crowd_of_tiny_files_is_not_unpacked(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes a block of the disk and an entry in its tables, whatever it holds."""
    monkeypatch.setattr(archives, "_GROWTH_OF_SMALL", 4_000_000)
    crowd = {f"top/{number}": b"" for number in range(1000)}
    path = tmp_path / f"crowd.{kind}"
    (write_zip if kind == "zip" else write_tar)(path, crowd)
    refused(path, tmp_path / "out", "what is wanted of it takes more than 4 MB", inside)
    assert unpack(path, tmp_path / "out", lambda n: "one" if n == "top/7" else None) == 1


def test_a_file_that_is_mostly_holes_is_not_unpacked(tmp_path: Path) -> None:
    info = tarfile.TarInfo("top/holes")
    info.pax_headers = {
        **{"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "top/holes"},
        "GNU.sparse.realsize": str(10**15),
    }
    content = b"1\n0\n1\n".ljust(512, b"\0") + b"x".ljust(512, b"\0")
    info.size = len(content)
    path = tmp_path / "holes.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(content))
    with tarfile.open(path) as tar:
        assert [(entry.size, entry.issparse()) for entry in tar] == [(10**15, True)]
    refused(path, tmp_path / "out", "top/holes, which is a link or a device", inside)


def test_headers_that_claim_impossible_sizes_are_damage(tmp_path: Path) -> None:
    """A name is read whole before anything is known of its file; a negative size never ends."""
    for kind, size in ((tarfile.GNUTYPE_LONGNAME, 10**12), (tarfile.REGTYPE, -1024)):
        info = tarfile.TarInfo("top/name")
        info.type, info.size = kind, size
        path = tmp_path / "header.tar"
        path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        refused(path, tmp_path / "out", "is no archive or is damaged", inside)


def test_a_zip_that_lies_about_its_sizes_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "lies.zip"
    size = 123_456
    content = bytes(size)
    write_zip(path, {"top/lie": content})
    whole = path.read_bytes()
    for claimed in (size - 1, size + 1):
        lie = whole.replace(size.to_bytes(4, "little"), claimed.to_bytes(4, "little"))
        assert lie != whole
        path.write_bytes(lie)
        with pytest.raises(CissError, match="is no archive or is damaged"):
            unpack(path, tmp_path / "out", inside)
        assert not [*tmp_path.glob("out/**/*lie*")]


def test_a_list_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    bomb = zeros("zip", tmp_path / "bomb.zip", 17_000_000)
    with pytest.raises(CissError, match="but top/big in it 17 MB"):
        read_members(bomb, {"top/big"})


@pytest.mark.parametrize("kind", ["tar", "tgz", "zip"])
def test_a_file_where_a_folder_must_be(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"archive.{kind}"
    (write_zip if kind == "zip" else write_tar)(path, {"top/a": b"x", "top/a/b": b"y"})
    refused(path, tmp_path / "out", "holds top/a as a file and as a folder", inside)
    # The same with what lies there already.
    out = tmp_path / "out"
    out.mkdir()
    (out / "in").write_bytes(b"in the way")
    with pytest.raises(CissError, match=r"in is a file, .* has a folder there; move it away"):
        unpack(make(kind, tmp_path), out, inside)
    (out / "in").unlink()
    (out / "a.txt").mkdir()
    with pytest.raises(CissError, match=r"a.txt is a folder, .* has a file there; move it away"):
        unpack(make(kind, tmp_path), out, inside)
    assert [path.name for path in out.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_names_that_no_disk_takes_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"archive.{kind}"
    (write_zip if kind == "zip" else write_tar)(path, {"top/" + "ü" * 130: b"x"})
    refused(path, tmp_path / "out", "a name of 130 characters", inside)


def test_git_s_id_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "repository" / "folder"
    folder.mkdir(parents=True)
    for name in ("b.png", "a.png", "a0.png", "ä.png", "empty"):
        (folder / name).write_bytes(name.encode() * (name != "empty"))

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder.parent), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    assert git_tree_id(folder) == git("write-tree", "--prefix=folder/")
    (folder / "empty").write_bytes(b"x")
    assert git_tree_id(folder) != git("write-tree", "--prefix=folder/")
