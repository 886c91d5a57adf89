from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from helpers import golden_cases, load_case

from ciss.datasets import get_kind, kinds, list_images, open_dataset
from ciss.errors import CissError

ORDERED = r".*/voc_15-1[a-z]"


def cases(group: str, name: str) -> list:
    """The group's golden cases of that name; the one that says why there are none has no name."""
    return [case for case in golden_cases(group) if case.id is None or re.match(name, case.id)]


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_kinds_are_the_modules_of_the_package() -> None:
    assert kinds() == ("ade", "camvid", "cityscapes", "shapes", "voc")


@pytest.mark.parametrize(
    ("kind", "n_classes"),
    [("ade", 150), ("camvid", 11), ("cityscapes", 19), ("shapes", 20), ("voc", 20)],
)
def test_kind_describes_its_classes(kind: str, n_classes: int) -> None:
    described = get_kind(kind)
    classes = described.CLASSES
    assert classes is not None
    assert len(classes) == len(set(classes)) == n_classes + 1
    assert classes[0] == "background"
    # Each class has exactly one raw mask value.
    values = described.VALUES
    assert values.shape == (256,)
    assert values.dtype == np.int16
    assert [int((values == label).sum()) for label in range(1, n_classes + 1)] == [1] * n_classes
    for order in described.ORDERS.values():
        assert sorted(order) == list(range(1, n_classes + 1))


def test_orders_by_letter() -> None:
    assert sorted(get_kind("voc").ORDERS) == list("abcdefghij")
    assert sorted(get_kind("ade").ORDERS) == ["b", "c"]


@pytest.mark.parametrize("letter", ["b", "c"])
def test_ade_orders_are_cuts_of_the_published_tables(letter: str) -> None:
    """MiB's tables list the classes of a step in ascending order; 50-50 cuts 100-50's base."""
    order = get_kind("ade").ORDERS[letter]
    first, second, *steps = (
        order[:50],
        order[50:100],
        *(order[k : k + 10] for k in range(100, 150, 10)),
    )
    for cut in (first, second, *steps):
        assert list(cut) == sorted(cut)
    published = {"b": (1, 144, 3, 150, 11, 137), "c": (5, 147, 1, 149, 3, 150)}[letter]
    assert (first[0], first[-1], second[0], second[-1], steps[0][0], steps[-1][-1]) == published


def test_opening_does_not_touch_the_disk() -> None:
    dataset = open_dataset("voc", "voc", Path("/nowhere"))
    assert dataset.n_classes == 20
    assert dataset.classes[15] == "person"
    assert dataset.lookup[[0, 1, 20, 21, 254, 255]].tolist() == [0, 1, 20, -1, -1, 255]


def test_chosen_classes_make_the_learning_order() -> None:
    names = ["cat", "dog", "person", "horse", "sheep", "cow"]
    dataset = open_dataset("pets", "voc", Path("/nowhere"), names)
    assert dataset.classes == ("background", *names)
    # cat 8, dog 12, person 15, horse 13, sheep 17, cow 10; others are background, 21 is no label
    assert dataset.lookup[[8, 12, 15, 13, 17, 10]].tolist() == [1, 2, 3, 4, 5, 6]
    assert dataset.lookup[[1, 20, 21, 255]].tolist() == [0, 0, -1, 255]


def test_order_permutes_classes_and_lookup_together() -> None:
    plain = open_dataset("voc", "voc", Path("/nowhere"))
    ordered = open_dataset("voc", "voc", Path("/nowhere"), order="a")
    assert ordered.classes[1:4] == ("dog", "chair", "tvmonitor")
    for label in range(1, 21):
        assert ordered.classes[ordered.lookup[label]] == plain.classes[label]


@pytest.mark.parametrize("case", cases("8_labels", ORDERED) + cases("9_splits", ORDERED))
def test_orders_are_the_published_ones(case: dict) -> None:
    order = get_kind("voc").ORDERS[case["name"][-1]]
    settings = case["hyperparameters"]
    if "step0_labels" in settings:
        last = max(settings["steps"])
        published = settings[f"step{last}_labels_old"] + settings[f"step{last}_labels"]
        assert (0, *order[: len(published) - 1]) == tuple(published)
    else:
        meanings = " ".join(group["meaning"] for group in case["arrays"])
        for step, labels in enumerate([list(order[:15]), *([label] for label in order[15:])]):
            assert f"step {step}, classes {labels}" in meanings


@pytest.mark.parametrize("case", cases("8_labels", r".*cityscapes.*"))
def test_cityscapes_values_are_the_published_ones(case: dict) -> None:
    published = load_case(case)["raw_to_train_id"]
    np.testing.assert_array_equal(get_kind("cityscapes").VALUES, published)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"kind": "vok"}, ["'vok'", "'voc'", "ade, camvid"]),
        ({"classes": ["cat", "hors"]}, ["'hors'", "'horse'", "tvmonitor"]),
        ({"classes": ["cat", "cat"]}, ["cat", "more than once"]),
        ({"classes": ["background", "cat"]}, ["background"]),
        ({"classes": []}, ["datasets.mine.classes"]),
        ({"order": "z"}, ["'z'", "a, b, c, d, e, f, g, h, i, j"]),
        ({"order": "a", "classes": ["cat"]}, ["'a'"]),
    ],
)
def test_wrong_settings_say_what_is_allowed(arguments: dict, words: list[str]) -> None:
    with pytest.raises(CissError) as error:
        open_dataset(**{"name": "mine", "kind": "voc", "root": Path("/nowhere"), **arguments})
    for word in words:
        assert word in str(error.value)


def test_missing_root_names_folder_setting_and_page(tmp_path: Path) -> None:
    with pytest.raises(CissError) as error:
        list_images(open_dataset("mine", "voc", tmp_path / "absent"))
    for word in (str(tmp_path / "absent"), "datasets.mine.root", "docs/data.md"):
        assert word in str(error.value)


def test_voc_lists_with_two_columns(tmp_path: Path) -> None:
    (tmp_path / "splits").mkdir()
    line = "/JPEGImages/{0}.jpg /SegmentationClassAug/{0}.png"
    # No final newline: the published code loses a character of such a line.
    (tmp_path / "splits/train_aug.txt").write_text(f"{line.format('b')}\n{line.format('a')}")
    (tmp_path / "splits/val.txt").write_text(f"{line.format('c')}\r\n\n")
    assert list_images(open_dataset("voc", "voc", tmp_path)) == {
        "train": [
            ("JPEGImages/b.jpg", "SegmentationClassAug/b.png"),
            ("JPEGImages/a.jpg", "SegmentationClassAug/a.png"),
        ],
        "val": [("JPEGImages/c.jpg", "SegmentationClassAug/c.png")],
    }


@pytest.mark.parametrize(
    ("lists", "masks", "train"),
    [
        (["Segmentation/train.txt"], "SegmentationClass", "Segmentation/train.txt"),
        (
            ["Segmentation/train.txt", "Segmentation/trainaug.txt"],
            "SegmentationClassAug",
            "Segmentation/trainaug.txt",
        ),
        (
            ["Segmentation/train.txt", "SegmentationAug/train_aug.txt"],
            "SegmentationClassAug",
            "SegmentationAug/train_aug.txt",
        ),
    ],
)
def test_voc_devkit(tmp_path: Path, lists: list[str], masks: str, train: str) -> None:
    sets = tmp_path / "VOCdevkit/VOC2012/ImageSets"
    for name in [*lists, "Segmentation/val.txt"]:
        (sets / name).parent.mkdir(parents=True, exist_ok=True)
        (sets / name).write_text(f"id_of_{Path(name).stem}")
    (tmp_path / "VOCdevkit/VOC2012" / masks).mkdir()
    listing = list_images(open_dataset("voc", "voc", tmp_path))
    used = f"id_of_{Path(train).stem}"
    prefix = "VOCdevkit/VOC2012"
    assert listing["train"] == [(f"{prefix}/JPEGImages/{used}.jpg", f"{prefix}/{masks}/{used}.png")]
    assert listing["val"][0][0] == f"{prefix}/JPEGImages/id_of_val.jpg"


def test_voc_without_a_layout(tmp_path: Path) -> None:
    with pytest.raises(CissError, match=r"splits/train_aug\.txt"):
        list_images(open_dataset("voc", "voc", tmp_path))
    (tmp_path / "splits").mkdir()
    with pytest.raises(CissError, match=r"train_aug\.txt: No such file"):
        list_images(open_dataset("voc", "voc", tmp_path))


def test_ade_pairs(tmp_path: Path) -> None:
    touch(tmp_path, "images/training/ADE_2.jpg", "images/training/ADE_1.jpg")
    touch(tmp_path, "images/validation/ADE_3.jpg")
    assert list_images(open_dataset("ade", "ade", tmp_path)) == {
        "train": [
            ("images/training/ADE_1.jpg", "annotations/training/ADE_1.png"),
            ("images/training/ADE_2.jpg", "annotations/training/ADE_2.png"),
        ],
        "val": [("images/validation/ADE_3.jpg", "annotations/validation/ADE_3.png")],
    }


def test_cityscapes_pairs(tmp_path: Path) -> None:
    touch(tmp_path, "leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png")
    with pytest.raises(CissError, match=r"leftImg8bit/val"):
        list_images(open_dataset("cityscapes", "cityscapes", tmp_path))
    touch(tmp_path, "leftImg8bit/val/bonn/bonn_0_1_leftImg8bit.png")
    assert list_images(open_dataset("cityscapes", "cityscapes", tmp_path)) == {
        "train": [
            (
                "leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png",
                "gtFine/train/ulm/ulm_0_1_gtFine_labelIds.png",
            )
        ],
        "val": [
            (
                "leftImg8bit/val/bonn/bonn_0_1_leftImg8bit.png",
                "gtFine/val/bonn/bonn_0_1_gtFine_labelIds.png",
            )
        ],
    }


def test_camvid_pairs(tmp_path: Path) -> None:
    touch(tmp_path, "train/f1.jpg", "val/f2.png", "test/f3.jpg")
    dataset = open_dataset("camvid", "camvid", tmp_path)
    assert list_images(dataset) == {
        "train": [("train/f1.jpg", "trainannot/f1.png")],
        "val": [("val/f2.png", "valannot/f2.png")],
    }
    assert dataset.lookup[[0, 10, 11, 12]].tolist() == [1, 11, 255, -1]
