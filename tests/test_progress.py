"""The progress file: never half-written, never of another recipe, never silently wrong."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import full_disk

from ciss.errors import CissError
from ciss.files import replacing
from ciss.progress import Progress, identity


@pytest.fixture(autouse=True)
def messages(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("ciss"), "propagate", True)
    caplog.set_level(logging.INFO, "ciss")


def state(seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weights": {"a": torch.randn(64, generator=generator), "b": torch.arange(5)},
        "iteration": 7,
        "history": [{"epoch": 1, "loss": 0.1 + seed}],
    }


def assert_equal(ours: dict[str, Any] | None, theirs: dict[str, Any]) -> None:
    assert ours is not None
    assert ours.keys() == theirs.keys()
    assert ours["iteration"] == theirs["iteration"]
    assert ours["history"] == theirs["history"]
    for name, value in theirs["weights"].items():
        assert torch.equal(ours["weights"][name], value)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "folder" / "progress.pt", "mine")
    assert progress.load() is None
    progress.save(state(1))
    progress.save(state(2))
    assert_equal(progress.load(), state(2))
    names = sorted(path.name for path in (tmp_path / "folder").iterdir())
    assert names == ["previous_progress.pt", "progress.pt"]
    progress.clear()
    progress.clear()
    assert not list((tmp_path / "folder").iterdir())


def test_without_a_path_nothing_is_kept() -> None:
    progress = Progress(None, "mine")
    progress.save(state())
    assert progress.load() is None
    progress.clear()


def test_progress_of_another_recipe_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Progress(tmp_path / "progress.pt", "theirs").save(state())
    assert Progress(tmp_path / "progress.pt", "mine").load() is None
    assert "another recipe: passed over" in caplog.text
    assert "starting anew" in caplog.text


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all" * 100])
def test_what_is_no_progress_file_is_passed_over(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "progress.pt"
    path.write_bytes(content)
    assert Progress(path, "mine").load() is None
    assert "is damaged" in caplog.text


def test_a_truncated_file_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "progress.pt"
    progress = Progress(path, "mine")
    progress.save(state())
    whole = path.read_bytes()
    for length in range(1, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        caplog.clear()
        assert progress.load() is None, length
        assert "is damaged" in caplog.text


def test_a_flipped_bit_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "progress.pt"
    progress = Progress(path, "mine")
    progress.save(state())
    whole = path.read_bytes()
    payload = state()["weights"]["a"].numpy().tobytes()
    begin = whole.index(payload)
    draw = random.Random(0)
    anywhere = [draw.randrange(len(whole)) for _ in range(200)]
    inside = [begin + draw.randrange(len(payload)) for _ in range(20)]
    for place in anywhere + inside:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        caplog.clear()
        assert progress.load() is None, place
        assert "is damaged" in caplog.text


def test_no_code_is_run_from_a_progress_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    path = tmp_path / "progress.pt"
    buffer = io.BytesIO()
    torch.save({"identity": "mine", "state": Evil()}, buffer)
    path.write_bytes(hashlib.sha256(buffer.getvalue()).digest() + buffer.getvalue())
    assert Progress(path, "mine").load() is None
    assert not (tmp_path / "touched").exists()


def test_a_full_disk_keeps_the_old_progress(tmp_path: Path) -> None:
    path = tmp_path / "progress.pt"
    progress = Progress(path, "mine")
    progress.save(state(1))
    with (
        full_disk(path.stat().st_size // 2),
        pytest.raises(CissError, match=r"cannot save the progress in .*make room"),
    ):
        progress.save(state(2))
    assert_equal(progress.load(), state(1))
    assert [file.name for file in tmp_path.iterdir()] == ["progress.pt"]


def test_a_disk_without_room_for_three_files_does_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress(tmp_path / "progress.pt", "mine")
    progress.save(state(1))
    progress.save(state(2))
    monkeypatch.setattr("ciss.progress.replacing", room_for(2))
    progress.save(state(3))
    assert_equal(progress.load(), state(3))
    monkeypatch.setattr("ciss.progress.replacing", room_for(1))
    with pytest.raises(CissError, match="make room"):
        progress.save(state(4))
    assert_equal(progress.load(), state(3))
    monkeypatch.undo()
    progress.save(state(4))
    assert_equal(progress.load(), state(4))


def room_for(files: int) -> Any:
    """``replacing`` on a disk with room for so many files, the one being written included."""

    @contextmanager
    def limited(path: Path) -> Iterator[Path]:
        with replacing(path) as temporary:
            if len(list(path.parent.iterdir())) > files:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield temporary

    return limited


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "absent"])
def test_where_the_last_file_is_damaged_the_one_before_is_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "progress.pt"
    progress = Progress(path, "mine")
    for number in range(3):
        progress.save(state(number))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    match damage:
        case "truncated":
            path.write_bytes(content[:-100])
        case "flipped":
            path.write_bytes(content)
        case "empty":
            path.write_bytes(b"")
        case "absent":  # a run that was killed between its two renames
            path.unlink()
    assert_equal(progress.load(), state(1))
    assert ("is damaged" in caplog.text) == (damage != "absent")
    # The damaged file does not take the good one's place.
    progress.save(state(4))
    path.unlink()
    assert_equal(progress.load(), state(1))


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "progress.pt"
    progress = Progress(path, "mine")
    progress.save(state(1))
    (tmp_path / ".progress.pt.a1b2c3.partial").write_bytes(b"half")
    (tmp_path / ".model.safetensors.a1b2c3.partial").write_bytes(b"another's")
    assert_equal(progress.load(), state(1))
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == [".model.safetensors.a1b2c3.partial", "progress.pt"]


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CissError, match="cannot save the progress"):
        Progress(tmp_path / "file" / "progress.pt", "mine").save(state())


def test_identity_depends_on_every_fact_and_on_no_order() -> None:
    facts = {"seed": 1, "recipe": {"lr": 0.1, "crop": 32}, "classes": None}
    same = {"classes": None, "recipe": {"crop": 32, "lr": 0.1}, "seed": 1}
    assert identity(facts) == identity(same)
    assert identity(facts) != identity({**facts, "seed": 2})
    assert identity(facts) != identity({**facts, "recipe": {"lr": 0.1, "crop": 33}})
