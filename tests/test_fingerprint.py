from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ciss import fingerprint as module
from ciss.datasets import open_dataset, shapes
from ciss.errors import CissError
from ciss.fingerprint import fingerprint

LONG_AGO = 1_000_000_000


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fingerprint") / "data"
    shapes.generate(root, train=6, val=2, size=32, seed=0)
    for path in root.rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "data"))


def taken(root: Path, cache: Path) -> str:
    return fingerprint(open_dataset("demo", "shapes", root), cache)


def mask(root: Path) -> Path:
    return root / "SegmentationClassAug" / "train_000003.png"


def flip_a_byte(path: Path, at: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_neither_place_nor_times_matter(root: Path, tmp_path: Path) -> None:
    before = taken(root, tmp_path / "cache.json")
    copy = Path(shutil.copytree(root, tmp_path / "elsewhere"))
    for path in copy.rglob("*.png"):
        os.utime(path, (LONG_AGO + 9, LONG_AGO + 9))
    assert taken(copy, tmp_path / "cache.json") == before
    assert taken(copy, tmp_path / "other.json") == before
    text = (root / "splits/val.txt").read_text()
    (root / "splits/val.txt").write_text(text.replace("\n", "\r\n"))
    assert taken(root, tmp_path / "cache.json") == before


def test_content_matters(root: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache.json"
    seen = {taken(root, cache)}

    def noticed(changed: Path, seconds: int = 0) -> None:
        # Nothing is young, so that what was remembered of all files is asked first.
        os.utime(changed, (LONG_AGO, LONG_AGO + seconds))
        before = len(seen)
        seen.add(taken(root, cache))
        assert len(seen) == before + 1
        assert json.loads(cache.read_text().partition("\n")[0])["state"]

    flip_a_byte(mask(root))
    noticed(mask(root), seconds=1)
    mask(root).write_bytes(mask(root).read_bytes() + b"!")
    noticed(mask(root), seconds=1)
    image = root / "JPEGImages/train_000003.jpg"
    image.write_bytes(image.read_bytes() + b"!")
    noticed(image)
    lists = root / "splits/train_aug.txt"
    lines = lists.read_text().splitlines()
    lists.write_text("\n".join(reversed(lines)))
    noticed(lists)
    lists.write_text("\n".join(lines[1:]))
    noticed(lists)
    # The same files in the same order, but the last for training is one to validate on.
    lists.write_text("\n".join(lines[1:-1]))
    val = root / "splits/val.txt"
    val.write_text("\n".join([lines[-1], val.read_text()]))
    noticed(val)
    image.unlink()
    seen.add(taken(root, cache))
    mask(root).unlink()
    seen.add(taken(root, cache))
    assert len(seen) == 9


def test_second_call_reads_no_mask(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = taken(root, tmp_path / "cache.json")
    read: list[Path] = []
    honest = module._hash

    def recorded(path: Path) -> str:
        read.append(path)
        return honest(path)

    monkeypatch.setattr(module, "_hash", recorded)
    assert taken(root, tmp_path / "cache.json") == first
    assert read == []
    flip_a_byte(mask(root))
    assert taken(root, tmp_path / "cache.json") != first
    assert read == [mask(root)]
    # It has only just been written: a change in the same instant must not go unnoticed.
    taken(root, tmp_path / "cache.json")
    assert read == [mask(root)] * 2


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"root": 1}', '{"root": "R", "masks": 3}'])
def test_unreadable_cache_is_ignored(root: Path, tmp_path: Path, content: str) -> None:
    cache = tmp_path / "cache.json"
    expected = taken(root, cache)
    cache.write_text(content.replace("R", str(root)))
    assert taken(root, cache) == expected


def test_place_without_a_cache_is_ignored(root: Path, tmp_path: Path) -> None:
    expected = taken(root, tmp_path / "cache.json")
    (tmp_path / "file").touch()
    assert taken(root, tmp_path / "file" / "cache.json") == expected


def test_masks_that_cannot_be_read_are_not_remembered(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "_hash", lambda _: module._UNREADABLE)
        unreadable = taken(root, tmp_path / "cache.json")
    assert taken(root, tmp_path / "cache.json") != unreadable


def test_missing_root(tmp_path: Path) -> None:
    with pytest.raises(CissError, match=r"datasets\.demo\.root"):
        taken(tmp_path / "absent", tmp_path / "cache.json")


def test_an_unreadable_folder_is_the_index_s_to_report(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = taken(root, tmp_path / "cache.json")
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if path == root / "JPEGImages":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    # Not by taking rights away: root has them all.
    monkeypatch.setattr(module.os, "scandir", refuse)
    assert taken(root, tmp_path / "cache.json") != before
