"""Wrong data, as a user meets them: each is one sentence, and nothing that was finished is touched.

The scripts run on a data set of four images to which one thing is done. What several wrong things
look like in one report is in ``test_index.py``, what a mask tells of its origin in
``test_masks.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import unicodedata
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import snakemake
from PIL import Image
from sentences import Ended, assert_refused, assert_sentence, contents, run_call, run_script

from ciss.datasets.voc import PALETTE
from ciss.exemplars import read_exemplars, write_exemplars
from ciss.images import read_pair
from ciss.index import read_index
from ciss.splits import read_split

SIZE = 8
#: values of the pixels of the masks of a, b, c (train) and d (val), below two rows of 0 and 1
VALUES = {"a": 1, "b": 2, "c": 1, "d": 2}
#: é as a Mac writes it: e and an accent, two letters
MACS = unicodedata.normalize("NFD", "é")
LISTS = {"train_aug": "abc", "val": "d"}
FILES = {"images": "JPEGImages", "masks": "SegmentationClassAug", "val_fraction": 0.25}


def image(root: Path, name: str = "a.jpg") -> Path:
    return root / "JPEGImages" / name


def mask(root: Path, name: str = "a.png") -> Path:
    return root / "SegmentationClassAug" / name


def train_list(root: Path) -> Path:
    return root / "splits" / "train_aug.txt"


def line(name: str) -> str:
    return f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data in VOC's layout, and what was made of them before the harm."""
    folder = tmp_path_factory.mktemp("pristine")
    root = folder / "data"
    for path in (image(root), mask(root), train_list(root)):
        path.parent.mkdir(parents=True)
    for name, value in VALUES.items():
        pixels = np.full((SIZE, SIZE), value, np.uint8)
        pixels[:2] = [[0], [1]]
        Image.fromarray(PALETTE[pixels]).save(image(root, f"{name}.jpg"))
        labels = Image.fromarray(pixels, "L")
        labels.putpalette(PALETTE.tobytes())
        labels.save(mask(root, f"{name}.png"))
    for name, images in LISTS.items():
        (root / "splits" / f"{name}.txt").write_text("".join(map(line, images)))
    results = folder / "results"
    assert index_voc(root, results).status == 0
    assert split_voc(results, results).status == 0
    (results / "model.safetensors").write_text("trained for a day")
    return folder


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    """A copy of the data and results, for a test to harm."""
    return Path(shutil.copytree(pristine, tmp_path / "mine"))


def index_voc(root: Path, results: Path, *more: object) -> Ended:
    words = ["--dataset", "mine", "--kind", "voc", "--root", root, "--subset"]
    return run_script("index.py", *words, "--output", results / "index.csv", *more)


def index_folders(root: Path, results: Path, *more: object, **files: object) -> Ended:
    words = ["--dataset", "mine", "--kind", "folders", "--root", root, "--classes", "road", "lake"]
    words += ["--files", json.dumps(FILES | files), "--output", results / "index.csv"]
    return run_script("index.py", *words, *more)


def split_voc(results: Path, output: Path) -> Ended:
    words = ["--dataset", "mine", "--kind", "voc", "--root", "x", "--classes", "aeroplane"]
    words += ["bicycle", "--index", results / "index.csv", "--scenario", "1-1"]
    words += ["--setup", "overlapped", "--steps", 0, 1, "--manifest", output / "manifest.csv"]
    return run_script("split.py", *words, "--output", output / "split.csv")


# --- Harm --------------------------------------------------------------------------------------


def cut(path: Path, share: float = 0.6) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def resave(path: Path, **how: Any) -> None:
    """Save a palette mask as another kind of picture."""
    with Image.open(path) as labels:
        labels.convert(how.pop("mode")).save(path, **how)


def fill(path: Path, value: int) -> None:
    Image.fromarray(np.full((SIZE, SIZE), value, np.uint8)).save(path)


def claim_size(path: Path, side: int) -> None:
    """Write a PNG of a few bytes whose header says that it has side × side pixels."""
    chunks = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    for name, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        checksum = zlib.crc32(name + content)
        chunks += struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
    path.write_bytes(chunks)


def exchange_palette(path: Path) -> None:
    """Number the colours of VOC in another way."""
    with Image.open(path) as labels:
        other = PALETTE.copy()
        other[[1, 7]] = PALETTE[[7, 1]]
        labels.putpalette(other.tobytes())
        labels.save(path)


def become_loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def name_accent(root: Path) -> None:
    image(root).rename(image(root, "é.jpg"))
    train_list(root).write_text(line("é") + line("b") + line("c"), encoding="utf-8")
    mask(root).rename(mask(root, f"{MACS}.png"))


def add_to(path: Path, text: str, encoding: str = "utf-8") -> None:
    path.write_bytes(path.read_bytes() + text.encode(encoding))


VOC: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    # what is not there
    "no root": (shutil.rmtree, ["there is no folder", "datasets.mine.root", "snakemake prepare"]),
    "root is a loop": (
        lambda root: (shutil.rmtree(root), become_loop(root)),
        ["there is no folder", "datasets.mine.root"],
    ),
    "empty root": (
        lambda root: (shutil.rmtree(root), root.mkdir()),
        ["in neither VOC layout", "but nothing", "docs/data.md"],
    ),
    "no list": (lambda root: train_list(root).unlink(), ["train_aug.txt: No such file"]),
    "no image": (lambda root: image(root).unlink(), ["1 missing files", "JPEGImages/a.jpg"]),
    "no mask": (lambda root: mask(root).unlink(), ["1 missing files", "ClassAug/a.png"]),
    "case of a name": (
        lambda root: mask(root).rename(mask(root, "A.png")),
        ["missing files", "a.png: there is A.png, of other upper and lower case"],
    ),
    "accents of a name": (name_accent, ["missing files", f"é.png: there is {MACS}.png"]),
    # what is no picture
    "zero-size image": (lambda root: image(root).write_bytes(b""), ["empty files", "a.jpg"]),
    "zero-size mask": (lambda root: mask(root).write_bytes(b""), ["empty files", "a.png"]),
    "text for an image": (lambda root: image(root).write_text("a"), ["of no known image format"]),
    "folder for an image": (lambda root: become_folder(image(root)), ["a.jpg: Is a directory"]),
    "link to itself": (
        lambda root: become_loop(image(root)),
        ["cannot be read", "a.jpg: Too many levels of symbolic links"],
    ),
    "link to nothing": (
        lambda root: (mask(root).unlink(), mask(root).symlink_to("gone.png")),
        ["missing files", "a.png"],
    ),
    "truncated JPEG": (lambda root: cut(image(root)), ["truncated or damaged", "a.jpg"]),
    "truncated PNG": (lambda root: cut(mask(root)), ["truncated or damaged", "a.png"]),
    "huge image": (
        lambda root: claim_size(image(root), 30_000),
        ["so many pixels that they are not read; cut them", "a.jpg: more than 178,956,970 pixels"],
    ),
    "huge mask": (
        lambda root: claim_size(mask(root), 30_000),
        ["so many pixels that they are not read; cut them", "a.png: more than 178,956,970 pixels"],
    ),
    # what is another picture
    "16-bit image": (
        lambda root: Image.fromarray(np.full((SIZE, SIZE), 999, np.uint16)).save(
            image(root), format="PNG"
        ),
        ["images of more than 8 bits", "a.jpg: mode I;16; save it with 8 bits"],
    ),
    "16-bit mask": (
        lambda root: Image.fromarray(np.full((SIZE, SIZE), 999, np.uint16)).save(mask(root)),
        ["one 8-bit label a pixel", "a 16-bit picture with values up to 999"],
    ),
    "RGB mask": (
        lambda root: resave(mask(root), mode="RGB"),
        ["one 8-bit label a pixel", "painted in the data set's palette"],
    ),
    "RGBA mask": (
        lambda root: resave(mask(root), mode="RGBA"),
        ["one 8-bit label a pixel", "with an alpha channel"],
    ),
    "1-bit mask": (lambda root: resave(mask(root), mode="1"), ["a 1-bit picture; save it as"]),
    "JPEG mask": (
        lambda root: resave(mask(root), mode="L", format="JPEG"),
        ["a JPEG file, whose compression changes labels; save masks as PNG"],
    ),
    "grey levels of a palette": (
        lambda root: resave(mask(root), mode="L"),
        ["unknown values", "decoded to grey, not to labels"],
    ),
    "palette in another order": (
        lambda root: exchange_palette(mask(root)),
        ["palette is in another order", "index 1 has the colour of label 7"],
    ),
    "value 21": (lambda root: fill(mask(root), 21), ["known are 0-20, 255", "21 (64 pixels)"]),
    "value 254": (lambda root: fill(mask(root), 254), ["known are 0-20, 255", "254 (64 pixels)"]),
    "mask of another size": (
        lambda root: Image.new("L", (SIZE, 5)).save(mask(root)),
        ["another size than their image", "8 × 5 pixels, its image JPEGImages/a.jpg is 8 × 8"],
    ),
    # lists
    "list without a last line's end": (
        lambda root: train_list(root).write_text(line("b") + line("c") + line("a")[:14]),
        ["train_aug.txt, entry 3: expected an image and a mask path", "'/JPEGImages/a.'"],
    ),
    "list cut within a mask's name": (
        lambda root: train_list(root).write_text(line("b") + line("c") + line("a")[:-3]),
        ["missing files", "SegmentationClassAug/a.p"],
    ),
    "list with zero bytes": (
        lambda root: add_to(train_list(root), "\0" * 20),
        ["train_aug.txt is damaged: it holds zero bytes", "copy it again"],
    ),
    "list in Latin-1": (
        lambda root: add_to(train_list(root), line("é"), "latin-1"),
        ["train_aug.txt is not a text file in UTF-8; save it as one"],
    ),
    "list is a folder": (lambda root: become_folder(train_list(root)), ["Is a directory"]),
    "empty list": (lambda root: train_list(root).write_text("\n"), ["empty lists", "train"]),
    "image twice": (lambda root: add_to(train_list(root), line("a")), ["a.jpg: 2 times in train"]),
    "image in both lists": (
        lambda root: add_to(train_list(root), line("d")),
        ["more than one list", "d.jpg: in train and val"],
    ),
}


def assert_index_refused(
    make: Callable[[Path, Path], Ended],
    harm: Callable[[Path], object],
    words: list[str],
    data: Path,
) -> None:
    root, results = data / "data", data / "results"
    harm(root)
    # What was looked at is kept, to go on from.
    run = partial(make, root, results)
    assert_refused(run, words, data, may_leave=["results/index.progress"])


@pytest.mark.parametrize("name", VOC)
def test_an_index_of_wrong_data(name: str, data: Path) -> None:
    harm, words = VOC[name]
    assert_index_refused(index_voc, harm, words, data)


BY_SUBSET = {side: {"train": FILES[side], "val": FILES[side]} for side in ("images", "masks")}
FOLDERS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "no root": (
        shutil.rmtree,
        ["there is no folder", "datasets.mine.root", "docs/add-a-dataset.md says how it must look"],
    ),
    "a value that no class has": (
        lambda root: fill(mask(root), 7),
        [
            "unknown values (known are 0-2, 255): name them in",
            "`classes` or `values`, or in `void`",
        ],
    ),
    "mask without an image": (
        lambda root: image(root).unlink(),
        ["masks without an image", "datasets.mine.subset: true", "ClassAug/a.png"],
    ),
    "image without a mask": (lambda root: mask(root).unlink(), ["missing files", "ClassAug/a.png"]),
    "two images of one name": (
        lambda root: shutil.copy(image(root), image(root, "a.JPEG")),
        ["a.jpg and JPEGImages/a.JPEG", "images of one name", "rename or remove"],
    ),
    "image and mask differ in case": (
        lambda root: image(root).rename(image(root, "A.jpg")),
        ["A.png: there is a.png, of other upper and lower case"],
    ),
    "no images": (
        lambda root: [path.unlink() for path in image(root).parent.iterdir()],
        ["no images in", "JPEGImages: expected names that end in one of .jpg"],
    ),
    "no folder of masks": (
        lambda root: shutil.rmtree(mask(root).parent),
        ["there is no folder", "SegmentationClassAug: the setting files"],
    ),
    "a name that is no UTF-8": (
        lambda root: Path(os.fsdecode(os.fsencode(image(root).parent) + b"/\xff.jpg")).touch(),
        [r"'JPEGImages/\udcff.jpg'", "a name that is not UTF-8; rename it"],
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_an_index_of_wrong_folders(name: str, data: Path) -> None:
    harm, words = FOLDERS[name]
    assert_index_refused(index_folders, harm, words, data)


def test_masks_without_images_where_a_part_is_meant(data: Path) -> None:
    root, results = data / "data", data / "results"
    for path in (image(root), image(root, "c.jpg")):
        path.unlink()
    assert index_folders(root, results, "--subset").status == 0
    assert len(read_index(results / "index.csv")) == 2
    # Lists say which images are meant.
    for name in "bd":
        (root / f"{name}.txt").write_text(name)
    lists = {"lists": {"train": "b.txt", "val": "d.txt"}, "val_fraction": None}
    assert index_folders(root, results, **lists).status == 0


def test_masks_that_folders_share_have_their_images(data: Path) -> None:
    root, results = data / "data", data / "results"
    for subset, names in (("train", "ab"), ("val", "cd")):
        (root / subset).mkdir()
        for name in names:
            image(root, f"{name}.jpg").rename(root / subset / f"{name}.jpg")
    files = {"images": {subset: subset for subset in ("train", "val")}, "val_fraction": None}
    files["masks"] = dict.fromkeys(("train", "val"), FILES["masks"])
    assert index_folders(root, results, **files).status == 0
    shutil.copy(mask(root), mask(root, "e.png"))
    assert_sentence(*index_folders(root, results, **files), ["without an image", "Aug/e.png"])


def test_a_file_that_must_not_be_read(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated: root, as which tests may run, reads everything."""
    root, results = data / "data", data / "results"
    opened = Image.open

    def refuse(path: Any, *more: Any, **how: Any) -> Any:
        if Path(str(path)) == image(root):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *more, **how)

    monkeypatch.setattr(Image, "open", refuse)
    words = ["cannot be read", "JPEGImages/a.jpg: Permission denied"]
    assert_refused(
        lambda: index_voc(root, results), words, data, may_leave=["results/index.progress"]
    )


@pytest.mark.parametrize(
    "name", ["a b", "ä é", "写真", "a,b", 'a"b', "a#b", "-a", "%20", "a.b", "A", "a'b$(x)", "a\\b"]
)
def test_names_that_must_work(name: str, data: Path) -> None:
    """In a folder beside others, one of which may differ from it in case only."""
    root, results = data / "data", data / "more results"
    shutil.copy(image(root), image(root, f"{name}.jpg"))
    shutil.copy(mask(root), mask(root, f"{name}.png"))
    ended = index_folders(root, results)
    assert ended.status == 0, ended.said
    index = read_index(results / "index.csv")
    (row,) = index.index[index["image"] == f"JPEGImages/{name}.jpg"]
    pair = index["image"][row], index["mask"][row]
    assert read_pair(root, pair)[1].tolist() == [[0] * SIZE, *[[1] * SIZE] * (SIZE - 1)]
    ended = split_voc(results, results)
    assert ended.status == 0, ended.said
    rows = read_split(results / "split.csv")
    assert pair in list(zip(rows["image"], rows["mask"], strict=True))


def test_a_list_that_begins_with_a_mark_of_its_encoding(data: Path) -> None:
    root, results = data / "data", data / "results"
    train_list(root).write_text(train_list(root).read_text(), encoding="utf-8-sig")
    assert index_voc(root, results).status == 0


# --- Tables that other jobs read -------------------------------------------------------------


def replace(old: str, new: str) -> Callable[[Path], object]:
    def harm(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return harm


def lose_last_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def keep_header(path: Path) -> None:
    path.write_text(path.read_text().splitlines(keepends=True)[0][:-1])


AGAIN = ["index.csv", "copy it again, or delete it to have it"]
INDEX: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "labels without a colon": (replace("1:56", "0x1452"), ["a.jpg", "'0:8 0x1452'"]),
    "labels without a number": (replace("0:8 1:56", "777:"), ["a.jpg", "'777:'"]),
    "labels above 255": (replace("1:56", "300:56"), ["a.jpg", "'0:8 300:56'"]),
    "labels of other pixels": (replace("1:56", "1:57"), ["a.jpg", "'0:8 1:57'"]),
    "no labels": (replace("0:8 1:56", ""), ["a.jpg", "the labels"]),
    "width": (replace(",8,", ",8.5,"), ["width of JPEGImages/a.jpg is '8.5', no number"]),
    "cut within a line": (lambda path: cut(path, 0.97), ["was cut off"]),
    "cut at a line's end": (lose_last_line, ["was cut off or lacks rows"]),
    "a row taken out": (replace("train,JPEGImages/b.jpg", "#"), ["was cut off or lacks rows"]),
    "nothing but a header": (keep_header, ["was cut off"]),
    "zero bytes": (lambda path: path.write_bytes(b"\0" * 200), ["is no index"]),
    "empty": (lambda path: path.write_bytes(b""), ["cannot read the index"]),
    "binary": (lambda path: path.write_bytes(b"\xff\xfe\x00"), ["cannot read the index"]),
    "another table": (replace("subset,", "list,"), ["is no index: its columns are list, image"]),
    "a field too many": (replace("\n", "\n,,,,,,,,\n"), ["cannot read the index"]),
}


@pytest.mark.parametrize("name", INDEX)
def test_a_split_of_a_damaged_index(name: str, data: Path) -> None:
    harm, words = INDEX[name]
    results = data / "results"
    harm(results / "index.csv")
    assert_refused(lambda: split_voc(results, results), [*words, *AGAIN], data)


def train(data: Path, *more: object) -> Ended:
    words = "--step 0 --method ce --seed 1 --new-classes 1 --epochs 1 --dataset mine --kind voc"
    words += " --classes aeroplane bicycle --backbone resnet18 --width 4 --head-channels 8"
    words += " --batch 2 --crop 32 --lr 0.05 --device cpu --threads 1"
    results = data / "results"
    places = ["--root", data / "data", "--split", results / "split.csv"]
    places += ["--output", results / "new.safetensors", "--history", results / "new.csv"]
    return run_script("train.py", *words.split(), *places, *more)


SPLIT: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "cut within a line": (lambda path: cut(path, 0.97), ["the split", "was cut off"]),
    "cut at a line's end": (lose_last_line, ["the split", "was cut off or lacks rows"]),
    "step": (replace("\n0,", "\nnull,"), ["step of JPEGImages/a.jpg is 'null', no number"]),
    "an index": (
        lambda path: shutil.copy(path.with_name("index.csv"), path),
        ["is no split: its columns are subset, image"],
    ),
    "an image that changed": (
        lambda path: cut(image(path.parent.parent / "data")),
        ["cannot read", "a.jpg", "has changed or was damaged since the dataset was indexed"],
    ),
    "a mask that changed": (
        lambda path: Image.new("L", (5, 5)).save(mask(path.parent.parent / "data")),
        ["a.png: its size is 5 × 5, its image's 8 × 8", "restore it"],
    ),
}


@pytest.mark.parametrize("name", SPLIT)
def test_a_training_on_a_damaged_split(name: str, data: Path) -> None:
    harm, words = SPLIT[name]
    harm(data / "results" / "split.csv")
    assert_refused(lambda: train(data), words, data)


FLAGS: dict[str, tuple[str, list[str]]] = {
    "negative": ("--workers -1", ["--workers", "'-1'", "at least 0"]),
    "zero": ("--batch 0", ["--batch", "'0'", "at least 2"]),
    "not a number": ("--lr nan", ["--lr", "'nan'", "finite"]),
    "infinite": ("--weight-decay inf", ["--weight-decay", "'inf'", "finite"]),
    "seed": ("--seed 4294967296", ["--seed", "'4294967296'", "at most 4294967295"]),
    "text": ("--crop wide", ["--crop", "'wide'", "whole number"]),
    "misspelt": ("--epoch-s 1", ["unrecognized arguments: --epoch-s"]),
    "kind": ("--kind vco", ["'vco'", "did you mean 'voc'"]),
    "class": ("--classes bycicle", ["'bycicle'", "did you mean 'bicycle'"]),
    "classes to learn": ("--new-classes 7", ["--new-classes 7", "has 2 classes"]),
    "objective": ("--method mbi", ["base objective 'mbi' is unknown", "bce"]),
    "device": ("--device gpu", ["'gpu'", "cuda:N"]),
    "void": ("--void 256", ["datasets.mine.void", "kind folders"]),
    "step without its models": ("--step 1", ["--init and --teacher"]),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_training_with_wrong_flags(name: str, data: Path) -> None:
    flags, words = FLAGS[name]
    assert_refused(lambda: train(data, *flags.split()), words, data)


def test_mask_values_that_eight_bits_do_not_have(data: Path) -> None:
    words = ["datasets.mine: mask value 256 of 'void'", "0 to 255"]
    run = partial(index_folders, data / "data", data / "results", "--void", 256)
    assert_refused(run, words, data)


def test_exemplars_that_were_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "exemplars.csv"
    row = {"step": 1, "image": "a.jpg", "mask": "a.png", "chosen_for": 1, "known": "0"}
    write_exemplars(path, pd.DataFrame([row, row]))
    assert len(read_exemplars(path)) == 2
    lose_last_line(path)
    words = ["the list of exemplars", "was cut off or lacks rows", "delete it"]
    assert_refused(lambda: run_call(lambda: read_exemplars(path)), words, tmp_path)


def test_tables_of_older_versions_are_read(data: Path) -> None:
    """They do not say how many rows follow."""
    for name, read in (("index.csv", read_index), ("split.csv", read_split)):
        path = data / "results" / name
        table = read(path)
        rows = path.read_text().splitlines()
        path.write_text("".join(f"{row.rpartition(',')[0]}\n" for row in rows))
        assert "left" not in path.read_text()
        pd.testing.assert_frame_equal(read(path), table)
        path.write_text(path.read_text()[:-1])
        assert_sentence(*run_call(partial(read, path)), ["was cut off"])


# --- By Snakemake --------------------------------------------------------------------------


@pytest.mark.workflow
def test_an_index_by_snakemake(data: Path, clone: Path) -> None:
    """The job's sentence is what is seen, and what was made of other data stays."""
    folder = Path(shutil.copytree(clone, data / "clone", symlinks=True))
    cut(mask(data / "data"))
    (folder / "results" / "voc").mkdir(parents=True)
    (folder / "results" / "voc" / "index.csv").write_text("of another data set")
    before = contents(folder)
    config = f"datasets={{mine: {{kind: voc, root: {data / 'data'}, subset: true}}}}"
    run = snakemake(folder, "--cores", 1, "results/mine/index.csv", "--config", config)
    assert run.status == 1
    for word in ("error: dataset 'mine'", "truncated or damaged files", "a.png"):
        assert word in run.output, run.output
    assert "Traceback" not in run.output
    after = contents(folder)
    left = {path for path in after.keys() - before if not path.endswith("records.json")}
    assert left == {"results/mine", "results/mine/index.progress", "results/mine/fingerprint.json"}
    assert {path: after[path] for path in before} == before
