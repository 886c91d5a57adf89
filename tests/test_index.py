from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import REPOSITORY, full_disk, real_data_dir
from PIL import Image

from ciss import index as indexing
from ciss.datasets import Dataset, list_images, open_dataset, shapes
from ciss.errors import CissError
from ciss.index import MAX_REPORTED, build_index, parse_labels, read_index, write_index


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("index") / "data"
    shapes.generate(root, train=30, val=4, size=64, seed=0)
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "data"))


def opened(root: Path) -> Dataset:
    return open_dataset("demo", "shapes", root)


def image(root: Path, number: int) -> Path:
    return root / "JPEGImages" / f"train_{number:06d}.jpg"


def mask(root: Path, number: int) -> Path:
    return root / "SegmentationClassAug" / f"train_{number:06d}.png"


def problems(root: Path) -> dict[str, list[str]]:
    """Headings of the report, without their numbers, and the lines below."""
    with pytest.raises(CissError) as error:
        build_index(opened(root))
    groups: dict[str, list[str]] = {}
    heading = ""
    for line in str(error.value).splitlines()[1:]:
        if line.startswith("    "):
            groups[heading].append(line.strip())
        else:
            number, _, heading = line.strip().removesuffix(":").partition(" ")
            groups[heading] = []
            assert int(number) > 0
    return groups


def test_rows_follow_the_lists_and_count_every_pixel(root: Path) -> None:
    index = build_index(opened(root))
    listing = list_images(opened(root))
    assert list(zip(index["image"], index["mask"], strict=True)) == (
        listing["train"] + listing["val"]
    )
    rows, values, pixels = parse_labels(index["labels"])
    for row in (0, 17, 33):
        with Image.open(root / index["mask"][row]) as picture:
            expected, counts = np.unique(np.asarray(picture), return_counts=True)
        assert values[rows == row].tolist() == expected.tolist()
        assert pixels[rows == row].tolist() == counts.tolist()
    assert np.bincount(rows, pixels).tolist() == [64 * 64] * 34


def test_the_same_with_two_processes(root: Path) -> None:
    pd.testing.assert_frame_equal(build_index(opened(root), workers=2), build_index(opened(root)))
    assert multiprocessing.active_children() == []


def test_reads_back_what_was_written(root: Path, tmp_path: Path) -> None:
    index = build_index(opened(root))
    # A mask of a single value must not come back as a number.
    index.loc[0, "labels"] = "0:4096"
    write_index(tmp_path / "index.csv", index)
    pd.testing.assert_frame_equal(read_index(tmp_path / "index.csv"), index)


def test_reading_something_else(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CissError, match="is no index"):
        read_index(tmp_path / "index.csv")
    with pytest.raises(CissError, match="cannot read the index"):
        read_index(tmp_path / "absent.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(CissError, match="cannot read the index"):
        read_index(tmp_path / "empty.csv")


# --- What is wrong -------------------------------------------------------------------------


def test_everything_wrong_is_reported_at_once(root: Path) -> None:
    image(root, 0).unlink()
    mask(root, 1).unlink()
    image(root, 2).write_bytes(b"no image")
    image(root, 3).write_bytes(image(root, 3).read_bytes()[:-200])
    content = mask(root, 4).read_bytes()
    mask(root, 4).write_bytes(content[: len(content) * 2 // 3])
    Image.new("RGB", (32, 64)).save(image(root, 5))
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(mask(root, 7))
    size = image(root, 8).stat().st_size
    image(root, 8).write_bytes(image(root, 8).read_bytes()[: size // 2] + bytes(size - size // 2))
    image(root, 9).write_bytes(b"")
    mask(root, 10).write_bytes(b"")
    Image.fromarray(np.full((64, 64), 3000, np.uint16)).save(image(root, 11), format="PNG")
    image(root, 12).unlink()
    image(root, 12).mkdir()
    train = root / "splits" / "train_aug.txt"
    lines = train.read_text().splitlines()
    train.write_text("\n".join([*lines, lines[20], lines[20], lines[21]]))
    val = root / "splits" / "val.txt"
    val.write_text(f"{val.read_text()}{lines[22]}\n")
    jpeg, png = "JPEGImages/train_0000", "SegmentationClassAug/train_0000"
    found = problems(root)
    # Pillow words this differently from version to version.
    assert found["truncated or damaged files"][1].startswith(f"{png}04.png: ")
    del found["truncated or damaged files"][1]
    assert found == {
        "images that a list has more than once": [
            f"{jpeg}20.jpg: 3 times in train",
            f"{jpeg}21.jpg: 2 times in train",
        ],
        "images in more than one list": [f"{jpeg}22.jpg: in train and val"],
        "missing files": [f"{jpeg}00.jpg", f"{png}01.png"],
        "files that are not images or cannot be read": [
            f"{jpeg}02.jpg: of no known image format",
            f"{jpeg}12.jpg: Is a directory",
        ],
        "truncated or damaged files": [f"{jpeg}03.jpg: breaks off", f"{jpeg}08.jpg: breaks off"],
        "masks of another size than their image": [
            f"{png}05.png: 64 × 64 pixels, its image {jpeg}05.jpg is 32 × 64"
        ],
        "masks with unknown values (known are 0-20, 255)": [f"{png}07.png: 77 (4096 pixels)"],
        "empty files (0 bytes)": [f"{jpeg}09.jpg", f"{png}10.png"],
        "images of more than 8 bits": [f"{jpeg}11.jpg: mode I;16; save it with 8 bits a channel"],
    }


def test_ten_thousand_problems_stay_readable(root: Path, tmp_path: Path) -> None:
    with (root / "splits" / "train_aug.txt").open("a") as file:
        for number in range(10_000):
            file.write(f"/JPEGImages/x{number:05d}.jpg /SegmentationClassAug/x{number:05d}.png\n")
    mask(root, 0).unlink()
    full = tmp_path / "results" / "index.problems.txt"
    with pytest.raises(CissError) as error:
        build_index(opened(root), full_report=full)
    lines = str(error.value).splitlines()
    assert lines[0] == f"dataset 'demo' in {root} has 20,001 problems:"
    assert lines[1] == "  20,001 missing files:"
    assert lines[2] == "    SegmentationClassAug/train_000000.png"
    assert lines[-2:] == [
        f"    and {20_001 - MAX_REPORTED:,} more",
        f"all of them are listed in {full}",
    ]
    assert len(lines) == 2 + MAX_REPORTED + 2
    listed = full.read_text().splitlines()
    assert len(listed) == 2 + 20_001
    assert listed[-1] == "    SegmentationClassAug/x09999.png"
    # A report that is short enough is not written, one that is out of date is removed.
    shutil.copy(mask(root, 1), mask(root, 0))
    train = root / "splits" / "train_aug.txt"
    train.write_text("\n".join(train.read_text().splitlines()[:30]))
    build_index(opened(root), full_report=full)
    assert not full.exists()


def test_trailing_bytes_after_a_whole_image_are_no_problem(root: Path) -> None:
    image(root, 0).write_bytes(image(root, 0).read_bytes() + b"camera's notes")
    with Image.open(image(root, 1)) as picture:
        picture.save(image(root, 1), format="PNG")
    assert len(build_index(opened(root))) == 34


def test_truncated_png_image(root: Path) -> None:
    with Image.open(image(root, 0)) as picture:
        picture.save(image(root, 0), format="PNG")
    image(root, 0).write_bytes(image(root, 0).read_bytes()[:-50])
    ((line,),) = problems(root).values()
    assert line.startswith("JPEGImages/train_000000.jpg: ")


def test_an_image_that_a_camera_turned(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 32)).save(image(root, 0), exif=exif)
    Image.new("L", (32, 64)).save(mask(root, 0))
    ((line,),) = problems(root).values()
    assert line.endswith("is 64 × 32, and its EXIF data ask for it to be turned, which is not done")


def test_empty_list(root: Path) -> None:
    (root / "splits" / "val.txt").write_text("\n")
    assert problems(root) == {"empty lists": ["val"]}


def test_chosen_classes_leave_other_labels_valid(root: Path) -> None:
    dataset = open_dataset("demo", "shapes", root, ["red-disc"])
    assert build_index(dataset)["labels"].equals(build_index(opened(root))["labels"])


def voc(root: Path) -> Dataset:
    return open_dataset("voc", "voc", root)


@pytest.mark.parametrize(
    ("n_train", "words"),
    [
        (30, "train: 30 images, the release has 10,582"),
        (
            1464,
            "train: 1,464 images (the plain VOC 2012 train list, not the augmented one), the "
            "release has 10,582",
        ),
    ],
)
def test_another_release_is_refused_unless_a_subset_is_meant(
    root: Path, n_train: int, words: str
) -> None:
    lists = root / "splits"
    extra = [f"/JPEGImages/{n}.jpg /SegmentationClassAug/{n}.png" for n in range(n_train - 30)]
    with (lists / "train_aug.txt").open("a") as file:
        file.write("\n".join(extra))
    with pytest.raises(CissError) as error:
        build_index(voc(root))
    message = str(error.value)
    assert words in message
    assert "val: 4 images, the release has 1,449" in message
    assert "if a subset is meant, set datasets.voc.subset: true" in message
    if not extra:
        assert build_index(voc(root), is_subset=True).equals(build_index(opened(root)))
        # A list of classes alone says nothing about images.
        with pytest.raises(CissError, match="the release has"):
            build_index(open_dataset("voc", "voc", root, ["cat", "dog"]))


@pytest.mark.parametrize(
    ("kind", "counts"),
    [
        ("voc", {"train": 10_582, "val": 1_449}),
        ("ade", {"train": 20_210, "val": 2_000}),
        ("cityscapes", {"train": 2_975, "val": 500}),
        ("camvid", {"train": 367, "val": 101, "test": 233}),
    ],
)
def test_the_numbers_of_the_releases(
    kind: str, counts: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reported(listing: dict[str, list[tuple[str, str]]]) -> str:
        monkeypatch.setattr(indexing, "list_images", lambda dataset: listing)
        with pytest.raises(CissError) as error:
            build_index(open_dataset(kind, kind, tmp_path))
        return str(error.value)

    complete = {
        subset: [(f"{subset}{n}.jpg", f"{subset}{n}.png") for n in range(count)]
        for subset, count in counts.items()
    }
    assert "the release has" not in reported(complete)
    for subset, count in counts.items():
        short = {**complete, subset: complete[subset][1:]}
        assert f"{subset}: {count - 1:,} images, the release has {count:,}" in reported(short)


# --- Interrupted ---------------------------------------------------------------------------


class Counting:
    """Counts the pairs that are looked at, and may interrupt at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_at: int | None = None) -> None:
        self.seen: list[str] = []
        self.stop_at = stop_at
        inspect = indexing._inspect

        def counted(root, rules, pair):
            self.seen.append(pair[0])
            if len(self.seen) == self.stop_at:
                raise KeyboardInterrupt
            return inspect(root, rules, pair)

        monkeypatch.setattr(indexing, "_inspect", counted)


def test_an_interrupted_pass_goes_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = build_index(opened(root))
    progress = tmp_path / "index.progress"
    counting = Counting(monkeypatch, stop_at=20)
    with pytest.raises(KeyboardInterrupt):
        build_index(opened(root), progress=progress)
    # A line that the interruption tore.
    progress.write_text(progress.read_text() + '["JPEGImages/train_0000')
    changed = mask(root, 3)
    os.utime(changed, ns=(0, 0))
    counting.seen, counting.stop_at = [], None
    pd.testing.assert_frame_equal(build_index(opened(root), progress=progress), expected)
    names = [f"JPEGImages/train_{number:06d}.jpg" for number in (3, *range(19, 30))]
    assert counting.seen[:12] == names
    assert len(counting.seen) == 34 - 18
    # The index is not written yet: whoever writes it removes this.
    assert progress.exists()


def test_progress_stays_while_there_are_problems(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = tmp_path / "index.progress"
    content = mask(root, 5).read_bytes()
    mask(root, 5).write_bytes(b"")
    counting = Counting(monkeypatch)
    for _ in range(2):
        counting.seen = []
        with pytest.raises(CissError, match="empty files"):
            build_index(opened(root), progress=progress)
    assert counting.seen == ["JPEGImages/train_000005.jpg"]
    mask(root, 5).write_bytes(content)
    assert len(build_index(opened(root), progress=progress)) == 34


def test_progress_of_other_data_is_passed_over(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = tmp_path / "index.progress"
    mask(root, 5).unlink()
    with pytest.raises(CissError):
        build_index(opened(root), progress=progress)
    other = Path(shutil.copytree(root, tmp_path / "other"))
    counting = Counting(monkeypatch)
    for dataset in (opened(other), voc(root)):
        kept = progress.read_text()
        counting.seen = []
        with pytest.raises(CissError):
            build_index(dataset, is_subset=True, progress=progress)
        assert len(counting.seen) == 34
        progress.write_text(kept)
    progress.write_bytes(b"\xff\xfe nothing of ours")
    with pytest.raises(CissError, match="missing files"):
        build_index(opened(root), progress=progress)


def test_a_reason_to_stop_ends_the_pass(root: Path, tmp_path: Path) -> None:
    progress = tmp_path / "index.progress"
    with pytest.raises(CissError, match=r"interrupted by SIGTERM after 1 of 34 images; start"):
        build_index(opened(root), progress=progress, stop=lambda: "SIGTERM")
    assert len(progress.read_text().splitlines()) == 2


def test_a_full_disk_costs_the_progress_only(root: Path, tmp_path: Path) -> None:
    with full_disk(200):
        index = build_index(opened(root), progress=tmp_path / "index.progress")
    assert len(index) == 34


def many(pristine: Path, root: Path, copies: int) -> int:
    """Make a data set of the pristine images, each ``copies`` times; returns their number."""
    (root / "splits").mkdir(parents=True)
    for folder in ("JPEGImages", "SegmentationClassAug"):
        (root / folder).mkdir()
        for path in (pristine / folder).iterdir():
            for number in range(copies):
                os.link(path, root / folder / f"{number}_{path.name}")
    for name in ("train_aug", "val"):
        lines = (pristine / "splits" / f"{name}.txt").read_text().splitlines()
        text = [
            " ".join(field.replace(f"/{name[:3]}", f"/{n}_{name[:3]}") for field in line.split())
            for line in lines
            for n in range(copies)
        ]
        (root / "splits" / f"{name}.txt").write_text("\n".join(text))
    return 34 * copies


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_the_script_survives_signals(
    number: signal.Signals, pristine: Path, tmp_path: Path
) -> None:
    n_images = many(pristine, tmp_path / "data", 60)
    output = tmp_path / "out" / "index.csv"
    progress = output.with_suffix(".progress")
    command = [sys.executable, REPOSITORY / "workflow_scripts" / "index.py", "--dataset", "demo"]
    command += ["--kind", "shapes", "--root", tmp_path / "data", "--workers", "2"]
    command += ["--output", output]
    process = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not progress.exists() or progress.stat().st_size < 3000:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        time.sleep(0.002)
    # A terminal's Ctrl-C and a batch system's signals reach every process of the job.
    send = os.kill if number == signal.SIGKILL else os.killpg
    send(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert not output.exists()
    done = len(progress.read_text().splitlines()) - 1
    assert 0 < done < n_images
    if number != signal.SIGKILL:
        assert process.returncode == 1
        assert f"interrupted by {number.name} after" in errors
        assert "Traceback" not in errors
    # No process of the killed one is left behind.
    while subprocess.run(["pgrep", "-s", str(process.pid)], capture_output=True).stdout:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    assert len(read_index(output)) == n_images
    assert not progress.exists()


def test_lines_of_the_progress_say_what_was_seen(root: Path, tmp_path: Path) -> None:
    progress = tmp_path / "index.progress"
    with pytest.raises(CissError):
        build_index(opened(root), progress=progress, stop=lambda: "a test")
    image_, mask_, *stamp, width, height, labels = json.loads(progress.read_text().splitlines()[1])
    assert (image_, mask_) == list_images(opened(root))["train"][0]
    assert stamp[0] == (root / image_).stat().st_size
    assert stamp[3] == (root / mask_).stat().st_mtime_ns
    assert (width, height) == (64, 64)
    assert labels.startswith("0:")


@pytest.mark.real_data
def test_real_camvid() -> None:
    folder = real_data_dir()
    if folder is None or not (folder / "CamVid").is_dir():
        pytest.skip("no real images: set CISS_DATA to the folder that holds CamVid")
    index = build_index(open_dataset("camvid", "camvid", folder / "CamVid"), workers=2)
    counts = index["subset"].value_counts().to_dict()
    assert counts == {"train": 367, "val": 101, "test": 233}
    _, values, _ = parse_labels(index["labels"])
    assert set(values.tolist()) == set(range(12))
