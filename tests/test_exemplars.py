"""Exemplar memory: which images, what is known of their labels, and half of every batch of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import REPOSITORY

from ciss import exemplars, losses, methods, plop, pseudo_labels, splits
from ciss.config import checked, merged, method_variants, read_config
from ciss.datasets import Dataset, list_images, open_dataset
from ciss.datasets.shapes import generate
from ciss.errors import CissError
from ciss.experiments import parse_experiment
from ciss.index import build_index
from ciss.labels import training_lookup
from ciss.loading import EpochBatches, Share, TrainingBatches, TrainingImages, micro_batches
from ciss.methods.base import Batch
from ciss.models import NetworkConfig, SegmentationNetwork, initialise, widened
from ciss.pixelwise import Upsampled
from ciss.published import match
from ciss.scenarios import SETUPS, Scenario, parse_scenario
from ciss.style import pretty_name
from ciss.training import Recipe, Training

IMAGES, SEED = 24, 3


class Data(NamedTuple):
    dataset: Dataset
    index: pd.DataFrame


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    root = tmp_path_factory.mktemp("exemplars") / "shapes"
    generate(root, train=220, val=40, size=32, seed=0)
    dataset = open_dataset("shapes", "shapes", root)
    return Data(dataset, build_index(dataset))


def protocol(data: Data, setup: str, name: str = "10-2") -> tuple[Scenario, pd.DataFrame]:
    scenario = parse_scenario(name, 20, setup)
    return scenario, splits.split(data.index, data.dataset, scenario, range(scenario.n_steps))


def chosen(data: Data, setup: str, images: int = IMAGES, seed: int = SEED) -> pd.DataFrame:
    scenario, rows = protocol(data, setup)
    return exemplars.choose(data.index, data.dataset, scenario, rows, images, seed)


def shown(data: Data) -> dict[str, set[int]]:
    present = splits.presence(data.index, data.dataset)
    return {
        image: set(np.flatnonzero(row)) - {0}
        for image, row in zip(data.index["image"], present, strict=True)
    }


@pytest.mark.parametrize("setup", SETUPS)
def test_nothing_is_remembered_that_the_learner_could_not_know(setup: str, data: Data) -> None:
    """Each exemplar was in the step before, and its labels are of steps that trained on it."""
    scenario, rows = protocol(data, setup)
    table, classes = chosen(data, setup), shown(data)
    trained = {
        step: set(splits.select(rows, step, "train")["image"]) for step in range(scenario.n_steps)
    }
    masks = dict(zip(data.index["image"], data.index["mask"], strict=True))
    before: dict[str, set[int]] = {}
    for step in range(1, scenario.n_steps):
        part = exemplars.select(table, step)
        assert len(part) == IMAGES
        assert part["image"].is_unique
        now = {}
        for row in part.itertuples():
            known = {int(word) for word in row.known.split()}
            assert row.mask == masks[row.image]
            assert row.image in before or row.image in trained[step - 1]
            # All steps for which it was kept, and those that saw it again meanwhile.
            expected = before.get(row.image, set()) | {
                s for s in (step - 1, step) if row.image in trained[s]
            }
            assert known == expected
            own = next(s for s in range(step) if row.chosen_for in scenario.new_classes(s))
            assert own in known
            assert row.chosen_for in classes[row.image]
            now[row.image] = known
        before = now
    if setup == "partitioned":
        assert table["known"].str.fullmatch(r"\d").all()
    if setup == "overlapped":
        assert table["known"].str.contains(" ").any()


@pytest.mark.parametrize("setup", SETUPS)
def test_classes_have_equally_many(setup: str, data: Data) -> None:
    scenario, _ = protocol(data, setup)
    for step, part in chosen(data, setup).groupby("step"):
        counts = Counter(part["chosen_for"])
        quota = IMAGES / len(scenario.seen_classes(step - 1))
        assert sorted(counts) == list(scenario.seen_classes(step - 1))
        assert set(counts.values()) <= {math.floor(quota), math.ceil(quota)}


def test_where_a_class_runs_out_the_others_fill_the_memory(data: Data) -> None:
    scenario, rows = protocol(data, "partitioned")
    few = rows[(rows["step"] != 1) | (rows["subset"] != "train") | (rows.index % 4 == 0)]
    table = exemplars.choose(data.index, data.dataset, scenario, few, 60, SEED)
    part = exemplars.select(table, 2)
    counts = Counter(part["chosen_for"])
    kept = len(splits.select(few, 1, "train"))
    assert counts[11] + counts[12] <= kept < 10
    assert len(part) == 60
    everything = exemplars.choose(data.index, data.dataset, scenario, few, 10**4, SEED)
    first = splits.select(few, 0, "train")
    assert sorted(exemplars.select(everything, 1)["image"]) == sorted(first["image"])


def test_the_choice_is_that_of_the_seed(data: Data, tmp_path: Path) -> None:
    table = chosen(data, "overlapped")
    pd.testing.assert_frame_equal(chosen(data, "overlapped"), table)
    scenario, rows = protocol(data, "overlapped")
    shuffled = data.index.sample(frac=1, random_state=0)
    again = exemplars.choose(
        shuffled, data.dataset, scenario, rows.sample(frac=1, random_state=1), IMAGES, SEED
    )
    pd.testing.assert_frame_equal(again, table)
    assert not chosen(data, "overlapped", seed=SEED + 1).equals(table)
    exemplars.write_exemplars(tmp_path / "e.csv", table)
    pd.testing.assert_frame_equal(exemplars.read_exemplars(tmp_path / "e.csv"), table)
    splits.write_split(tmp_path / "s.csv", rows)
    with pytest.raises(CissError, match="is no list of exemplars: its columns are step, subset"):
        exemplars.read_exemplars(tmp_path / "s.csv")
    with pytest.raises(CissError, match="no exemplars for step 9"):
        exemplars.select(table, 9)


# --- Batches --------------------------------------------------------------------------------


def training_images(data: Data, remember: int) -> TrainingImages:
    rows = pd.DataFrame(list_images(data.dataset)["train"][:40], columns=["image", "mask"])
    images = TrainingImages(
        data.dataset.root, rows, training_lookup(data.dataset.lookup, range(13, 15)), 32, seed=5
    )
    if remember:
        table = exemplars.select(chosen(data, "overlapped", images=remember), 2)
        known = exemplars.lookups(data.dataset, table["known"], [11, 2, 2])
        images.remember(table, known)
    return images


@pytest.mark.parametrize(("batch", "accumulate", "n_images"), [(8, 1, 40), (9, 2, 40), (16, 4, 7)])
def test_half_of_every_batch_is_of_exemplars(batch: int, accumulate: int, n_images: int) -> None:
    n_exemplars = 5
    sizes = micro_batches(n_images, batch, accumulate)
    plain = list(EpochBatches(n_images, batch, 1, 2, accumulate=accumulate))
    mixed = list(EpochBatches(n_images, batch, 1, 2, accumulate=accumulate, exemplars=n_exemplars))
    assert len(mixed) == len(plain)
    drawn = []
    for with_them, without in zip(mixed, plain, strict=True):
        first = 0
        for size in sizes:
            part, was = with_them[first : first + size], without[first : first + size]
            first += size
            of_memory = [key for key in part if key[1] >= n_images]
            assert len(of_memory) == size // 2
            # What is not of the memory is as without it.
            assert part[: size - size // 2] == was[: size - size // 2]
            drawn += of_memory
    # In turns: each equally often, give or take one, and no crop twice.
    times = Counter(key[1] for key in drawn)
    assert set(times) == set(range(n_images, n_images + n_exemplars)) or len(drawn) < n_exemplars
    assert max(times.values()) - min(times.values()) <= 1
    assert len(set(drawn)) == len(drawn)


def test_batches_are_the_same_shared_and_resumed() -> None:
    def keys(epoch: int = 2, **place: int) -> list:
        return list(EpochBatches(40, 12, 1, epoch, accumulate=2, exemplars=7, **place))

    whole = keys()
    assert keys(start=2) == whole[2:]
    shares = [keys(rank=rank, world_size=3) for rank in range(3)]
    for number, batch in enumerate(whole):
        assert sorted(key for share in shares for key in share[number]) == sorted(batch)
    assert [key[1] for key in keys(epoch=3)[0]] != [key[1] for key in whole[0]]


def test_an_exemplar_shows_what_is_known_of_it(data: Data) -> None:
    images = training_images(data, remember=12)
    assert len(images) == 40
    table = exemplars.select(chosen(data, "overlapped", images=12), 2)
    steps = {0: set(range(1, 11)), 1: {11, 12}, 2: {13, 14}}
    labelled = set()
    for number, row in enumerate(table.itertuples()):
        assert images.pairs[40 + number] == (row.image, row.mask)
        _, labels, position = images[0, 40 + number, 0]
        assert position == 40 + number
        known = set().union(*(steps[int(step)] for step in row.known.split()))
        found = set(np.unique(labels).tolist()) - {0, 255}
        assert found <= known
        labelled |= found
    assert labelled & steps[0]
    # Other crops when it comes again, and its own images are as without a memory.
    assert not np.array_equal(images[0, 45, 0][0], images[0, 45, 1][0])
    plain = training_images(data, remember=0)
    for key in ((0, 3), (4, 39)):
        for ours, theirs in zip(images[key][:2], plain[key][:2], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_workers_change_nothing(data: Data) -> None:
    images = training_images(data, remember=12)
    alone = list(TrainingBatches(images, 8).epoch(1))
    helped = list(TrainingBatches(images, 8, workers=2).epoch(1, start=2))
    assert len(alone) == 5
    for ours, theirs in zip(helped, alone[2:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# --- Losses ---------------------------------------------------------------------------------


def test_an_old_class_that_is_labelled_stands_for_itself() -> None:
    logits = torch.randn(1, 6, 1, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[[0, 2, 5]]])
    probabilities = logits.softmax(dim=1)[0, :, 0]
    found = losses.unbiased_cross_entropy(logits, labels, 4, knows_old=True)[0, 0].exp()
    expected = [probabilities[:4, 0].sum(), probabilities[2, 1], probabilities[5, 2]]
    torch.testing.assert_close(1 / found, torch.stack(expected))


@pytest.mark.parametrize("remembers", [False, True])
def test_mib_knows_of_its_exemplars(remembers: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn(1, n, 2, 3, generator=generator) for n in (6, 4))
    labels = torch.tensor([[[0, 2, 5], [3, 255, 4]]])
    method = methods.create("mib", {}, 4, 2)
    method.has_exemplars = remembers
    found = method.per_pixel(labels, logits, teacher)["classification"]
    expected = losses.unbiased_cross_entropy(logits, labels, 4, knows_old=remembers)
    torch.testing.assert_close(found, expected)


def test_plop_keeps_the_labels_of_old_classes() -> None:
    teacher = torch.zeros(1, 4, 1, 4)
    teacher[0, 3] = 20.0
    labels = torch.tensor([[[0, 2, 5, 255]]])
    found, share = plop.pseudo_labels(labels, Upsampled.of(teacher), torch.full((4,), 0.5), 6)
    assert found.tolist() == [[[3, 2, 5, 255]]]
    assert share.tolist() == pytest.approx([1.0])
    counts = plop.uncertainty_histogram(Upsampled.of(teacher), labels, 6, 10)
    assert counts.sum(dim=1).tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("sigmoid", [False, True])
def test_background_is_what_a_sure_teacher_says(sigmoid: bool) -> None:
    """Where its largest output is an old class's, and probable enough."""
    # Background and three old classes; new ones are 4 and 5.
    columns = [[0, 5, 0, 0], [0, 0.3, 0, 0], [9, 5, 0, 0], [0, 0, 0, 5], [0, 0, 5, 0], [0, 0, 5, 0]]
    logits = torch.tensor(columns, dtype=torch.float64).T[None, :, None]
    labels = torch.tensor([[[0, 0, 0, 5, 255, 2]]])
    found = pseudo_labels.completed(labels, Upsampled.of(logits), 0.7, sigmoid=sigmoid)
    assert found.tolist() == [[[1, 0, 0, 5, 255, 2]]]
    # A softmax of 5 and three zeros is 0.980, a sigmoid of 5 is 0.993.
    between = pseudo_labels.completed(labels, Upsampled.of(logits), 0.985, sigmoid=sigmoid)
    assert between[0, 0, 0].item() == int(sigmoid)
    # "At least": of the last class's output, which is the largest, the probability is a half.
    even = torch.tensor([-1e4, -1e4, 0.0]).view(1, 3, 1, 1)
    if not sigmoid:
        even = torch.tensor([-1.0, 0.0, 0.0]).mul(1e4).view(1, 3, 1, 1)
    found = pseudo_labels.completed(labels[..., :1], Upsampled.of(even), 0.5, sigmoid=sigmoid)
    assert found.item() == (2 if sigmoid else 1)


class Trained(NamedTuple):
    """What a method's losses were given in an update of four images, two of them exemplars."""

    given: torch.Tensor
    completed: torch.Tensor
    teacher_ran: int
    images: torch.Tensor
    teacher: SegmentationNetwork


def third_class_everywhere(teacher: SegmentationNetwork, images: torch.Tensor) -> None:
    teacher.classifiers[-1].bias[-1] += 50


def hardly_sure(teacher: SegmentationNetwork, images: torch.Tensor) -> None:
    """Of 5, 5.2 and 5.3 a softmax gives the largest hardly more than a third, a sigmoid 0.995."""
    teacher.classifiers[-1].weight.zero_()
    teacher.classifiers[-1].bias.copy_(torch.tensor([0.0, 5.0, 5.2, 5.3]))


def another_in_each_image(teacher: SegmentationNetwork, images: torch.Tensor) -> None:
    head = teacher.classifiers[-1]
    mean = teacher(images).pre_logits.mean(dim=(0, 2, 3))
    head.bias.copy_(-head.weight[:, :, 0, 0] @ mean)
    head.bias[0] -= 50


def update(
    name: str,
    confidence: float | None,
    teach: Callable[[SegmentationNetwork, torch.Tensor], None] = third_class_everywhere,
) -> Trained:
    small = NetworkConfig("resnet18", width=4, head_channels=8)
    extras = methods.create(name, {}, 0, 4).network_extras
    teacher = SegmentationNetwork(small, [4], **extras)
    initialise(teacher, seed=1)
    student = widened(teacher, 2, seed=2)
    method = methods.create(name, {}, 4, 2)
    method.has_exemplars, method.exemplar_confidence = True, confidence
    recipe = Recipe(epochs=1, lr=0.01, batch=4, crop=32, accumulate=2)
    training = Training(student, teacher, method, recipe, 4, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=generator)
    with torch.no_grad():
        teach(teacher, images)
    labels = torch.randint(4, 6, (4, 32, 32), generator=generator)
    labels[:, :8], labels[:, 8:12], labels[:, 12:16] = 0, 1, 255
    seen: list[torch.Tensor] = []
    losses_of = method.losses

    def losses(batch: Batch) -> dict[str, torch.Tensor]:
        seen.append(batch.labels)
        return losses_of(batch)

    method.losses = losses  # type: ignore[method-assign]
    runs: list[int] = []
    teacher.register_forward_hook(lambda _, given, __: runs.append(len(given[0])))
    exemplars_are = torch.tensor([False, True, False, True])
    training.update(images, labels, Share((2, 2), 4), exemplars_are)
    return Trained(labels, torch.cat(seen), sum(runs), images, teacher)


@pytest.mark.parametrize("name", ["ft", "mib", "lwf-mc", "dft"])
def test_the_teacher_completes_the_labels_of_exemplars_for_every_method(name: str) -> None:
    """What is labelled stays, of exemplars and of all else in images of the step."""
    made = update(name, 0.7)
    expected = made.given.clone()
    expected[1::2, :8] = 3
    assert made.completed.equal(expected)
    # No teacher where a method needs none but on exemplars, and where features are one's own.
    assert made.teacher_ran == {"ft": 2, "dft": 0}.get(name, 4)
    assert update(name, None).completed.equal(made.given)


@pytest.mark.parametrize("name", ["ft", "lwf-mc"])
def test_a_teacher_of_sigmoids_is_sure_by_its_sigmoids(name: str) -> None:
    made = update(name, 0.7, hardly_sure)
    expected = made.given.clone()
    expected[1::2, :8] = 3 if name == "lwf-mc" else 0
    assert made.completed.equal(expected)


@pytest.mark.parametrize("name", ["ft", "mib", "dft"])
def test_each_exemplar_is_completed_by_what_the_teacher_sees_in_it(name: str) -> None:
    made = update(name, 0.0, another_in_each_image)
    with torch.no_grad():
        logits = made.teacher(made.images).small_logits
    expected = pseudo_labels.completed(made.given, Upsampled(logits, (32, 32)), 0.0)
    assert len(expected[1::2, :8].unique()) > 1
    assert not expected[0, :8].equal(expected[1, :8])
    expected[::2] = made.given[::2]
    assert made.completed.equal(expected)


MEMORIES = {
    "mib-m": {"method": "mib", "memory": 100},
    "ft-m": {"method": "ft", "memory": 100, "memory_confidence": "0.9"},
    "plop-m": {"method": "plop", "memory": 100},
    "ft-without": {"method": "ft", "memory_confidence": 0.9},
}


def test_methods_that_complete_all_labels_do_so_themselves() -> None:
    config = merged(read_config(REPOSITORY / "config.yaml"), {"methods": MEMORIES})
    chosen = {name: variant.memory_confidence for name, variant in method_variants(config).items()}
    assert [chosen[name] for name in MEMORIES] == [0.7, 0.9, None, None]
    assert (chosen["mib"], chosen["ssul-m"]) == (None, None)


# --- The configuration ------------------------------------------------------------------------


def test_a_memory_is_an_option_of_every_method() -> None:
    own = {"mib-m": {"method": "mib", "memory": 100}, "plop": {"memory": "50"}}
    ade = {"methods": {"mib-m": {"memory": 300}}}
    config = merged(read_config(REPOSITORY / "config.yaml"), {"methods": own})
    config = checked(merged(config, {"datasets": {"ade": ade}}))

    def memory(name: str) -> int:
        return parse_experiment(config, name).method.memory

    assert memory("voc_15-1_mib-m_awt") == 100
    assert memory("ade_100-10_mib-m") == 300
    assert (memory("voc_15-1_plop"), memory("voc_15-1_mib")) == (50, 0)
    assert (memory("voc_15-1_ssul-m_awt"), memory("ade_100-5_ssul-m")) == (100, 300)
    with_it, without = (parse_experiment(config, f"voc_15-1_{name}") for name in ("mib-m", "mib"))
    assert with_it.run_at(0) == without.run_at(0)
    # It is no option of the method's own: what was trained without one stays as it is.
    assert with_it.method.options == without.method.options
    # Nothing is published of MiB with a memory.
    assert not match(config, with_it).key
    assert match(config, without).key
    assert (pretty_name("ssul-m", "awt"), pretty_name("x-m")) == ("SSUL-M + AWT", "x-m")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ({"method": "mib", "memory": -1}, "memory is -1; give a whole number"),
        ({"method": "mib", "memory": 1.5}, "memory is 1.5; give a whole number"),
        ({"method": "mib", "memory": True}, "memory is True; give a whole number"),
        ({"method": "cfs", "memory": 10}, "memory is 10, but cfs keeps sums"),
        (
            {"method": "mib", "memory": 10, "memory_confidence": 1.5},
            "memory_confidence is 1.5; give a probability, from 0 to 1",
        ),
        (
            {"method": "plop", "memory": 10, "memory_confidence": 0.7},
            "memory_confidence is 0.7, but plop completes the labels of all images; leave it out",
        ),
    ],
)
def test_a_wrong_memory_is_one_sentence(method: dict, words: str) -> None:
    config = merged(read_config(REPOSITORY / "config.yaml"), {"methods": {"mine": method}})
    with pytest.raises(CissError, match=words):
        checked(config)
