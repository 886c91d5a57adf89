from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import real_data_dir
from PIL import Image

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


def problems(root: Path) -> list[str]:
    with pytest.raises(CissError) as error:
        build_index(opened(root))
    return str(error.value).splitlines()


def test_rows_follow_the_lists_and_count_every_pixel(root: Path, tmp_path: Path) -> None:
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


def test_reads_back_what_was_written(root: Path, tmp_path: Path) -> None:
    index = build_index(opened(root))
    # A mask of a single value must not come back as a number.
    index.loc[0, "labels"] = "0:4096"
    write_index(tmp_path / "index.csv", index)
    pd.testing.assert_frame_equal(read_index(tmp_path / "index.csv"), index)


def test_reading_something_else(tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CissError, match="is not an index"):
        read_index(tmp_path / "index.csv")
    with pytest.raises(CissError, match="cannot read the index"):
        read_index(tmp_path / "absent.csv")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(CissError, match="cannot read the index"):
        read_index(tmp_path / "empty.csv")


def test_everything_wrong_is_reported_at_once(root: Path) -> None:
    image(root, 0).unlink()
    mask(root, 1).unlink()
    image(root, 2).write_bytes(b"no image")
    image(root, 3).write_bytes(image(root, 3).read_bytes()[:-200])
    content = mask(root, 4).read_bytes()
    mask(root, 4).write_bytes(content[: len(content) * 2 // 3])
    Image.new("RGB", (32, 64)).save(image(root, 5))
    Image.new("RGB", (64, 64)).save(mask(root, 6))
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(mask(root, 7))
    size = image(root, 8).stat().st_size
    image(root, 8).write_bytes(image(root, 8).read_bytes()[: size // 2] + bytes(size - size // 2))
    image(root, 9).write_bytes(b"")
    lines = problems(root)
    assert lines[0].endswith("10 problems:")
    assert "'demo'" in lines[0]
    expected = [
        "JPEGImages/train_000000.jpg: is missing",
        "SegmentationClassAug/train_000001.png: is missing",
        "JPEGImages/train_000002.jpg: is not an image",
        "JPEGImages/train_000003.jpg: cannot be read: truncated",
        "SegmentationClassAug/train_000004.png: cannot be read",
        "SegmentationClassAug/train_000005.png: is 64 × 64 pixels, its image",
        "SegmentationClassAug/train_000006.png: is of mode RGB",
        "SegmentationClassAug/train_000007.png: unknown mask value 77 (4096 pixels); "
        "known are 0-20, 255",
        "JPEGImages/train_000008.jpg: cannot be read: truncated",
        "JPEGImages/train_000009.jpg: is not an image",
    ]
    for line, start in zip(lines[1:], expected, strict=True):
        assert line.strip().startswith(start)


def test_trailing_bytes_after_a_whole_image_are_no_problem(root: Path) -> None:
    image(root, 0).write_bytes(image(root, 0).read_bytes() + b"camera's notes")
    with Image.open(image(root, 1)) as picture:
        picture.save(image(root, 1), format="PNG")
    assert len(build_index(opened(root))) == 34


def test_truncated_png_image(root: Path) -> None:
    with Image.open(image(root, 0)) as picture:
        picture.save(image(root, 0), format="PNG")
    image(root, 0).write_bytes(image(root, 0).read_bytes()[:-50])
    assert "train_000000.jpg: cannot be read" in problems(root)[1]


def test_long_reports_are_cut(root: Path) -> None:
    for number in range(30):
        image(root, number).unlink()
    lines = problems(root)
    assert len(lines) == 1 + MAX_REPORTED + 1
    assert lines[-1].strip() == f"and {30 - MAX_REPORTED} more"


def test_empty_list(root: Path) -> None:
    (root / "splits" / "val.txt").write_text("\n")
    assert problems(root)[1:] == ["  the val list is empty"]


def test_chosen_classes_leave_other_labels_valid(root: Path) -> None:
    dataset = open_dataset("demo", "shapes", root, ["red-disc"])
    assert build_index(dataset)["labels"].equals(build_index(opened(root))["labels"])


@pytest.mark.real_data
def test_real_camvid_train_masks() -> None:
    folder = real_data_dir()
    if folder is None or not (folder / "CamVid").is_dir():
        pytest.skip("no real images: set CISS_DATA to the folder that holds CamVid")
    index = build_index(open_dataset("camvid", "camvid", folder / "CamVid"), workers=2)
    assert index["subset"].value_counts().to_dict() == {"train": 367, "val": 101}
    _, values, _ = parse_labels(index["labels"])
    assert set(values.tolist()) == set(range(12))
