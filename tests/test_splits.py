from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import golden_cases, golden_dir, load_case

from ciss.datasets import Dataset, open_dataset
from ciss.errors import CissError
from ciss.index import COLUMNS
from ciss.scenarios import parse_scenario
from ciss.splits import (
    ids_hash,
    manifest,
    partition,
    presence,
    read_split,
    select,
    split,
    split_hash,
    write_split,
)

GOLDEN = golden_cases("9_splits")
PRESENCE = [case for case in GOLDEN if case.id is None or case.id.endswith("presence")]
LISTS = [case for case in GOLDEN if case.id is None or not case.id.endswith("presence")]
#: task -> setup or "test" -> [images, hash] of each step
PUBLISHED = yaml.safe_load(Path(__file__).with_name("published_splits.yaml").read_text())


def make_index(subsets: list[str], labels: list[str]) -> pd.DataFrame:
    rows = [
        (subset, f"i{number}.jpg", f"m{number}.png", 1, 1, text)
        for number, (subset, text) in enumerate(zip(subsets, labels, strict=True))
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def pets(n_classes: int = 3) -> Dataset:
    names = ["cat", "dog", "person", "horse"][:n_classes]
    return open_dataset("pets", "voc", Path("/nowhere"), names)


# cat is 8 in the masks, dog 12, person 15, horse 13
MASKS = ["0:1 8:1", "8:1 15:2", "12:1 255:9", "0:1", "13:5", "8:1 12:1"]
TRAIN_ONLY = make_index(
    ["train"] * 6 + ["val"] * 3,
    [*MASKS, "12:1", "0:9 13:1", "15:1 8:1"],
)


@pytest.fixture(scope="module")
def voc_index() -> pd.DataFrame:
    arrays = load_case(PRESENCE[0].values[0])
    labels = [
        " ".join([f"{value}:1" for value in np.flatnonzero(row)] + ["255:1"] * bool(void))
        for row, void in zip(arrays["present"], arrays["has_ignore"], strict=True)
    ]
    is_train = arrays["is_train_aug"]
    index = make_index(np.where(is_train, "train", "val").tolist(), labels)
    # The published row numbers count within each subset.
    numbers = np.where(is_train, np.cumsum(is_train), np.cumsum(~is_train)) - 1
    return index.assign(image=[f"{number}" for number in numbers])


@pytest.fixture(scope="module")
def voc_names() -> pd.DataFrame:
    """The index's columns that splits look at, of all of VOC with the augmented masks."""
    folder = golden_dir()
    path = None if folder is None else folder / "open" / "9_splits" / "voc_aug_presence.npz"
    if path is None or not path.is_file():
        pytest.skip("no table of VOC's classes by image: set CISS_GOLDEN to the folder that has it")
    with np.load(path, allow_pickle=False) as table:
        labels = [
            " ".join(f"{value}:1" for value in np.flatnonzero(row)) for row in table["present"]
        ]
        index = make_index(np.where(table["is_train_aug"], "train", "val").tolist(), labels)
        return index.assign(image=[f"JPEGImages/{name.decode()}.jpg" for name in table["ids"]])


@pytest.mark.golden
@pytest.mark.parametrize("task", PUBLISHED)
def test_counts_and_hashes_are_those_of_the_published_lists(
    task: str, voc_names: pd.DataFrame
) -> None:
    order = task[-1] if task[-1].isalpha() else ""
    dataset = open_dataset("voc", "voc", Path("/nowhere"), order=order)
    for setup, steps in PUBLISHED[task].items():
        scenario = parse_scenario(task, 20, "overlapped" if setup == "test" else setup)
        lists = manifest(split(voc_names, dataset, scenario, range(scenario.n_steps)))
        mine = lists[lists["subset"] == ("test" if setup == "test" else "train")]
        assert mine[["images", "sha256"]].to_numpy().tolist() == steps, setup


def test_the_published_counts_of_15_1() -> None:
    def counts(setup: str) -> list[int]:
        return [images for images, _ in PUBLISHED["15-1"][setup]]

    assert counts("overlapped") == [9568, 487, 299, 491, 500, 548]
    assert counts("disjoint") == [8437, 378, 299, 420, 500, 548]
    assert counts("partitioned") == [9031, 254, 266, 270, 434, 327]
    assert sum(counts("partitioned")) == 10582


@pytest.mark.parametrize("case", LISTS)
def test_splits_are_the_published_ones(case: dict, voc_index: pd.DataFrame) -> None:
    arrays = load_case(case)
    task = case["hyperparameters"]["task"]
    dataset = open_dataset(
        "voc", "voc", Path("/nowhere"), order=task[-1] if task[-1].isalpha() else ""
    )
    for setup, key in (("overlapped", "ov"), ("disjoint", "disjoint")):
        scenario = parse_scenario(task, 20, setup)
        rows = split(voc_index, dataset, scenario, range(scenario.n_steps))
        for step in range(scenario.n_steps):
            train = select(rows, step, "train")["image"].astype(int)
            test = select(rows, step, "test")["image"].astype(int)
            np.testing.assert_array_equal(train, arrays[f"s{step}/train_{key}"])
            np.testing.assert_array_equal(test, arrays[f"s{step}/test"])


def test_overlapped_and_disjoint() -> None:
    def images(setup: str, step: int, subset: str) -> list[str]:
        rows = split(TRAIN_ONLY, pets(), parse_scenario("1-1", 3, setup), [step])
        return select(rows, step, subset)["image"].tolist()

    assert images("overlapped", 0, "train") == ["i0.jpg", "i1.jpg", "i5.jpg"]
    assert images("disjoint", 0, "train") == ["i0.jpg"]
    # A class that is never learned (horse) does not count as a later one.
    assert images("overlapped", 1, "train") == images("disjoint", 1, "train")
    assert images("overlapped", 1, "test") == images("disjoint", 1, "test") == ["i6.jpg", "i8.jpg"]


def draws(n_images: int = 40, seed: int = 0) -> pd.DataFrame:
    """An index of train images with one to three of cat, dog and person, and val images."""
    rng = np.random.default_rng(seed)
    shown = [rng.choice([8, 12, 15], rng.integers(1, 4), replace=False) for _ in range(n_images)]
    labels = [" ".join(f"{value}:1" for value in sorted(row)) for row in shown]
    return make_index(["train"] * n_images + ["val"], [*labels, "8:1 12:1 15:1"])


def test_partitioned_gives_each_image_to_one_step() -> None:
    index = draws()
    scenario = parse_scenario("1-1", 3, "partitioned")
    rows = split(index, pets(), scenario, range(3))
    lists = [set(select(rows, step, "train")["image"]) for step in range(3)]
    assert sum(map(len, lists)) == len(set().union(*lists)) == 40
    overlapped = split(index, pets(), parse_scenario("1-1", 3), range(3))
    for step, images in enumerate(lists):
        shown = select(overlapped, step, "train")["image"]
        assert images < set(shown)
        assert select(rows, step, "test").equals(select(overlapped, step, "test"))
    # No class is favoured: an image with two goes to either.
    assert min(map(len, lists)) > 5


def test_the_partition_knows_neither_the_scenario_nor_orders() -> None:
    """So that scenarios with the same base classes may share their step 0."""
    index = draws()
    other = open_dataset("pets", "voc", Path("/nowhere"), ["person", "cat", "dog"])
    names = [
        [dataset.classes[label] for label in partition(index, dataset, presence(index, dataset))]
        for dataset in (pets(), other)
    ]
    assert names[0] == names[1]
    shuffled = index.sample(frac=1, random_state=1)
    again = partition(shuffled, pets(), presence(shuffled, pets()))
    assert [pets().classes[label] for label in again] == [names[0][i] for i in shuffled.index]
    one, other_step_0 = (
        split(index, pets(), parse_scenario(name, 3, "partitioned"), [0]) for name in ("1-1", "1-2")
    )
    assert one.equals(other_step_0)


def test_the_draws_are_those_of_the_authors_loop() -> None:
    """One call of ``choice`` for each image in turn, as in the code of arXiv 2405.09858."""
    index = draws(300)
    present = presence(index, pets())
    rng = np.random.RandomState(0)
    expected = []
    for number in np.argsort(index["image"].to_numpy(dtype=str)):
        # cat 8, dog 12, person 15: the learning order is that of the mask values
        classes = [label for label in (1, 2, 3) if present[number, label]]
        if index["subset"][number] == "train" and classes:
            expected.append((number, classes[rng.choice(len(classes))]))
    home = partition(index, pets(), present)
    assert [home[number] for number, _ in expected] == [label for _, label in expected]


def test_images_without_a_class_belong_to_no_step_and_take_no_draw() -> None:
    index = draws()
    without = pd.concat(
        [make_index(["train"], ["0:4 13:9"]).assign(image="a first.jpg"), index], ignore_index=True
    )
    home = partition(without, pets(), presence(without, pets()))
    assert home[0] == 0
    assert home[1:].tolist() == partition(index, pets(), presence(index, pets())).tolist()


def test_where_there_are_test_images_val_images_are_apart() -> None:
    index = make_index(["train", "val", "test", "test"], ["8:1", "8:1", "8:1", "0:1"])
    rows = split(index, pets(1), parse_scenario("offline", 1), [0])
    assert rows["subset"].tolist() == ["train", "test", "val"]
    assert select(rows, 0, "test")["image"].tolist() == ["i2.jpg"]
    assert select(rows, 0, "val")["image"].tolist() == ["i1.jpg"]


def test_hashes_are_of_names_alone() -> None:
    images = ["JPEGImages/b.jpg", "other/place/a.png"]
    assert ids_hash(images) == ids_hash(["a", "b.jpg"]) == hashlib.sha256(b"a\nb\n").hexdigest()
    rows = split(TRAIN_ONLY, pets(), parse_scenario("1-2", 3), [0, 1])
    lists = manifest(rows)
    assert lists[["step", "subset"]].to_numpy().tolist() == [
        [step, subset] for step in (0, 1) for subset in ("train", "test")
    ]
    for step, subset, images_, sha256 in lists.itertuples(index=False):
        chosen = select(rows, step, subset)["image"]
        assert (images_, sha256) == (len(chosen), ids_hash(chosen))


def test_offline_has_all_images_with_a_class() -> None:
    rows = split(TRAIN_ONLY, pets(), parse_scenario("offline", 3), [0])
    assert select(rows, 0, "train")["image"].tolist() == ["i0.jpg", "i1.jpg", "i2.jpg", "i5.jpg"]


def test_presence_leaves_void_out() -> None:
    present = presence(TRAIN_ONLY, pets())
    assert present.shape == (9, 4)
    assert present[2].tolist() == [False, False, True, False]
    # Other classes are background.
    assert present[4].tolist() == [True, False, False, False]


def test_a_step_without_images_names_its_classes() -> None:
    index = make_index(["train", "val"], ["8:1 12:1", "8:1 12:1"])
    with pytest.raises(CissError, match=r"step 1 .* no train images: none shows person, horse$"):
        split(index, pets(4), parse_scenario("2-2", 4), [0, 1])
    # Every image of step 0 also shows a class that comes later.
    with pytest.raises(CissError, match=r"step 0 .* shows cat without a later class"):
        split(index, pets(2), parse_scenario("1-1", 2, "disjoint"), [0])
    without_val = make_index(["train", "val"], ["8:1 12:1", "0:1"])
    with pytest.raises(CissError, match=r"step 0 .* no test images: none shows cat"):
        split(without_val, pets(2), parse_scenario("1-1", 2), [0])


def test_scenario_and_dataset_must_have_the_same_classes() -> None:
    with pytest.raises(CissError, match="20 classes"):
        split(TRAIN_ONLY, pets(), parse_scenario("15-5", 20), [0])


def test_index_of_other_data() -> None:
    index = make_index(["train"], ["99:1"])
    with pytest.raises(CissError, match="mask value 99"):
        presence(index, pets())


def test_hash_follows_the_rows_and_survives_the_file(tmp_path: Path) -> None:
    scenario = parse_scenario("1-1", 3)
    rows = split(TRAIN_ONLY, pets(), scenario, range(3))
    write_split(tmp_path / "split.csv", rows)
    read = read_split(tmp_path / "split.csv")
    pd.testing.assert_frame_equal(read, rows)
    assert split_hash(read) == split_hash(rows)
    assert split_hash(rows.iloc[::-1]) != split_hash(rows)
    assert split_hash(rows.iloc[1:]) != split_hash(rows)


def test_reading_something_else(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CissError, match="is no split"):
        read_split(tmp_path / "split.csv")
    with pytest.raises(CissError, match="cannot read the split"):
        read_split(tmp_path / "absent.csv")
