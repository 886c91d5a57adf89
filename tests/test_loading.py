from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import golden_cases, load_benchmark, load_case
from PIL import Image
from scipy.stats import ks_2samp

from ciss import loading
from ciss.datasets import list_images, open_dataset, shapes
from ciss.errors import CissError
from ciss.loading import (
    RATIO,
    SCALE,
    EpochBatches,
    EvaluationImages,
    TrainingBatches,
    TrainingImages,
    batches_per_epoch,
    crop_and_flip,
    deal,
    evaluation_batches,
    micro_batches,
    random_crop_box,
    resize_and_centre,
    to_network_input,
    to_network_labels,
)

IDENTITY = np.arange(256, dtype=np.uint8)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("loading") / "data"
    shapes.generate(root, train=11, val=5, size=40, seed=0)
    return root


def rows(root: Path, subset: str = "train") -> pd.DataFrame:
    listing = list_images(open_dataset("shapes", "shapes", root))
    return pd.DataFrame(listing[subset], columns=["image", "mask"])


def training(root: Path, seed: int = 5) -> TrainingImages:
    return TrainingImages(root, rows(root), IDENTITY, 32, seed)


def equal(ours: list, theirs: list) -> bool:
    return len(ours) == len(theirs) and all(
        torch.equal(a, b)
        for x, y in zip(ours, theirs, strict=True)
        for a, b in zip(x, y, strict=True)
    )


@pytest.mark.parametrize("case", golden_cases("12_transforms"))
def test_transforms_are_the_published_ones(case: dict) -> None:
    arrays = load_case(case)
    size = case["hyperparameters"]["crop_size"]
    for number in range(4):
        image, mask = arrays[f"{number}/image"], arrays[f"{number}/label"]
        box = tuple(int(value) for value in arrays[f"{number}/box"])
        pixels, labels = crop_and_flip(image, mask, box, bool(arrays[f"{number}/flip"]), size)
        np.testing.assert_array_equal(labels, arrays[f"{number}/train_label"])
        normalised = to_network_input(torch.from_numpy(pixels)[None])[0].numpy()
        np.testing.assert_array_equal(normalised, arrays[f"{number}/train_image"])

        pixels, labels = resize_and_centre(image, mask, size)
        pixels = pixels.transpose(2, 0, 1).copy()
        np.testing.assert_array_equal(labels, arrays[f"{number}/val_label"])
        normalised = to_network_input(torch.from_numpy(pixels)[None])[0].numpy()
        np.testing.assert_array_equal(normalised, arrays[f"{number}/val_image"])


@pytest.mark.parametrize("case", golden_cases("12_transforms"))
def test_crop_boxes_are_distributed_as_published(case: dict) -> None:
    published = case["hyperparameters"]["statistics_500x375_20000_draws"]
    rng = np.random.default_rng(0)
    boxes = np.array([random_crop_box(rng, 375, 500) for _ in range(10000)])
    top, left, height, width = boxes.T
    assert ((top >= 0) & (left >= 0) & (top + height <= 375) & (left + width <= 500)).all()
    areas = height * width / (375 * 500)
    # Four standard errors of 10,000 against 20,000 draws.
    assert abs((areas == 1).mean() - published["whole_image_fraction"]) < 0.018
    assert abs(areas.mean() - published["mean_area_fraction"]) < 0.008
    assert abs(np.log(width / height).mean()) < 0.3


def drawn_by_torchvision(height: int, width: int, draws: int) -> np.ndarray:
    """Boxes as torchvision draws them: rows of top, left, height, width."""
    # The benchmark knows how to import torchvision where its compiled part does not fit.
    crop = load_benchmark("input").torchvision_transforms().RandomResizedCrop
    image = torch.empty(3, height, width)
    torch.manual_seed(0)
    return np.array([crop.get_params(image, SCALE, RATIO) for _ in range(draws)])


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 334), (500, 500)])
def test_crops_and_flips_are_distributed_as_torchvisions(
    height: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, ...]] = []
    pair = np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)
    monkeypatch.setattr(loading, "read_pair", lambda *_: pair)
    monkeypatch.setattr(
        loading, "crop_and_flip", lambda _, __, box, flip, *___: (drawn.append((*box, flip)), None)
    )
    images = TrainingImages(
        Path(), pd.DataFrame([("i", "m")] * 500, columns=["image", "mask"]), IDENTITY, 32, seed=2
    )
    for key in np.ndindex(16, 500):
        images[key]
    ours, flips = np.array(drawn)[:, :4], np.array(drawn)[:, 4]
    theirs = drawn_by_torchvision(height, width, len(ours))
    for measure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0] / np.maximum(height - box[:, 2], 1),
        lambda box: box[:, 1] / np.maximum(width - box[:, 3], 1),
        lambda box: np.all(box == (0, 0, height, width), axis=1),
    ):
        # Two samples of 8,000: a difference of 0.03 in the distributions is found.
        assert ks_2samp(measure(ours), measure(theirs), method="asymp").pvalue > 0.001
    # Four standard errors: half are flipped, large crops as often as small ones.
    assert abs(flips.mean() - 0.5) < 2 / np.sqrt(len(flips))
    area = ours[:, 2] * ours[:, 3]
    assert abs(np.corrcoef(flips, area)[0, 1]) < 4 / np.sqrt(len(flips))


def test_crop_falls_back_to_the_centre_of_a_long_image() -> None:
    # 10 × 200 pixels: no box of half its area has a ratio under 4/3.
    assert random_crop_box(np.random.default_rng(0), 10, 200) == (0, 93, 10, 13)
    assert random_crop_box(np.random.default_rng(0), 200, 10) == (93, 0, 13, 10)


def test_samples_are_uint8_and_remapped(root: Path) -> None:
    lookup = np.zeros(256, np.uint8)
    lookup[255] = 255
    images = TrainingImages(root, rows(root), lookup, 32, 5)
    pixels, labels, position = images[(0, 3)]
    assert (pixels.dtype, pixels.shape) == (np.uint8, (3, 32, 32))
    assert (labels.dtype, labels.shape) == (np.uint8, (32, 32))
    assert position == 3
    assert set(np.unique(labels)) == {0, 255}


def test_image_and_mask_are_cropped_alike(tmp_path: Path) -> None:
    # The mask is the image's red channel, so they must agree wherever the image is smooth.
    ramp = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None], 60, axis=0)
    Image.fromarray(np.stack([ramp] * 3, axis=-1)).save(tmp_path / "i.png")
    Image.fromarray(ramp).save(tmp_path / "m.png")
    pair = pd.DataFrame([("i.png", "m.png")], columns=["image", "mask"])
    images = TrainingImages(tmp_path, pair, IDENTITY, 60, 0)
    flips = 0
    for epoch in range(20):
        pixels, labels, _ = images[(epoch, 0)]
        assert np.abs(pixels[0].astype(int) - labels).max() <= 5
        flips += int(labels[0, 0]) > int(labels[0, -1])
    assert 3 <= flips <= 17


def test_augmentation_follows_seed_epoch_and_position(root: Path) -> None:
    images = training(root)
    again, other_seed = training(root), training(root, seed=6)
    first = images[(0, 0)][0]
    assert np.array_equal(first, again[(0, 0)][0])
    assert not np.array_equal(first, images[(1, 0)][0])
    assert not np.array_equal(first, other_seed[(0, 0)][0])


def test_same_batches_for_every_number_of_workers_and_after_a_resume(root: Path) -> None:
    alone = [list(TrainingBatches(training(root), 3).epoch(epoch)) for epoch in range(3)]
    with_workers = TrainingBatches(training(root), 3, workers=2)
    assert len(with_workers) == len(alone[0]) == 3
    for epoch in (0, 1):
        assert equal(list(with_workers.epoch(epoch)), alone[epoch])
    # The workers that served epoch 1 go on in the middle of epoch 2.
    assert equal(list(with_workers.epoch(2, start=1)), alone[2][1:])
    assert equal(list(TrainingBatches(training(root), 3).epoch(2, start=2)), alone[2][2:])
    assert not equal(alone[0], alone[1])


def test_batches_have_the_stated_types(root: Path) -> None:
    images, labels, positions = next(TrainingBatches(training(root), 4).epoch(0))
    assert (images.dtype, images.shape) == (torch.uint8, (4, 3, 32, 32))
    assert (labels.dtype, labels.shape) == (torch.uint8, (4, 32, 32))
    assert (positions.dtype, positions.shape) == (torch.int64, (4,))
    # As decoded: the device brings them into the network's order, at no cost for the CPU.
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert to_network_input(images).is_contiguous()
    assert torch.equal(to_network_labels(labels), labels.long())


def test_an_epoch_leaves_the_global_random_state_alone(root: Path) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    list(TrainingBatches(training(root), 4).epoch(0))
    assert torch.equal(torch.get_rng_state(), state)


def positions(batches: EpochBatches) -> list[list[int]]:
    return [[position for _, position in batch] for batch in batches]


def test_epoch_takes_each_image_once_and_drops_the_rest() -> None:
    for epoch in range(3):
        batches = positions(EpochBatches(11, 4, 0, epoch))
        assert [len(batch) for batch in batches] == [4, 4]
        assert len({position for batch in batches for position in batch}) == 8
    assert positions(EpochBatches(11, 4, 0, 0)) != positions(EpochBatches(11, 4, 0, 1))
    assert positions(EpochBatches(11, 4, 0, 0)) != positions(EpochBatches(11, 4, 1, 0))


@pytest.mark.parametrize(
    ("n_images", "batch", "expected"), [(3, 4, [3]), (1, 4, [2]), (2, 1, [2, 2]), (8, 4, [4, 4])]
)
def test_short_lists_make_one_batch_and_never_of_one(
    n_images: int, batch: int, expected: list[int]
) -> None:
    sampler = EpochBatches(n_images, batch, 0)
    assert [len(keys) for keys in sampler] == expected
    assert len(sampler) == batches_per_epoch(n_images, batch) == len(expected)


def test_processes_share_each_batch() -> None:
    whole = positions(EpochBatches(50, 12, 7, 3))
    shares = [positions(EpochBatches(50, 12, 7, 3, rank=rank, world_size=3)) for rank in range(3)]
    for number, batch in enumerate(whole):
        assert sorted(batch) == sorted(position for share in shares for position in share[number])
        assert [len(share[number]) for share in shares] == [4, 4, 4]
    # Five images for two processes: each image once.
    shares = [positions(EpochBatches(5, 12, 7, rank=rank, world_size=2)) for rank in range(2)]
    assert [len(share[0]) for share in shares] == [3, 2]
    assert sorted(shares[0][0] + shares[1][0]) == list(range(5))


@pytest.mark.parametrize(
    ("n_images", "batch", "accumulate", "expected"),
    [
        (100, 24, 1, [24]),
        (100, 24, 3, [8, 8, 8]),
        (13, 24, 4, [5, 4, 4]),  # no larger than the 6 of a whole batch
        (3, 12, 6, [3]),  # and none of a single image
        (1, 24, 4, [2]),
        (5, 4, 2, [2, 2]),
    ],
)
def test_micro_batches_are_equal_or_nearly(
    n_images: int, batch: int, accumulate: int, expected: list[int]
) -> None:
    assert micro_batches(n_images, batch, accumulate) == expected


@pytest.mark.parametrize(("n_images", "accumulate"), [(50, 1), (50, 3), (11, 3)])
def test_micro_batches_hold_the_same_images_for_any_number_of_processes(
    n_images: int, accumulate: int
) -> None:
    def parts(world_size: int) -> list[list[set[int]]]:
        """Images of each micro-batch of each batch, over all processes."""
        found = []
        for rank in range(world_size):
            place = {"accumulate": accumulate, "rank": rank, "world_size": world_size}
            sizes = deal(n_images, 12, **place).sizes
            batches = positions(EpochBatches(n_images, 12, 7, **place))
            assert all(len(batch) == sum(sizes) for batch in batches)
            cuts = np.cumsum(sizes)[:-1]
            found.append([[set(part.tolist()) for part in np.split(b, cuts)] for b in batches])
        return [
            [set.union(*same) for same in zip(*b, strict=True)] for b in zip(*found, strict=True)
        ]

    assert parts(1) == parts(2) == parts(3)


def test_more_processes_than_images_are_refused() -> None:
    assert deal(3, 12, rank=2, world_size=3).sizes == (1,)
    with pytest.raises(CissError, match=r"3 images.* 4 processes; set runtime.gpus to 3 or less"):
        deal(3, 12, rank=0, world_size=4)
    with pytest.raises(CissError, match="2 images, which are trained on at once of a batch of 12"):
        deal(100, 12, 6, world_size=3)


def test_start_skips_batches() -> None:
    sampler = EpochBatches(20, 4, 0, 1, start=3)
    assert positions(sampler) == positions(EpochBatches(20, 4, 0, 1))[3:]
    assert len(sampler) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_takes_every_image_once_in_order(root: Path, workers: int) -> None:
    images = EvaluationImages(root, rows(root, "val"), IDENTITY, 24)
    batches = list(evaluation_batches(images, 2, workers=workers))
    assert [tuple(batch[0].shape) for batch in batches] == [(2, 3, 24, 24)] * 2 + [(1, 3, 24, 24)]
    assert torch.cat([batch[2] for batch in batches]).tolist() == [0, 1, 2, 3, 4]
    shares = [
        torch.cat([batch[2] for batch in evaluation_batches(images, 2, rank=rank, world_size=2)])
        for rank in range(2)
    ]
    assert sorted(torch.cat(shares).tolist()) == [0, 1, 2, 3, 4]


def test_whole_images_keep_their_size_and_pixels(root: Path) -> None:
    table = rows(root, "val")
    images = EvaluationImages(root, table, IDENTITY, 24, mode="full")
    batch, labels, _ = next(evaluation_batches(images, 4))
    with Image.open(root / table["image"][0]) as image, Image.open(root / table["mask"][0]) as mask:
        np.testing.assert_array_equal(batch[0].permute(1, 2, 0).numpy(), np.asarray(image))
        np.testing.assert_array_equal(labels[0].numpy(), np.asarray(mask))
    with pytest.raises(CissError, match="'whole'"):
        EvaluationImages(root, table, IDENTITY, 24, mode="whole")


def test_grey_images_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 9).save(tmp_path / "i.png")
    Image.new("L", (8, 8), 1).save(tmp_path / "m.png")
    pair = pd.DataFrame([("i.png", "m.png")], columns=["image", "mask"])
    pixels, _, _ = EvaluationImages(tmp_path, pair, IDENTITY, 8)[0]
    assert pixels.tolist() == np.full((3, 8, 8), 9).tolist()


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_image_is_named_in_one_line(tmp_path: Path, workers: int) -> None:
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format="JPEG")
    (tmp_path / "i.jpg").write_bytes(buffer.getvalue()[: buffer.tell() // 2])
    Image.new("L", (64, 64), 1).save(tmp_path / "m.png")
    pair = pd.DataFrame([("i.jpg", "m.png")] * 2, columns=["image", "mask"])
    images = TrainingImages(tmp_path, pair, IDENTITY, 32, 0)
    with pytest.raises(CissError) as error:
        list(TrainingBatches(images, 2, workers=workers).epoch(0))
    assert str(error.value).startswith(f"cannot read {os.fspath(tmp_path / 'i.jpg')}: ")
    assert "\n" not in str(error.value)
