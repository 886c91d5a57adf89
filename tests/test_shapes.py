from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ciss.datasets import list_images, open_dataset, shapes
from ciss.errors import CissError
from ciss.index import build_index
from ciss.splits import presence


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "data"
    shapes.generate(root, train=120, val=12, size=48, seed=3)
    return root


def test_same_bytes_whatever_the_number_of_workers(root: Path, tmp_path: Path) -> None:
    shapes.generate(tmp_path / "again", train=120, val=12, size=48, seed=3, workers=2)
    assert contents(tmp_path / "again") == contents(root)


def test_an_image_depends_on_its_number_and_the_seed_only(root: Path, tmp_path: Path) -> None:
    shapes.generate(tmp_path / "few", train=3, val=1, size=48, seed=3)
    shapes.generate(tmp_path / "other", train=3, val=1, size=48, seed=4)
    name = "JPEGImages/train_000002.jpg"
    assert (tmp_path / "few" / name).read_bytes() == (root / name).read_bytes()
    assert (tmp_path / "other" / name).read_bytes() != (root / name).read_bytes()
    val = np.asarray(Image.open(root / "JPEGImages/val_000000.jpg"))
    assert (val != np.asarray(Image.open(root / "JPEGImages/train_000000.jpg"))).any()


def test_index_accepts_it_and_later_classes_accompany_early_ones(root: Path) -> None:
    dataset = open_dataset("shapes", "shapes", root)
    index = build_index(dataset)
    assert index["subset"].value_counts().to_dict() == {"train": 120, "val": 12}
    assert set(index["width"]) == set(index["height"]) == {48}
    present = presence(index, dataset)[:, 1:]
    assert present.any(axis=0).all()
    early, late = present[:, :10].any(axis=1), present[:, 10:].any(axis=1)
    assert (early & late).mean() > 0.3


def test_objects_have_a_thin_void_contour(root: Path) -> None:
    _, mask = list_images(open_dataset("shapes", "shapes", root))["train"][0]
    with Image.open(root / mask) as image:
        assert image.mode == "P"
        # VOC's palette: 1 dark red, 2 dark green, 15 pinkish grey, 255 cream.
        palette = np.asarray(image.getpalette()).reshape(-1, 3)
        expected = [[128, 0, 0], [0, 128, 0], [192, 128, 128], [224, 224, 192]]
        assert palette[[1, 2, 15, 255]].tolist() == expected
    for seed in range(20):
        _, values = shapes.draw(np.random.default_rng(seed), 64)
        void = values == 255
        assert 0 < void.mean() < 0.15
        inner = values[1:-1, 1:-1]
        for neighbour in (values[:-2, 1:-1], values[2:, 1:-1]):
            # Background and an object never touch along a column: a rim lies between them.
            bare = (inner == 0) & (neighbour != 0) & (neighbour != 255)
            assert not bare.any()


def test_classes_share_colours_and_shapes() -> None:
    designs = list(shapes.DESIGNS.values())
    assert len(set(designs)) == 20
    first, last = designs[:10], designs[10:]
    assert {colour for colour, _, _ in first} == {colour for colour, _, _ in last}
    assert {shape for _, _, shape in first} == {shape for _, _, shape in last}
    # A later class shares its colour with one early class and its shape with another.
    assert all(a[0] == b[0] and a[2] != b[2] for a, b in zip(first, last, strict=True))


def test_interrupted_generation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shapes, "_write_lists", fail)
    with pytest.raises(KeyboardInterrupt):
        shapes.generate(tmp_path / "data", train=2, val=1, size=32, seed=0)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_generation_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".data.abc123.partial" / "JPEGImages").mkdir(parents=True)
    (tmp_path / ".database.abc123.partial").mkdir()
    shapes.generate(tmp_path / "data", train=2, val=1, size=32, seed=0)
    assert {path.name for path in tmp_path.iterdir()} == {"data", ".database.abc123.partial"}


def test_replaces_its_own_folder_but_no_other(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "splits").mkdir(parents=True)  # an empty folder, as a workflow engine makes it
    shapes.generate(root, train=2, val=1, size=32, seed=0)
    before = contents(root)
    shapes.generate(root, train=1, val=1, size=32, seed=1)
    assert len(contents(root)) == len(before) - 2
    (root / "shapes.json").unlink()
    with pytest.raises(CissError, match="was not made by the shapes generator"):
        shapes.generate(root, train=1, val=1, size=32, seed=1)
    assert len(list(tmp_path.iterdir())) == 1


def test_refuses_nothing_to_draw(tmp_path: Path) -> None:
    with pytest.raises(CissError, match="val=0"):
        shapes.generate(tmp_path / "data", train=2, val=0, size=32, seed=0)
