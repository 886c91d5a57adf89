"""Unpacking: what is wanted arrives whole, what is dangerous does not."""

from __future__ import annotations

import io
import stat
import subprocess
import tarfile
import zipfile
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
        assert not (tmp_path / "out" / "big").exists()


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
