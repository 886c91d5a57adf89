from __future__ import annotations

import fcntl
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ciss import image_cache
from ciss.datasets import open_dataset, shapes
from ciss.errors import CissError
from ciss.image_cache import ImageCache, cache_folder, cached_images
from ciss.images import read_pair
from ciss.index import build_index
from ciss.loading import TrainingBatches, TrainingImages

IDENTITY = np.arange(256, dtype=np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    shapes.generate(tmp_path / "data", train=9, val=3, size=40, seed=0)
    return tmp_path / "data"


@pytest.fixture
def index(root: Path) -> pd.DataFrame:
    return build_index(open_dataset("shapes", "shapes", root))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "scratch" / "cache"


@pytest.fixture
def logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("ciss"), "propagate", True)
    caplog.set_level(logging.INFO, "ciss")
    return caplog


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def batches(root: Path, index: pd.DataFrame, cache: ImageCache | None, workers: int) -> list[Any]:
    images = TrainingImages(root, index, IDENTITY, 32, seed=3)
    images.cache = cache
    loader = TrainingBatches(images, 4, workers=workers)
    return [batch for epoch in range(2) for batch in loader.epoch(epoch, start=epoch)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_the_same_bits_with_and_without(
    root: Path, index: pd.DataFrame, folder: Path, workers: int
) -> None:
    cache = cached_images(folder, "shapes", root, index, workers=2)
    assert cache is not None
    # The index's validation images are not in the cache: they are decoded.
    assert len(cache.pairs) == 9 < len(index)
    ours, expected = (batches(root, index, which, workers) for which in (cache, None))
    assert len(ours) == len(expected) == 5
    for ours_, expected_ in zip(ours, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours_, expected_, strict=True))


def test_nothing_is_decoded_with_a_cache(
    root: Path, index: pd.DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_images(folder, "shapes", root, index)
    monkeypatch.setattr(image_cache, "read_pair", None)
    monkeypatch.setattr("ciss.loading.read_pair", None)
    cache = cached_images(folder, "shapes", root, index)
    assert batches(root, index[index["subset"] == "train"], cache, 0)


def test_file_is_as_large_as_announced_and_written_once(
    root: Path, index: pd.DataFrame, folder: Path, logged: pytest.LogCaptureFixture
) -> None:
    cache = cached_images(folder, "shapes", root, index)
    assert cache is not None
    assert cache.path.stat().st_size == 4096 + 9 * 40 * 40 * 4
    before = cache.path.stat().st_mtime_ns
    assert cached_images(folder, "shapes", root, index) is not None
    assert cache.path.stat().st_mtime_ns == before
    assert logged.text.count("writing 9 decoded images") == 1


def test_changed_images_get_another_file(root: Path, index: pd.DataFrame, folder: Path) -> None:
    pairs = index.loc[index["subset"] == "train", ["image", "mask"]].to_numpy().tolist()
    # Of the same size in bytes, as an edited JPEG hardly is: the time alone tells.
    image, other = root / pairs[0][0], root / pairs[1][0]
    size = max(image.stat().st_size, other.stat().st_size)
    image.write_bytes(image.read_bytes().ljust(size, b"\0"))
    os.utime(image, ns=(2, 2))
    first = cached_images(folder, "shapes", root, index)
    image.write_bytes(other.read_bytes().ljust(size, b"\0"))
    os.utime(image, ns=(1, 1))
    second = cached_images(folder, "shapes", root, index)
    assert first is not None
    assert second is not None
    assert first.path != second.path
    pair = (pairs[0][0], pairs[0][1])
    np.testing.assert_array_equal(second.read_pair(pair)[0], read_pair(root, pair)[0])
    assert not np.array_equal(first.read_pair(pair)[0], second.read_pair(pair)[0])


def test_damaged_file_is_written_anew(root: Path, index: pd.DataFrame, folder: Path) -> None:
    cache = cached_images(folder, "shapes", root, index)
    assert cache is not None
    content = cache.path.read_bytes()
    for damaged in (content[:-1], content[:100], b"", b"\xff" * len(content)):
        cache.path.write_bytes(damaged)
        assert cached_images(folder, "shapes", root, index) is not None
        assert cache.path.read_bytes() == content


def test_disk_without_room_is_refused_before_anything_is_written(
    root: Path,
    index: pd.DataFrame,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    logged: pytest.LogCaptureFixture,
) -> None:
    large = index.assign(width=50_000, height=40_000)
    monkeypatch.setattr(image_cache, "_write", None)
    free = 3 * 2**30
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))
    assert cached_images(folder, "shapes", root, large) is None
    assert "would need 72.0 GB and has 3.2 GB free, of which 2.1 GB must be left" in logged.text
    assert "runtime.cache" in logged.text
    assert files(folder) == []


def test_full_disk_leaves_nothing_and_the_training_decodes(
    root: Path,
    index: pd.DataFrame,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    logged: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert cached_images(folder, "shapes", root, index) is None
    assert "No space left on device" in logged.text
    assert files(folder) == []


def test_interrupted_writing_leaves_nothing_and_starts_again(
    root: Path, index: pd.DataFrame, folder: Path
) -> None:
    with pytest.raises(CissError, match="stopped by SIGTERM while the cache"):
        cached_images(folder, "shapes", root, index, stopped=lambda: "SIGTERM")
    assert files(folder) == []
    # What a killed process leaves is cleared away by the next one.
    cache = cached_images(folder, "shapes", root, index)
    assert cache is not None
    left = folder / f".{cache.path.name}.abc.partial"
    left.write_bytes(b"half")
    cache.path.unlink()
    assert cached_images(folder, "shapes", root, index) is not None
    assert files(folder) == [cache.path.name]


def test_second_job_waits_for_the_first(root: Path, index: pd.DataFrame, folder: Path) -> None:
    cache = cached_images(folder, "shapes", root, index)
    assert cache is not None
    kept = folder / "kept"
    cache.path.rename(kept)
    found: list[ImageCache | None] = []
    with (folder / f".{cache.path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(
            target=lambda: found.append(cached_images(folder, "shapes", root, index))
        )
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        with pytest.raises(CissError, match="stopped by the time limit"):
            cached_images(folder, "shapes", root, index, stopped=lambda: "the time limit")
        # The other job finishes its file.
        kept.rename(cache.path)
    waiting.join(10)
    assert found[0] is not None
    assert files(folder) == [cache.path.name]


def test_unreadable_images_and_stale_indices_stop(
    root: Path, index: pd.DataFrame, folder: Path
) -> None:
    with pytest.raises(CissError, match="it is 40 × 40 pixels, the index says 41 × 40"):
        cached_images(folder, "shapes", root, index.assign(width=41))
    (root / index["image"][0]).write_bytes(b"")
    with pytest.raises(CissError, match=f"cannot read .*{index['image'][0]}"):
        cached_images(folder, "shapes", root, index)
    assert files(folder) == []


def test_folder_that_cannot_be_written_is_named(
    root: Path, index: pd.DataFrame, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CissError, match=r"cannot keep decoded images in .*file.*runtime.cache"):
        cached_images(tmp_path / "file", "shapes", root, index)


def test_folder_may_name_variables_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert cache_folder("$SCRATCH/ciss") == Path("/scratch/me/ciss")
    monkeypatch.delenv("SCRATCH")
    with pytest.raises(CissError, match=r"runtime.cache is '\$SCRATCH/ciss'"):
        cache_folder("$SCRATCH/ciss")
