from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import golden_cases, load_case

from ciss import datasets
from ciss.datasets import (
    INVALID,
    VOID,
    Dataset,
    Kind,
    get_kind,
    kinds,
    list_images,
    open_dataset,
    voc,
)
from ciss.errors import CissError

ORDERED = r".*/voc_15-1[a-z]"


def cases(group: str, name: str) -> list:
    """The group's golden cases of that name; the one that says why there are none has no name."""
    return [case for case in golden_cases(group) if case.id is None or re.match(name, case.id)]


def test_a_kind_must_declare_the_subsets_that_it_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing = {subset: [("a.jpg", "a.png")] for subset in ("train", "val", "test")}
    monkeypatch.setattr(datasets, "kinds", lambda: ("mine",))
    values = np.zeros(256, dtype=np.int16)
    mine = Kind(CLASSES=None, VALUES=values, list_images=lambda root: listing)
    monkeypatch.setattr(datasets, "get_kind", lambda kind: mine)
    with pytest.raises(CissError, match="'mine' lists the subsets train, val, test, but declares"):
        list_images(open_dataset("demo", "mine", tmp_path, ["a"]))
    mine = replace(mine, SUBSETS=("train", "val", "test"))
    opened = open_dataset("demo", "mine", tmp_path, ["a"])
    assert opened.subsets == ("train", "val", "test")
    assert list_images(opened) == listing


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_kinds_are_the_modules_of_the_package() -> None:
    assert kinds() == ("ade", "camvid", "cityscapes", "folders", "shapes", "voc")


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
        ({"background": "ignore"}, ["datasets.mine.background", "'voc'", "is a class"]),
        ({"kind": "ade", "background": "void"}, ["datasets.mine.background", "unlabelled, ignore"]),
        ({"values": {"cat": 1}}, ["datasets.mine.values", "kind folders"]),
        ({"void": 0}, ["datasets.mine.void", "kind folders"]),
        ({"files": {"images": "i", "masks": "m"}}, ["datasets.mine.files", "kind folders"]),
        ({"kind": "folders"}, ["'folders'", "datasets.mine.classes"]),
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
        "test": [("test/f3.jpg", "testannot/f3.png")],
    }
    assert dataset.subsets == ("train", "val", "test")
    assert dataset.lookup[[0, 10, 11, 12]].tolist() == [1, 11, 255, -1]


def test_hidden_files_are_no_images(tmp_path: Path) -> None:
    touch(tmp_path, "train/f1.jpg", "train/.DS_Store", "val/f2.png", "test/f3.jpg")
    assert len(list_images(open_dataset("camvid", "camvid", tmp_path))["train"]) == 1


def test_the_full_ade_release_is_named(tmp_path: Path) -> None:
    dataset = open_dataset("ade", "ade", tmp_path)
    for scene in ("images/training/a/abbey/ADE_1.jpg", "images/ADE/training/urban/ADE_1.jpg"):
        touch(tmp_path, scene)
        with pytest.raises(CissError, match=r"full ADE20K release .* ADEChallengeData2016"):
            list_images(dataset)
        (tmp_path / "images").rename(tmp_path / f"was {len(scene)}")


# --- Pixels without a class ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "raw", "default"), [("cityscapes", 0, 0), ("ade", 0, 0), ("camvid", 11, 255)]
)
def test_background_is_a_choice(kind: str, raw: int, default: int) -> None:
    def lookup(background: str | None) -> np.ndarray:
        return open_dataset("d", kind, Path("/nowhere"), background=background).lookup

    assert lookup(None)[raw] == default
    assert lookup("unlabelled")[raw] == 0
    assert lookup("ignore")[raw] == 255
    others = np.arange(256) != raw
    np.testing.assert_array_equal(lookup("ignore")[others], lookup("unlabelled")[others])


def test_classes_left_out_stay_background_where_the_unlabelled_are_ignored() -> None:
    dataset = open_dataset("d", "ade", Path("/nowhere"), ["sky", "road"], background="ignore")
    assert dataset.lookup[[0, 1, 3, 7]].tolist() == [255, 0, 1, 2]


def test_values_that_occur_are_not_all_that_have_a_meaning() -> None:
    dataset = open_dataset("d", "cityscapes", Path("/nowhere"))
    assert dataset.lookup[255] == 255
    assert np.flatnonzero(dataset.occurring).tolist() == list(range(34))


# --- Folders of the user's own -------------------------------------------------------------

CLASSES = ["wheat", "road", "lake"]
ONE = {"images": "images", "masks": "masks"}


def own(root: Path = Path("/nowhere"), **settings: Any) -> Dataset:
    files = settings.pop("files", {**ONE, "val_fraction": 0.5})
    classes = settings.pop("classes", CLASSES)
    return open_dataset("fields", "folders", root, classes, files=files, **settings)


@pytest.mark.parametrize(
    ("settings", "raw", "labels"),
    [
        ({}, [0, 1, 2, 3, 4, 255], [0, 1, 2, 3, INVALID, VOID]),
        ({"void": 9}, [0, 3, 9, 255], [0, 3, VOID, INVALID]),
        ({"void": [9, 255]}, [9, 255], [VOID, VOID]),
        ({"void": []}, [0, 255], [0, INVALID]),
        # 0 may be void; there is then no background in the masks.
        ({"void": 0}, [0, 1, 255], [VOID, 1, INVALID]),
        (
            {"values": {"wheat": 30, "road": [10, 11], "lake": 0, "sky": 7}},
            [30, 10, 11, 0, 7, 1, 255],
            [1, 2, 2, 3, 0, INVALID, VOID],
        ),
        # A binary mask: what was drawn white.
        (
            {"values": {"wheat": 255}, "classes": ["wheat"], "void": []},
            [0, 255, 1],
            [0, 1, INVALID],
        ),
        (
            {"values": {"wheat": 1, "road": 2, "lake": 3, "background": [0, 4]}},
            [0, 4, 5],
            [0, 0, INVALID],
        ),
        ({"background": "ignore"}, [0, 1], [VOID, 1]),
        (
            {"values": {"wheat": 1, "road": 2, "lake": 3, "sky": 4}, "background": "ignore"},
            [0, 4, 1],
            [VOID, 0, 1],
        ),
    ],
)
def test_meaning_of_own_values(settings: dict[str, Any], raw: list[int], labels: list[int]) -> None:
    assert own(**settings).lookup[raw].tolist() == labels


def test_own_classes_in_another_order_keep_their_values() -> None:
    values = {"wheat": 1, "road": 2, "lake": 3}
    dataset = own(values=values, classes=["lake", "wheat"])
    assert dataset.classes == ("background", "lake", "wheat")
    assert dataset.lookup[[1, 2, 3]].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"values": {"wheat": 1}}, ["fields.values", "lacks class 'road'"]),
        ({"values": {"wheat": 1, "road": 1, "lake": 2}}, ["1", "'wheat'", "'road'"]),
        ({"values": {"wheat": 255, "road": 1, "lake": 2}}, ["255", "'wheat'", "'void'"]),
        ({"void": 2}, ["2", "'road'", "'void'"]),
        ({"values": {"wheat": 1, "road": 2, "lake": 3, "void": 9}}, ["values lists void"]),
        ({"classes": ["wheat", "background"]}, ["background"]),
        ({"files": {}}, ["datasets.fields.files.images", "missing"]),
        ({"files": {"images": "i"}}, ["datasets.fields.files.masks", "missing"]),
        ({"files": {**ONE, "mask_sufix": ""}}, ["'mask_sufix'", "'mask_suffix'"]),
        ({"files": ONE}, ["datasets.fields.files", "in no way", "val_fraction"]),
        (
            {"files": {**ONE, "val_fraction": 0.2, "lists": {"train": "t", "val": "v"}}},
            ["lists and val_fraction", "one of"],
        ),
        (
            {"files": {"images": {"train": "a", "val": "b"}, "masks": "m"}},
            ["datasets.fields.files", "folder for each subset"],
        ),
        (
            {
                "files": {
                    "images": {"train": "a", "val": "b"},
                    "masks": {"train": "a", "val": "b", "test": "c"},
                }
            },
            ["images has train, val", "masks has train, val, test"],
        ),
        (
            {"files": {**ONE, "lists": {"train": "t", "val": "v"}, "seed": 3}},
            ["seed", "val_fraction"],
        ),
        ({"order": "a"}, ["'a'"]),
    ],
)
def test_wrong_settings_of_folders(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(CissError) as error:
        own(**settings)
    for word in words:
        assert word in str(error.value)


def test_separate_folders(tmp_path: Path) -> None:
    for subset in ("train", "val", "test"):
        touch(tmp_path, f"{subset}/a.b/c.JPG", f"{subset}/d.png", f"{subset}/notes.txt")
        touch(tmp_path, f"{subset}_masks/a.b/c.png", f"{subset}_masks/d.tif")
    subsets = ("val", "train", "test")
    files = {
        "images": {subset: subset for subset in subsets},
        "masks": {subset: f"{subset}_masks" for subset in subsets},
    }
    dataset = own(tmp_path, files=files)
    assert dataset.subsets == ("train", "val", "test")
    assert list_images(dataset) == {
        subset: [
            (f"{subset}/a.b/c.JPG", f"{subset}_masks/a.b/c.png"),
            (f"{subset}/d.png", f"{subset}_masks/d.tif"),
        ]
        for subset in ("train", "val", "test")
    }
    two = {key: {s: folders[s] for s in ("train", "val")} for key, folders in files.items()}
    assert own(tmp_path, files=two).subsets == ("train", "val")


@pytest.mark.parametrize(
    ("image", "mask", "files"),
    [
        ("both/{}.jpg", "both/{}.png", {"images": "both", "masks": "both"}),
        (
            "both/{}.png",
            "both/{}_mask.png",
            {"images": "both", "masks": "both", "mask_suffix": "_mask"},
        ),
        ("all/{}.jpg", "all/masks/{}.png", {"images": "all", "masks": "all/masks"}),
        (
            "i/x/{}_rgb.png",
            "m/x/{}_labels.png",
            {"images": "i", "masks": "m", "image_suffix": "_rgb", "mask_suffix": "_labels"},
        ),
    ],
)
def test_images_find_their_masks(
    image: str, mask: str, files: dict[str, Any], tmp_path: Path
) -> None:
    pairs = [(image.format(name), mask.format(name)) for name in ("a.1", "b", "c d")]
    touch(tmp_path, *(path for pair in pairs for path in pair))
    listing = list_images(own(tmp_path, files={**files, "val_fraction": 0.34}))
    assert sorted(listing["train"] + listing["val"]) == pairs
    assert len(listing["val"]) == 1


def test_an_image_without_a_mask_is_listed(tmp_path: Path) -> None:
    touch(tmp_path, "images/a.jpg", "images/b.jpg", "masks/b.png")
    listing = list_images(own(tmp_path))
    assert ("images/a.jpg", "masks/a.png") in listing["train"] + listing["val"]


@pytest.mark.parametrize("line", ["{}", "{}.jpg", "{}_rgb", "{}_rgb.jpg", "/images/{}_rgb.jpg"])
def test_lists_name_images_as_people_write_them(line: str, tmp_path: Path) -> None:
    names = ["a.1", "sub/b", "c d"]
    for name in names:
        touch(tmp_path, f"images/{name}_rgb.jpg", f"masks/{name}.png")
    (tmp_path / "t.txt").write_text("\n".join(line.format(name) for name in names[:2]))
    (tmp_path / "v.txt").write_text(f"{line.format(names[2])}\nabsent\n")
    lists = {"val": "v.txt", "train": "t.txt"}
    dataset = own(tmp_path, files={**ONE, "image_suffix": "_rgb", "lists": lists})
    assert list_images(dataset) == {
        "train": [(f"images/{name}_rgb.jpg", f"masks/{name}.png") for name in names[:2]],
        "val": [("images/c d_rgb.jpg", "masks/c d.png"), ("images/absent", "masks/absent.png")],
    }


def test_a_fraction_is_drawn_from_the_seed_and_hardly_moves(tmp_path: Path) -> None:
    names = [f"{number:03d}" for number in range(200)]
    touch(tmp_path, *(f"images/{name}.jpg" for name in names))
    touch(tmp_path, *(f"masks/{name}.png" for name in names))

    def val(seed: int = 0) -> set[str]:
        listing = list_images(own(tmp_path, files={**ONE, "val_fraction": 0.2, "seed": seed}))
        assert len(listing["train"]) + len(listing["val"]) == len(names)
        assert listing["train"] == sorted(listing["train"])
        return {image for image, _ in listing["val"]}

    first = val()
    assert len(first) == 40
    assert val() == first
    assert len(val(1) & first) < 20
    touch(tmp_path, "images/more.jpg", "masks/more.png")
    names.append("more")
    assert len(val() & first) >= 39


def test_without_files_labels_are_known_but_none_can_be_listed(tmp_path: Path) -> None:
    dataset = open_dataset("fields", "folders", tmp_path, CLASSES)
    assert dataset.lookup[[1, 3]].tolist() == [1, 3]
    with pytest.raises(CissError, match=r"datasets\.fields\.files\.images is missing"):
        list_images(dataset)


def test_folders_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(CissError, match=r"no folder .*images"):
        list_images(own(tmp_path))
    touch(tmp_path, "images/notes.txt", "masks/a.png")
    with pytest.raises(CissError, match=r"no images in .*images: expected names"):
        list_images(own(tmp_path))


def test_voc_palette() -> None:
    palette = voc.palette()
    assert palette[[0, 1, 2, 3, 15, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]
    assert len(np.unique(palette, axis=0)) == 256
