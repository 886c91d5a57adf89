"""Segmenting a folder of a user's own images: which there are, how they look, what is written."""

from __future__ import annotations

import csv
import io
import os
import pickle
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import REPOSITORY, Run, run_python
from PIL import Image

from ciss import photos, prediction
from ciss.checkpoint import load_model, save_model
from ciss.datasets.voc import PALETTE
from ciss.errors import CissError
from ciss.evaluation import segment
from ciss.images import read_mask
from ciss.models import NetworkConfig, SegmentationNetwork, initialise

CLASSES = ("background", "cat", "dog", "car", "bus", "sofa")
HEADER = {"dataset": "voc", "kind": "voc", "classes": list(CLASSES)}


def tiny(classes: tuple[int, ...] = (4, 2)) -> SegmentationNetwork:
    network = SegmentationNetwork(
        NetworkConfig("resnet18", width=4, head_channels=8, pooling=2), classes
    )
    initialise(network, 0)
    # A class for everybody: without training one of them wins everywhere.
    for classifier in network.classifiers:
        torch.nn.init.normal_(classifier.weight, generator=torch.Generator().manual_seed(1))
    return network.eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_model(tmp_path / "model.safetensors", tiny(), HEADER)
    return tmp_path / "model.safetensors"


def picture(path: Path, height: int, width: int, **how: Any) -> np.ndarray:
    """Write large patches of random colours, which a class can be seen in."""
    rng = np.random.default_rng(len(path.name))
    small = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3), dtype=np.uint8)
    pixels = small.repeat(16, 0).repeat(16, 1)[:height, :width]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)
    return pixels


def predict(monkeypatch: pytest.MonkeyPatch, *words: object) -> int | str | None:
    return script(monkeypatch, "predict", "--device", "cpu", *words)


def script(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> int | str | None:
    path = REPOSITORY / "workflow_scripts" / f"{name}.py"
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    monkeypatch.setattr(sys, "argv", [str(path), *map(str, words)])
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as ended:
        return ended.code
    return 0


def table(path: Path, key: str) -> dict[str, dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return {row[key]: row for row in csv.DictReader(file)}


def test_a_folder_by_hand(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    images, output = tmp_path / "meine Bilder ü", tmp_path / "meine Bilder ü" / "labels"
    plain = picture(images / "a.png", 40, 56)
    picture(images / "a.jpg", 40, 56)
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(images / "sub folder" / "quer ß.JPG", 40, 56, exif=turned, quality=95)
    picture(images / ".hidden.png", 40, 56)
    (images / "broken.jpg").write_bytes(b"no image")
    (images / "notes.txt").write_text("none either")
    words = ("--checkpoint", checkpoint, "--images", images, "--output", output)

    assert predict(monkeypatch, *words) == 1
    said = capsys.readouterr().err
    assert "no images, left out: notes.txt" in said
    assert "1 of 4 images could not be segmented: broken.jpg is not an image" in said
    assert "Traceback" not in said

    (images / "broken.jpg").unlink()
    assert predict(monkeypatch, *words) == 0
    assert "3 images are segmented already" in capsys.readouterr().err
    found = table(output / "images.csv", "image")
    assert {name: row["mask"] for name, row in found.items()} == {
        "a.jpg": "masks/a.jpg.png",
        "a.png": "masks/a.png.png",
        "sub folder/quer ß.JPG": "masks/sub folder/quer ß.png",
    }
    assert (found["sub folder/quer ß.JPG"]["width"], found["a.png"]["width"]) == ("40", "56")

    network, _ = load_model(checkpoint)
    labels = segment(network, torch.from_numpy(plain).permute(2, 0, 1)[None])[0].numpy()
    values = np.array([0, 8, 12, 7, 6, 18], np.uint8)
    with Image.open(output / "masks" / "a.png.png") as mask:
        assert mask.mode == "P"
        np.testing.assert_array_equal(np.asarray(mask), values[labels])
        shown = np.asarray(mask.convert("RGB"))
    np.testing.assert_array_equal(shown, PALETTE[values[labels]])
    assert len(np.unique(labels)) > 1
    shares = re.findall(r"(\w+) ([\d.]+)", found["a.png"]["classes"])
    assert {name: float(share) for name, share in shares} == {
        CLASSES[label]: round(100 * float((labels == label).mean()), 2)
        for label in np.unique(labels)
    }
    with Image.open(output / "overlays" / "a.png.jpg") as drawn:
        assert drawn.size == (56, 40)
    legend = table(output / "classes.csv", "name")
    assert list(legend) == list(CLASSES)
    assert legend["cat"] == {
        **{"value": "8", "name": "cat", "label": "1", "dataset_value": "8", "step": "0"},
        "colour": "#400000",
    }
    assert legend["bus"]["step"] == "1"

    # Another setting, another mask; an image that changed, its mask alone.
    assert predict(monkeypatch, *words, "--values", "learning", "--overlay", 0) == 0
    assert "images are segmented already" not in capsys.readouterr().err
    np.testing.assert_array_equal(read_mask(output / "masks" / "a.png.png"), labels)
    picture(images / "a.png", 24, 24)
    assert predict(monkeypatch, *words, "--values", "learning", "--overlay", 0) == 0
    assert "2 images are segmented already" in capsys.readouterr().err
    assert read_mask(output / "masks" / "a.png.png").shape == (24, 24)


def test_images_are_read_as_they_are_viewed(tmp_path: Path) -> None:
    def read(image: Image.Image, name: str, **how: Any) -> np.ndarray:
        image.save(tmp_path / name, **how)
        pixels = photos.read_photo(tmp_path / name)
        width, height = photos.viewed_size(tmp_path / name)
        assert pixels.shape == (height, width, 3)
        return pixels

    grey = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    as_colours = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(read(Image.fromarray(grey), "grey.png"), as_colours)
    deep = Image.fromarray(grey.astype(np.uint16) * 256 + 255)
    np.testing.assert_array_equal(read(deep, "deep.png"), as_colours)
    for tag, expected in {
        1: as_colours,
        3: as_colours[::-1, ::-1],
        6: as_colours.swapaxes(0, 1)[:, ::-1],
        8: as_colours.swapaxes(0, 1)[::-1],
    }.items():
        exif = Image.Exif()
        exif[0x0112] = tag
        np.testing.assert_array_equal(
            read(Image.fromarray(grey), f"turned{tag}.png", exif=exif), expected
        )
    clear = np.dstack([as_colours, np.zeros((4, 6), np.uint8)])
    clear[0, 0, 3] = 255
    shown = read(Image.fromarray(clear), "clear.png")
    assert shown[0, 0].tolist() == as_colours[0, 0].tolist()
    assert (shown[1:] == 255).all()
    indexed = Image.fromarray(as_colours).convert("P", palette=Image.Palette.ADAPTIVE)
    np.testing.assert_array_equal(read(indexed, "palette.png"), as_colours)
    assert read(Image.fromarray(as_colours).convert("CMYK"), "print.jpg").shape == (4, 6, 3)
    Image.fromarray(grey.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(photos.UnreadableError, match="32 bits"):
        photos.read_photo(tmp_path / "float.tif")


def test_names_that_clash_keep_their_suffix() -> None:
    assert photos.stems(["a.jpg", "sub/a.jpg", "b.png"]) == ["a", "sub/a", "b"]
    assert photos.stems(["a.jpg", "A.png", "b.png"]) == ["a.jpg", "A.png", "b"]
    # a.jpg.png would be called as a.jpg, which keeps its suffix for the sake of a.png.
    names = ["a.jpg", "a.png", "a.jpg.png"]
    assert photos.stems(names) == names


def test_which_files_are_images(tmp_path: Path) -> None:
    with pytest.raises(CissError, match=r"no folder .*absent"):
        photos.find_images(tmp_path / "absent", tmp_path)
    for name in ("b.PNG", "a.jpeg", "sub/c.webp", ".git/d.png", "out/masks/e.png", "list.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    found = photos.find_images(tmp_path, tmp_path / "out")
    assert found == (["a.jpeg", "b.PNG", "sub/c.webp"], ["list.csv"])
    assert photos.find_images(tmp_path / "b.PNG", tmp_path) == (["b.PNG"], [])
    with pytest.raises(CissError, match="holds no image"):
        photos.find_images(tmp_path / "out", tmp_path / "out" / "masks")


def test_batches_hold_images_of_one_size_and_so_many_pixels() -> None:
    def photo(number: int, width: int, height: int) -> photos.Photo:
        return photos.Photo(Path(), str(number), str(number), width, height)

    found = [photo(n, *((512, 512), (1024, 512), (2048, 2048))[n % 3]) for n in range(9)]
    made = prediction.batches(found, 4)
    assert [len(group) for group in made] == [3, 2, 1, 1, 1, 1]
    assert sorted(p.name for group in made for p in group) == sorted(p.name for p in found)
    assert all(len({p[-2:] for p in group}) == 1 for group in made)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"dataset": "voc", "classes": ["background", "cat", "aeroplane"]}, (0, 8, 1)),
        ({"dataset": "x", "kind": "cityscapes", "classes": ["background", "road"]}, (0, 7)),
        # Its background has no value but that of unlabelled pixels.
        ({"dataset": "x", "kind": "camvid", "classes": ["background", "sky"]}, (11, 0)),
        ({"dataset": "x", "kind": "folders", "classes": ["background", "b", "a"]}, (0, 1, 2)),
        (
            {
                **{"dataset": "x", "kind": "folders", "classes": ["background", "b", "a"]},
                "values": ["a=0,3", "b=9"],
            },
            (255, 9, 0),
        ),
        ({"dataset": "mine", "classes": ["background", "b", "a"]}, ()),
    ],
)
def test_values_are_those_of_the_data_set(
    header: dict[str, Any], expected: tuple[int, ...]
) -> None:
    network = tiny((len(header["classes"]),))
    legend = prediction.legend_of(network, header, Path("model"))
    assert legend.dataset_values == expected
    assert legend.values.tolist() == list(expected or range(len(header["classes"])))
    assert len(np.unique(legend.colours, axis=0)) == len(legend.names)
    # A class has one colour, whatever its value.
    learning = prediction.legend_of(network, header, Path("model"), "learning")
    assert learning.values.tolist() == list(range(len(header["classes"])))
    np.testing.assert_array_equal(learning.colours, legend.colours)
    np.testing.assert_array_equal(legend.palette()[legend.values], legend.colours)


def test_a_network_before_its_training_is_no_model() -> None:
    with pytest.raises(CissError, match=r"init.safetensors holds a network before its training"):
        prediction.legend_of(tiny(), {"initialisation": "awt"}, Path("init.safetensors"))


class Evil:
    """What runs a command when it is read by somebody who trusts it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("how", ["pickle", "torch", "old torch"])
def test_a_pickle_is_not_opened(
    how: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("onnxruntime")
    file, marker = tmp_path / "model.safetensors", tmp_path / "it ran"
    content = {"state_dict": Evil(marker)}
    if how == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=how == "torch")
    picture(tmp_path / "a.png", 16, 16)
    out = tmp_path / "out"
    for name, words in {
        "predict": ("--images", tmp_path / "a.png", "--output", out, "--device", "cpu"),
        "export": ("--output", out / "m.onnx"),
    }.items():
        assert script(monkeypatch, name, "--checkpoint", file, *words) == 1
        said = capsys.readouterr().err
        assert f"{file} is a file of PyTorch (a pickle), which can run code" in said
        assert "rm " not in said
    assert not marker.exists()
    assert not out.exists()
    # The file is what it is taken for.
    content = io.BytesIO(file.read_bytes())
    pickle.load(content) if how == "pickle" else torch.load(content, weights_only=False)
    assert marker.exists()


def test_what_does_not_fit_the_memory_is_halved_and_then_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def small_memory(network: Any, images: torch.Tensor) -> torch.Tensor:
        if images.numel() > 2 * 3 * 16 * 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return segment(network, images)

    monkeypatch.setattr(prediction, "segment", small_memory)
    for name, size in (("a", 16), ("b", 16), ("c", 16), ("d", 16), ("e", 16), ("large", 48)):
        picture(tmp_path / f"{name}.png", size, size)
    names, _ = photos.find_images(tmp_path, tmp_path / "out")
    failures: dict[str, str] = {}
    found = photos.look_at(tmp_path, names, failures.__setitem__)
    legend = prediction.legend_of(tiny(), HEADER, Path("model"))
    done = prediction.predict_all(
        tiny(),
        found,
        prediction.Output(tmp_path / "out", legend, 0.5, "model"),
        torch.device("cpu"),
        batch=8,
        workers=2,
        failed=failures.__setitem__,
    )
    assert [made.photo.name for made in done] == [f"{name}.png" for name in "abcde"]
    assert failures == {
        "large.png": "of 48 × 48 pixels does not fit into the memory; scale it down"
    }


@pytest.mark.workflow
def test_the_target_runs_again_for_what_changes_masks_alone(
    checkpoint: Path, clone: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    # Relative, so that they begin as options do; all that a shell or a pattern may understand.
    images, odd = Path("-my{odd}'ü'$HOME \"x\";&#1 [a]*"), Path("--model'é'$HOME;\"&#.safetensors")
    picture(tmp_path / images / "a.jpg", 24, 24)
    checkpoint.rename(tmp_path / odd)

    def snakemake(*words: object, **more: object) -> Run:
        given = {"images": images, "checkpoint": odd, "runtime": "{device: cpu}", **more}
        config = [f"{name}={value}" for name, value in given.items() if value]
        start = ("-m", "snakemake", "--snakefile", clone / "Snakefile", "--cores", 1)
        start += ("predict", "export")
        done = run_python(*start, *words, "--config", *config, cwd=tmp_path)
        return Run(done.returncode, done.stdout + done.stderr)

    run = snakemake()
    assert run.status == 0, run.output
    assert run.jobs == {"segment": 1, "predict": 1, "onnx": 1, "export": 1}
    folder = (
        tmp_path / "results/predictions" / str(images).translate({123: "_", 125: "_"}) / odd.stem
    )
    assert (tmp_path / "results" / "exports" / f"{odd.stem}.onnx").is_file()
    assert read_mask(folder / "masks" / "a.png").shape == (24, 24)
    changed = {"runtime": "{device: cpu, workers: 1}", "prediction": "{batch: 2, overlay: 0.5}"}
    assert snakemake("-n", **changed).jobs == {}
    picture(tmp_path / images / "b.jpg", 24, 24)
    assert snakemake("-n").jobs == {"segment": 1, "predict": 1}
    refused = snakemake("-n", images="")
    assert refused.status != 0
    assert "Error: predict needs images: snakemake predict --config" in refused.output
    cut_off = snakemake("-n", images="roll #1")
    assert "Error: --config images=roll #1: Snakemake takes ' #' and what follows" in cut_off.output
