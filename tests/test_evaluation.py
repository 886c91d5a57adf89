"""From images on the disk to scores: whole images and crops, pixels without a class, class 0.

The network of most of these tests reads its prediction from the images' red channel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from ciss import results, splits
from ciss.datasets import Dataset, open_dataset
from ciss.evaluation import evaluate
from ciss.index import build_index
from ciss.labels import evaluation_lookup
from ciss.loading import MEAN, STD, EvaluationImages, evaluation_batches, to_network_input
from ciss.metrics import confusion_matrix, iou, mean_iou, write_confusion
from ciss.models import NetworkConfig, SegmentationNetwork, initialise
from ciss.pixelwise import Upsampled, predict
from ciss.scenarios import parse_scenario

#: steps between the red values of two classes
RED = 10
CPU = torch.device("cpu")
#: of three images, neither square nor a multiple of anything
SIZES = [(37, 53), (64, 41), (33, 33)]


class Output(NamedTuple):
    upsampled: Upsampled

    @property
    def predicted(self) -> Tensor:
        return predict(self.upsampled)


class Painted(nn.Module):
    """Predicts the class that the red channel of an image spells."""

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.n_classes = n_classes

    def forward(self, images: Tensor) -> Output:
        red = (images[:, 0] * STD[0] + MEAN[0]) * 255
        classes = (red / RED).round().long().clamp(0, self.n_classes - 1)
        logits = nn.functional.one_hot(classes, self.n_classes).movedim(-1, 1).float()
        return Output(Upsampled.of(logits))


def paths(kind: str, subset: str, name: str) -> tuple[str, str]:
    match kind:
        case "cityscapes":
            scene = f"{subset}/ulm/{name}"
            return (
                f"leftImg8bit/{scene}_leftImg8bit.png",
                f"gtFine/{scene}_gtFine_labelIds.png",
            )
        case "ade":
            folder = {"train": "training", "val": "validation"}[subset]
            return f"images/{folder}/{name}.jpg", f"annotations/{folder}/{name}.png"
    return f"{subset}/{name}.png", f"{subset}annot/{name}.png"


def make_images(root: Path, kind: str, raw: list[int]) -> Dataset:
    """Masks of blocks of the raw values; images that predict the class, or sometimes the next."""
    rng = np.random.default_rng(0)
    dataset = open_dataset(kind, kind, root)
    for subset in dataset.subsets:
        for number, (height, width) in enumerate(SIZES):
            blocks = rng.permutation(np.resize(raw, (height // 8 + 1) * (width // 8 + 1)))
            blocks = blocks.reshape(height // 8 + 1, -1).astype(np.uint8)
            mask = blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
            labels = dataset.lookup[mask]
            predicted = np.where(labels == 255, 0, labels) + (rng.random(mask.shape) < 0.2)
            image, mask_path = (root / path for path in paths(kind, subset, f"x{number}"))
            for path, pixels in (
                (image.with_suffix(".png"), np.repeat(predicted[..., None] * RED, 3, axis=2)),
                (mask_path, mask),
            ):
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
            if image.suffix == ".jpg":  # ADE20K's are JPEG: of that name, but without loss
                image.with_suffix(".png").rename(image)
    return dataset


def rows_of(dataset: Dataset, scenario: str, step: int, images: str = "test") -> pd.DataFrame:
    index = build_index(dataset, is_subset=True)
    parsed = parse_scenario(scenario, dataset.n_classes)
    return splits.select(splits.split(index, dataset, parsed, [step]), step, images)


def score(dataset: Dataset, rows: pd.DataFrame, seen: int, mode: str, size: int = 16) -> Tensor:
    lookup = evaluation_lookup(dataset.lookup, range(1, seen + 1))
    images = EvaluationImages(dataset.root, rows, lookup, size, mode)
    batches = ((pixels, labels) for pixels, labels, _ in evaluation_batches(images, 2))
    network: Any = Painted(seen + 1)
    return evaluate(network, batches, CPU)


def counted_by_hand(dataset: Dataset, rows: pd.DataFrame, truth: dict[int, int], n: int) -> Tensor:
    """Confusion matrix of whole images, pixel by pixel; values that ``truth`` lacks are void."""
    matrix = torch.zeros(n, n, dtype=torch.int64)
    for image, mask in zip(rows["image"], rows["mask"], strict=True):
        with Image.open(dataset.root / image) as opened:
            red = np.asarray(opened)[..., 0] // RED
        with Image.open(dataset.root / mask) as opened:
            raw = np.asarray(opened)
        for value, prediction in zip(raw.flat, red.flat, strict=True):
            if int(value) in truth:
                matrix[truth[int(value)], min(int(prediction), n - 1)] += 1
    return matrix


#: raw values of the masks, and what each is with all classes learned where unlabelled is ignored
KINDS: dict[str, tuple[list[int], dict[int, int]]] = {
    # void ids 1 and 4, road, sidewalk, bicycle
    "cityscapes": ([0, 1, 4, 7, 8, 33], {7: 1, 8: 2, 33: 19}),
    "ade": ([0, 1, 2, 20], {1: 1, 2: 2, 20: 20}),
    "camvid": ([0, 3, 10, 11], {0: 1, 3: 4, 10: 11}),
}
UNLABELLED = {"cityscapes": 0, "ade": 0, "camvid": 11}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("background", ["unlabelled", "ignore"])
def test_pixels_without_a_class(kind: str, background: str, tmp_path: Path) -> None:
    raw, truth = KINDS[kind]
    make_images(tmp_path, kind, raw)
    dataset = open_dataset(kind, kind, tmp_path, background=background)
    if background == "unlabelled":
        truth = {**truth, UNLABELLED[kind]: 0}
    n = dataset.n_classes + 1
    rows = rows_of(dataset, "offline", 0)
    confusion = score(dataset, rows, n - 1, "full")
    assert torch.equal(confusion, counted_by_hand(dataset, rows, truth, n))
    assert (confusion[0].sum() > 0) == (background == "unlabelled")

    # The class 0 is in the means that say so, and in no other.
    write_confusion(tmp_path / "c.csv", confusion, dataset.classes, {"images": len(rows)})
    key = results.RunKey(kind, "offline", "ft", 1)
    tidy = results.collect([(key, 0, tmp_path / "c.csv")], (n,), {"ft": ("ft", "")})
    results.write_table(tmp_path / "results.csv", tidy)
    summary = results.summary(results.read_table(tmp_path / "results.csv")).iloc[0]
    scores = iou(confusion)
    with_0, without = mean_iou(scores), mean_iou(scores, range(1, n))
    assert summary["all"] == pytest.approx(with_0)
    assert summary["all_without_background"] == pytest.approx(without)
    assert (with_0 == without) == (background == "ignore")


def test_before_the_last_step_later_classes_are_class_0_either_way(tmp_path: Path) -> None:
    make_images(tmp_path, "cityscapes", KINDS["cityscapes"][0])
    later = {33: 0, 7: 1, 8: 2}
    for background, truth in (("ignore", later), ("unlabelled", {**later, 0: 0})):
        dataset = open_dataset("cityscapes", "cityscapes", tmp_path, background=background)
        rows = rows_of(dataset, "14-5", 0)
        confusion = score(dataset, rows, 14, "full")
        assert torch.equal(confusion, counted_by_hand(dataset, rows, truth, 15))
        assert confusion[0].sum() > 0


def test_camvid_is_evaluated_on_its_test_or_val_images(tmp_path: Path) -> None:
    dataset = make_images(tmp_path, "camvid", KINDS["camvid"][0])
    lists = {images: rows_of(dataset, "6-5", 1, images) for images in ("test", "val", "train")}
    for images, rows in lists.items():
        assert rows["image"].str.startswith(f"{images}/").all()
        assert len(rows) == len(SIZES)


@pytest.mark.parametrize("size", [16, 40])
def test_centre_crops_of_odd_images(size: int, tmp_path: Path) -> None:
    """The short side becomes ``size``; the mask is sampled, and every pixel counts once."""
    dataset = make_images(tmp_path, "camvid", [0, 3, 10])
    rows = rows_of(dataset, "offline", 0)
    lookup = evaluation_lookup(dataset.lookup, range(1, 12))
    images = EvaluationImages(tmp_path, rows, lookup, size, "crop")
    total = torch.zeros(12, dtype=torch.int64)
    for (height, width), mask, (pixels, labels, _) in zip(SIZES, rows["mask"], images, strict=True):
        assert pixels.shape == (3, size, size)
        short = min(height, width)
        # The source pixel of each pixel of the crop: the one under its centre, unless that is
        # exactly between two.
        sources = []
        for length in (height, width):
            scaled = size * length // short
            start = round((scaled - size) / 2)
            sources.append((np.arange(start, start + size) + 0.5) * length / scaled)
        with Image.open(tmp_path / mask) as opened:
            raw = np.asarray(opened)[np.ix_(*(source.astype(int) for source in sources))]
        clear = np.ix_(*(abs(source - source.round()) > 1e-6 for source in sources))
        assert lookup[raw][clear].size > 0.4 * size**2
        np.testing.assert_array_equal(labels[clear], lookup[raw][clear])
        total += torch.from_numpy(np.bincount(labels.ravel(), minlength=12))
    confusion = score(dataset, rows, 11, "crop", size)
    assert confusion.sum(1).tolist() == total.tolist()
    assert int(confusion.sum()) == len(SIZES) * size**2


@pytest.mark.parametrize("output_stride", [8, 16])
def test_whole_images_through_a_network(output_stride: int, tmp_path: Path) -> None:
    """Logits at the image's own size; windows of the image pooling smaller and larger than it."""
    dataset = make_images(tmp_path, "camvid", [0, 3, 10])
    rows = rows_of(dataset, "offline", 0)
    lookup = evaluation_lookup(dataset.lookup, range(1, 12))
    config = NetworkConfig(
        "resnet18", output_stride=output_stride, width=4, head_channels=8, pooling=3
    )
    network = SegmentationNetwork(config, [12])
    initialise(network, 0)
    images = EvaluationImages(tmp_path, rows, lookup, 16, "full")
    expected = torch.zeros(12, 12, dtype=torch.int64)
    network.eval()
    for (height, width), (pixels, labels, _) in zip(SIZES, images, strict=True):
        with torch.inference_mode():
            output = network(to_network_input(torch.from_numpy(pixels)[None]))
        assert output.logits.shape == (1, 12, height, width)
        assert output.small_logits.shape[2:] == (
            -(-height // output_stride),
            -(-width // output_stride),
        )
        expected += confusion_matrix(
            torch.from_numpy(labels).long()[None], output.logits.argmax(1), 12
        )
    # Started in training mode: statistics of the batch must not be what is evaluated.
    confusion = evaluate(
        network.train(), ((p, la) for p, la, _ in evaluation_batches(images, 4)), CPU
    )
    # Near ties may fall either way, as the logits are not computed all at once.
    assert int((confusion - expected).abs().sum()) <= 4
    assert int(confusion.sum()) == sum(height * width for height, width in SIZES)
