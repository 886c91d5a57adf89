"""The training loop: schedule, history, and going on after an interruption with the same bits."""

from __future__ import annotations

import copy
import dataclasses
import os
import random
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import REPOSITORY, golden_cases, load_case, run_python

from ciss import methods, runtime, scripting
from ciss.checkpoint import load_model
from ciss.datasets import list_images, open_dataset
from ciss.datasets.shapes import generate
from ciss.errors import CissError
from ciss.flags import from_flags
from ciss.labels import training_lookup
from ciss.loading import TrainingBatches, TrainingImages, batches_per_epoch
from ciss.models import NetworkConfig, SegmentationNetwork, initialise, widened
from ciss.progress import Progress, identity
from ciss.runtime import Runtime, StopRequest, start_torch
from ciss.training import (
    EpochTotals,
    InterruptedTrainingError,
    Recipe,
    Training,
    _prepared,
    poly_lr,
    train,
)

N_BASE, N_NEW, N_IMAGES = 10, 5, 20
RECIPE = Recipe(epochs=3, lr=0.02, batch=8, crop=32)
N_BATCHES = batches_per_epoch(N_IMAGES, RECIPE.batch)
ITERATIONS = RECIPE.epochs * N_BATCHES
CPU = torch.device("cpu")
SMALL = NetworkConfig("resnet18", width=4, head_channels=8)
#: columns of the history that depend on the clock and the machine
MEASURED = ["images_per_second", "seconds", "memory_mb"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    generate(folder, train=N_IMAGES, val=2, size=40, seed=0)
    return folder


@pytest.fixture(scope="module")
def images(root: Path) -> TrainingImages:
    dataset = open_dataset("shapes", "shapes", root)
    rows = pd.DataFrame(list_images(dataset)["train"], columns=["image", "mask"])
    lookup = training_lookup(dataset.lookup, range(N_BASE + 1, N_BASE + 1 + N_NEW))
    return TrainingImages(root, rows, lookup, RECIPE.crop, seed=3)


@pytest.fixture(scope="module")
def step_0() -> tuple[SegmentationNetwork, dict[str, torch.Tensor]]:
    """A network of step 0 with importances that a few random batches left."""
    network = SegmentationNetwork(SMALL, [1 + N_BASE])
    initialise(network, seed=1)
    method = methods.create_base("ce-importance", N_BASE + 1)
    training = Training(network, None, method, RECIPE, ITERATIONS, CPU)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        inputs = torch.randn(4, 3, 32, 32, generator=generator)
        training.update(inputs, torch.randint(N_BASE + 1, (4, 32, 32), generator=generator))
    return network, method.importances(network)


@pytest.fixture
def start(step_0: tuple[SegmentationNetwork, dict[str, torch.Tensor]]) -> Callable[..., Training]:
    """Start step 1 of a method as ``workflow_scripts/train.py`` does."""
    before, importances = step_0

    def make(name: str, recipe: Recipe = RECIPE) -> Training:
        torch.manual_seed(random.randrange(10**6))  # nothing may depend on the global state
        teacher = copy.deepcopy(before)
        method = methods.create(name, {}, teacher.n_classes, N_NEW)
        if methods.describe(name).keeps_importances:
            method.load_importances(importances, dict(teacher.named_parameters()))
        network = widened(teacher, N_NEW, seed=1)
        return Training(network, teacher, method, recipe, recipe.epochs * N_BATCHES, CPU)

    return make


def finish(
    training: Training, images: TrainingImages, progress: Progress | None = None, workers: int = 0
) -> pd.DataFrame:
    runtime = Runtime(workers=workers)
    return train(training, images, runtime, progress or Progress(None, ""), StopRequest())


def interrupt(
    training: Training, images: TrainingImages, progress: Progress, after: int, workers: int = 0
) -> None:
    """Ask the run to stop during iteration ``after``, as a signal would."""
    stop, update = StopRequest(), training.update

    def watched(*batch: torch.Tensor) -> Any:
        result = update(*batch)
        if training.iteration == after:
            stop(signal.SIGTERM, None)
        return result

    before = signal.getsignal(signal.SIGTERM)
    training.update = watched  # type: ignore[method-assign]
    try:
        with pytest.raises(InterruptedTrainingError, match="SIGTERM after iteration"):
            train(training, images, Runtime(workers=workers), progress, stop)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert training.iteration == after


def assert_same_run(
    ours: tuple[Training, pd.DataFrame], theirs: tuple[Training, pd.DataFrame]
) -> None:
    (training, history), (expected, expected_history) = ours, theirs
    state, expected_state = training.network.state_dict(), expected.network.state_dict()
    assert state.keys() == expected_state.keys()
    for name, value in state.items():
        assert torch.equal(value, expected_state[name]), name
    importances = training.method.importances(training.network)
    for name, value in expected.method.importances(expected.network).items():
        assert torch.equal(importances[name], value), name
    pd.testing.assert_frame_equal(
        history.drop(columns=MEASURED), expected_history.drop(columns=MEASURED), check_exact=True
    )


@pytest.mark.parametrize("name", ["ft", "mib", "ewc", "plop", "rw", "pi"])
def test_an_interrupted_run_ends_with_the_bits_of_an_undisturbed_one(
    name: str,
    images: TrainingImages,
    start: Callable[..., Training],
    tmp_path: Path,
) -> None:
    undisturbed = start(name)
    expected = (undisturbed, finish(undisturbed, images))
    assert len(expected[1]) == RECIPE.epochs

    # Anywhere, and where an epoch ends: its row must be neither lost nor counted twice.
    anywhere = random.Random(name).randrange(1, ITERATIONS)
    for number, after in enumerate([anywhere, N_BATCHES]):
        progress = Progress(tmp_path / f"{number}.pt", name)
        interrupt(start(name), images, progress, after)
        resumed = start(name)
        history = finish(resumed, images, progress)
        assert_same_run((resumed, history), expected)


def test_workers_change_nothing_interrupted_or_not(
    images: TrainingImages, start: Callable[..., Training], tmp_path: Path
) -> None:
    undisturbed = start("plop")
    expected = (undisturbed, finish(undisturbed, images))
    with_workers = start("plop")
    assert_same_run((with_workers, finish(with_workers, images, workers=2)), expected)

    progress = Progress(tmp_path / "progress.pt", "plop")
    interrupt(start("plop"), images, progress, N_BATCHES + 1, workers=2)
    resumed = start("plop")
    assert_same_run((resumed, finish(resumed, images, progress, workers=2)), expected)


def test_an_interrupted_run_with_exemplars_ends_with_the_bits_of_an_undisturbed_one(
    root: Path, start: Callable[..., Training], tmp_path: Path
) -> None:
    dataset = open_dataset("shapes", "shapes", root)
    rows = pd.DataFrame(list_images(dataset)["train"], columns=["image", "mask"])
    new, old = range(N_BASE + 1, N_BASE + 1 + N_NEW), range(1, N_BASE + 1)
    images = TrainingImages(root, rows[5:], training_lookup(dataset.lookup, new), 32, seed=3)
    images.remember(rows[:5], [training_lookup(dataset.lookup, old)] * 5)
    seen: list[torch.Tensor] = []

    def start_with() -> Training:
        training = start("mib", dataclasses.replace(RECIPE, epochs=4, batch=6))
        training.method.has_exemplars = True
        training.iterations = 4 * 2
        return training

    undisturbed = start_with()
    update = undisturbed.update
    undisturbed.update = lambda *batch: (seen.append(batch[1]), update(*batch))[1]  # type: ignore[method-assign]
    expected = (undisturbed, finish(undisturbed, images))
    assert len(seen) == 8
    for labels in seen:
        assert labels.shape[0] == 6
        shown = [set(each.unique().tolist()) - {0, 255} for each in labels]
        assert all(each <= {*new} for each in shown[:3])
        assert all(each <= {*old} for each in shown[3:])
    progress = Progress(tmp_path / "progress.pt", "mib")
    interrupt(start_with(), images, progress, 5)
    resumed = start_with()
    assert_same_run((resumed, finish(resumed, images, progress, workers=2)), expected)


def test_interrupted_twice(
    images: TrainingImages, start: Callable[..., Training], tmp_path: Path
) -> None:
    undisturbed = start("ft")
    expected = (undisturbed, finish(undisturbed, images))
    progress = Progress(tmp_path / "progress.pt", "ft")
    interrupt(start("ft"), images, progress, 1)
    interrupt(start("ft"), images, progress, 2 * N_BATCHES)
    resumed = start("ft")
    assert_same_run((resumed, finish(resumed, images, progress)), expected)


def test_a_stop_during_the_last_iteration_lets_the_run_end(
    images: TrainingImages, start: Callable[..., Training]
) -> None:
    training, stop = start("ft"), StopRequest()
    update = training.update

    def watched(*batch: torch.Tensor) -> Any:
        if training.iteration == ITERATIONS - 1:
            stop.signal = "SIGTERM"
        return update(*batch)

    training.update = watched  # type: ignore[method-assign]
    history = train(training, images, Runtime(workers=0), Progress(None, ""), stop)
    assert history["epoch"].tolist() == [1, 2, 3]


def test_progress_of_another_recipe_is_not_used(
    images: TrainingImages, start: Callable[..., Training], tmp_path: Path
) -> None:
    undisturbed = start("ft")
    expected = (undisturbed, finish(undisturbed, images))
    interrupt(start("ft"), images, Progress(tmp_path / "progress.pt", "lr 0.5"), N_BATCHES + 1)
    again = start("ft")
    assert_same_run(
        (again, finish(again, images, Progress(tmp_path / "progress.pt", ""))), expected
    )


def test_a_run_that_ended_but_was_not_written_trains_nothing_again(
    images: TrainingImages, start: Callable[..., Training], tmp_path: Path
) -> None:
    progress = Progress(tmp_path / "progress.pt", "ft")
    first = start("ft")
    expected = (first, finish(first, images, progress))
    again = start("ft")
    again.update = lambda *_: pytest.fail("trained again")  # type: ignore[method-assign]
    assert_same_run((again, finish(again, images, progress)), expected)


def test_history_has_a_row_an_epoch_with_the_documented_columns(
    images: TrainingImages, start: Callable[..., Training]
) -> None:
    training = start("ewc")
    history = finish(training, images)
    assert history.columns.tolist() == [
        "epoch",
        "iteration",
        "loss",
        "loss_classification",
        "loss_penalty",
        "lr",
        "iou_new",
        "images_per_second",
        "seconds",
        "memory_mb",
    ]
    assert history["epoch"].tolist() == [1, 2, 3]
    assert history["iteration"].tolist() == [N_BATCHES, 2 * N_BATCHES, 3 * N_BATCHES]
    terms = history["loss_classification"] + history["loss_penalty"]
    np.testing.assert_allclose(history["loss"], terms)
    assert history["lr"].is_monotonic_decreasing
    assert history["lr"].iloc[-1] == 0
    assert history["iou_new"].between(0, 100).all()
    assert (history[MEASURED] > 0).all(axis=None)


def test_training_moves_the_student_and_leaves_the_teacher(
    images: TrainingImages, start: Callable[..., Training]
) -> None:
    training = start("mib")
    assert training.teacher is not None
    before = copy.deepcopy(training.teacher.state_dict())
    weight = training.network.classifiers[-1].weight.detach().clone()
    finish(training, images)
    assert not torch.equal(training.network.classifiers[-1].weight, weight)
    for name, value in training.teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_row_of_the_history_by_hand(
    images: TrainingImages, start: Callable[..., Training]
) -> None:
    training = start("ft")
    totals = EpochTotals(training, images)
    # Of each two rows and columns of the labels the first ones are compared; 254 is the unknown.
    first, second = N_BASE + 1, N_BASE + 2
    small_labels = [[[first, 0], [255, second]], [[first, first], [0, 254]]]
    predicted = [[[first, second], [first, 3]], [[first, second], [5, first]]]
    labels = torch.tensor(small_labels).repeat_interleave(2, 1).repeat_interleave(2, 2)
    labels[:, 1::2], labels[:, :, 1::2] = first, second
    scores = torch.nn.functional.one_hot(torch.tensor(predicted), 1 + N_BASE + N_NEW)
    training.network.unknown = training.network.classifiers[0]
    for loss in (1.0, 3.0):
        terms = {"a": torch.tensor(loss), "b": torch.tensor(loss / 2)}
        totals.add(terms, scores.movedim(3, 1).float(), labels, torch.tensor([0, 1]))
    row = totals.finish(0, training)
    assert (row["loss_a"], row["loss_b"], row["loss"]) == (2.0, 1.0, 3.0)
    # Of the first new class 2 of 3 pixels, with one false one; of the second none; others absent.
    assert row["iou_new"] == pytest.approx((100 * 2 / 4 + 0) / 2)


class Seen(NamedTuple):
    """What one update did: types of the networks' logits, losses, gradients that the method saw."""

    dtypes: list[torch.dtype]
    terms: dict[str, torch.Tensor]
    gradients: dict[str, torch.Tensor]


def update_once(training: Training, scale: float = 1.0) -> Seen:
    generator = torch.Generator().manual_seed(0)
    inputs = scale * torch.randn(4, 3, 32, 32, generator=generator)
    labels = torch.randint(N_BASE + 1, N_BASE + 1 + N_NEW, (4, 32, 32), generator=generator)
    labels[:, :16] = 0
    dtypes: list[torch.dtype] = []
    gradients: dict[str, torch.Tensor] = {}
    hooks = [
        network.register_forward_hook(lambda _, __, out: dtypes.append(out.small_logits.dtype))
        for network in (training.network, training.teacher)
        if network is not None
    ]
    after_backward = training.method.after_backward

    def watched(network: torch.nn.Module) -> None:
        gradients.update({n: p.grad.clone() for n, p in network.named_parameters()})
        after_backward(network)

    training.method.after_backward = watched  # type: ignore[method-assign]
    terms, _ = training.update(inputs, labels)
    for hook in hooks:
        hook.remove()
    return Seen(dtypes, terms, gradients)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_for_the_networks_alone(
    precision: str, start: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses, gradients and parameters are float32; those of float16 were scaled meanwhile."""
    half = runtime.PRECISIONS[precision]
    # What only a GPU may do otherwise.
    monkeypatch.setattr("ciss.training.precision_for", lambda name, _: runtime.PRECISIONS[name])
    full, mixed = (
        update_once(start("mib", dataclasses.replace(RECIPE, precision=name)))
        for name in ("fp32", precision)
    )
    assert full.dtypes == [torch.float32] * 2
    assert mixed.dtypes == [half] * 2
    for name, term in mixed.terms.items():
        assert term.dtype == torch.float32
        torch.testing.assert_close(term, full.terms[name], rtol=0.02, atol=0)
    for name in ("cls.0.bias", "cls.1.weight"):
        gradient = mixed.gradients[name]
        assert gradient.dtype == torch.float32
        expected = full.gradients[name]
        assert (gradient - expected).norm() < 0.1 * expected.norm(), name


def test_an_overflow_in_float16_is_no_step_and_lowers_the_scale(
    start: Callable[..., Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ciss.training.precision_for", lambda *_: torch.float16)
    training = start("ewc")
    update_once(training)
    importances = training.method.importances(training.network)
    before = copy.deepcopy(training.state_dict())
    scale = training.scaler.get_scale()
    training.scaler.update(1e30)
    seen = update_once(training)
    assert not all(gradient.isfinite().all() for gradient in seen.gradients.values())
    for name, parameter in training.network.named_parameters():
        assert torch.equal(parameter, before["network"][name]), name
    for name, value in training.method.importances(training.network).items():
        assert torch.equal(value, importances[name]), name
    assert training.iteration == before["iteration"] + 1
    assert training.scaler.get_scale() == pytest.approx(0.5e30)
    training.load_state_dict(before)
    assert training.scaler.get_scale() == scale


def test_losses_that_were_not_looked_at_yet_are_at_an_epoch_s_end_and_before_saving(
    images: TrainingImages, start: Callable[..., Training]
) -> None:
    # On a GPU losses wait to be looked at, so that the CPU need not wait for each of them.
    training = start("ft")
    for look in (lambda totals: totals.finish(0, training), EpochTotals.state_dict):
        totals = EpochTotals(training, images)
        totals._unchecked.append(
            ({"classification": torch.tensor(float("nan"))}, torch.tensor([3]), 1)
        )
        with pytest.raises(CissError, match=rf"'classification' became nan .*{images.pairs[3][0]}"):
            look(totals)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_its_term_and_images(
    images: TrainingImages, start: Callable[..., Training], value: float
) -> None:
    training = start("mib")
    losses = training.method.losses

    def broken(batch: Any) -> dict[str, torch.Tensor]:
        terms = losses(batch)
        if training.iteration == 1:
            terms["distillation"] = terms["distillation"] * value
        return terms

    training.method.losses = broken  # type: ignore[method-assign]
    with pytest.raises(CissError, match=r"loss term 'distillation' became (nan|inf)") as raised:
        finish(training, images)
    named = [image for image, _ in images.pairs if image in str(raised.value)]
    assert len(named) == RECIPE.batch
    assert training.iteration == 2
    assert str(raised.value).startswith("step 1, iteration 2 of ")
    # In float32 and without a penalty there is one thing to try.
    assert str(raised.value).endswith("; lower the learning rate")


def test_divergence_stops_before_a_model_is_saved(
    images: TrainingImages, start: Callable[..., Training]
) -> None:
    with pytest.raises(CissError, match=r"is not finite|became"):
        finish(start("ft", Recipe(epochs=3, lr=1e30, batch=8, crop=32)), images)


def test_a_gpu_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in ("cuda", "cuda:1"):
        with pytest.raises(CissError, match=rf"'{device}', but PyTorch sees 0 GPUs") as raised:
            start_torch(Runtime(device=device))
        assert "cpu" in str(raised.value)
    assert start_torch(Runtime(device="auto", threads=1)).type == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cuda:x", ""])
def test_an_unknown_device_is_one_sentence(device: str) -> None:
    with pytest.raises(CissError, match="choose auto, cpu, cuda"):
        start_torch(Runtime(device=device))


@pytest.mark.parametrize(("precision", "words"), [("fp16", "needs a GPU"), ("fp8", "choose auto")])
def test_a_precision_that_does_not_exist_here_is_one_sentence(
    start: Callable[..., Training], precision: str, words: str
) -> None:
    with pytest.raises(CissError, match=words):
        start("ft", Recipe(epochs=1, lr=0.1, precision=precision))


@pytest.mark.parametrize("case", golden_cases("7_optim"))
def test_learning_rates_and_groups_are_the_published_ones(case: dict[str, Any]) -> None:
    arrays, hyper = load_case(case), case["hyperparameters"]
    match case["name"]:
        case "7_optim/polylr":
            for number, (base, iterations, power, _) in enumerate(hyper["configurations"]):
                ours = [poly_lr(base, t, iterations, power) for t in range(iterations + 1)]
                theirs = arrays[f"lr_{number}"][:, 0]
                np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-18)
        case "7_optim/schedule_15-1":
            for step, n_images in enumerate(hyper["images_per_step"]):
                base = hyper["lr_later"] if step else hyper["lr_step0"]
                per_epoch = batches_per_epoch(n_images, hyper["world_size"] * 12)
                assert per_epoch == arrays["iterations_per_epoch"][step]
                iterations = hyper["epochs"] * per_epoch
                assert iterations == arrays["max_iters"][step]
                ours = [poly_lr(base, t, iterations, 0.9) for t in range(iterations + 1)]
                every = arrays[f"lr_s{step}_every50"]
                np.testing.assert_allclose(ours[::50], every, rtol=1e-12)
                np.testing.assert_allclose(ours[-6:-1], arrays[f"lr_s{step}_last5"], rtol=1e-12)
        case "7_optim/groups_15-1":
            for step, classes in ((0, [16]), (1, [16, 1]), (3, [16, 1, 1, 1])):
                check_groups(arrays[f"default/s{step}"], hyper["columns"], classes)
        case other:
            pytest.fail(f"nothing is compared with {other}")


def check_groups(groups: np.ndarray, columns: list[str], classes: list[int]) -> None:
    """Compare the optimiser with the published groups, which all have the same settings."""
    lr = 0.02 if len(classes) == 1 else 0.001
    network = SegmentationNetwork(NetworkConfig(width=2, head_channels=4), classes)
    method = methods.create_base("ce", classes[0])
    training = Training(network, None, method, Recipe(epochs=30, lr=lr), 100, CPU)
    (ours,) = training.optimiser.param_groups
    for row in groups:
        published = dict(zip(columns, row.tolist(), strict=True))
        for name in ("lr", "weight_decay", "momentum", "nesterov", "dampening"):
            assert ours[name] == published[name], name
    assert len(ours["params"]) == groups[:, columns.index("n_tensors")].sum()
    with torch.device("meta"):
        real = SegmentationNetwork(NetworkConfig(), classes)
    elements = sum(parameter.numel() for parameter in real.parameters())
    assert elements == groups[:, columns.index("n_elements")].sum()


class Script:
    """``workflow_scripts/train.py`` at step 0 on the generated images."""

    def __init__(self, root: Path, folder: Path, epochs: int) -> None:
        self.folder = folder
        dataset = open_dataset("shapes", "shapes", root)
        rows = [
            {"step": 0, "subset": "train", "image": image, "mask": mask}
            for image, mask in list_images(dataset)["train"]
        ]
        pd.DataFrame(rows).to_csv(folder / "split.csv", index=False)
        self.command = (
            f"{REPOSITORY}/workflow_scripts/train.py --step 0 --method ce --seed 1"
            f" --split split.csv --new-classes {N_BASE}"
            f" --dataset shapes --kind shapes --root {root}"
            " --backbone resnet18 --width 4 --head-channels 8 --batch 4 --crop 32 --lr 0.05"
            f" --epochs {epochs} --device cpu --threads 1"
        ).split()

    def arguments(self, name: str) -> list[str]:
        files = ("output", "history", "progress", "log")
        return [*self.command, *(f"--{file}={name}/{file}" for file in files)]

    def run_and_signal(
        self, name: str, number: signal.Signals, epochs: int, workers: int = 0
    ) -> str:
        """Start the script, send ``number`` after some epochs and return what it logged.

        The signal goes to all of the job's processes, as a batch system sends it.
        """
        log = self.folder / name / "log"
        log.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, *self.arguments(name), "--workers", str(workers)],
            cwd=self.folder,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 120
            while not log.is_file() or log.read_text().count("images/s") < epochs:
                assert process.poll() is None, "ended before the signal"
                assert time.monotonic() < deadline
                time.sleep(0.005)
            os.killpg(process.pid, number)
            status = process.wait(timeout=60)
        finally:
            process.kill()
        assert status == (1 if number == signal.SIGTERM else -number), log.read_text()
        assert not (self.folder / name / "output").exists()
        return log.read_text()


@pytest.fixture(scope="module")
def script(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Script:
    """The script, and its files of an undisturbed run in the folder ``undisturbed``."""
    made = Script(root, tmp_path_factory.mktemp("script"), epochs=16)
    done = run_python(*made.arguments("undisturbed"), cwd=made.folder)
    assert done.returncode == 0, done.stderr
    return made


def test_a_killed_script_goes_on_and_writes_the_same_bytes(script: Script) -> None:
    text = script.run_and_signal("killed", signal.SIGTERM, epochs=2, workers=2)
    assert "error: stopped by SIGTERM after iteration" in text
    assert "Traceback" not in text
    text = script.run_and_signal("killed", signal.SIGKILL, epochs=2)
    assert "going on after iteration" in text
    last = run_python(*script.arguments("killed"), cwd=script.folder)
    assert last.returncode == 0, last.stderr
    assert "going on after iteration" in last.stderr

    undisturbed, killed = script.folder / "undisturbed", script.folder / "killed"
    assert (killed / "output").read_bytes() == (undisturbed / "output").read_bytes()
    histories = [pd.read_csv(folder / "history") for folder in (killed, undisturbed)]
    ours, theirs = (history.drop(columns=MEASURED) for history in histories)
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    assert len(ours) == 16
    left = sorted(path.name for path in killed.iterdir())
    assert left == ["history", "log", "output", "progress"]


def test_a_saved_model_names_its_classes_recipe_and_source(script: Script) -> None:
    network, metadata = load_model(script.folder / "undisturbed" / "output")
    assert network.classes_per_step == (1 + N_BASE,)
    assert metadata["classes"] == ["background", "red-disc", *metadata["classes"][2:]]
    assert len(metadata["classes"]) == 1 + N_BASE
    assert metadata["recipe"]["lr"] == 0.05
    assert metadata["recipe"]["weight_decay"] == 1e-4
    assert metadata["seed"] == 1
    assert metadata["source"].startswith("0.")
    assert (metadata["background"], metadata["values"], metadata["void"]) == (None, None, None)


@pytest.fixture
def identity_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], str]:
    """The identity that ``workflow_scripts/train.py`` gives the progress of a command line."""
    path = REPOSITORY / "workflow_scripts" / "train.py"
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    monkeypatch.setattr(scripting, "run", lambda *_, **__: None)
    made = runpy.run_path(str(path), run_name="__main__")
    for name in ("these weights", "other weights"):
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    rows = pd.DataFrame({"image": ["a.jpg", "b.jpg"], "mask": ["a.png", "b.png"]})
    always = "--dataset x --root x --step 0 --method ce --seed 1 --new-classes 2 --split x"
    always += " --output x --history x --epochs 3 --lr 0.1 --weights these\\ weights"

    def identity_for(words: str) -> str:
        arguments = made["parser"].parse_args(shlex.split(f"{always} {words}"))
        recipe = from_flags(arguments, Recipe)
        lookup = training_lookup(
            scripting.dataset_from(arguments).lookup, range(1, 1 + arguments.new_classes)
        )
        facts = made["facts"](arguments, recipe, rows, lookup)
        return identity({**facts, "init": made["digest"](arguments)})

    return identity_for


OWN = "--kind folders --classes a b"


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("--kind camvid", "--kind camvid --background unlabelled", False),
        ("--kind camvid", "--kind camvid --background ignore", True),  # it does so by default
        ("--kind cityscapes", "--kind cityscapes --background ignore", False),
        ("--kind voc", "--kind voc --classes cat dog", False),
        ("--kind voc", "--kind voc --order a", False),
        ("--kind voc", "--kind ade", False),
        (OWN, f"{OWN} --background ignore", False),
        (f"{OWN} --values a=1 b=2,3", f"{OWN} --values a=1 b=2", False),
        (f"{OWN} --values a=1 b=2", f"{OWN} --values b=2 a=1", True),
        (f"{OWN} --void 9", f"{OWN} --void 9 8", False),
        ("--kind voc", "--kind voc --new-classes 3", False),
        ("--kind voc", "--kind voc --data-state other", False),
        ("--kind voc", "--kind voc --weights 'other weights'", False),
        ("--kind voc", "--kind voc --norm bn", False),
        ("--kind voc", "--kind voc --crop 64", False),
        ("--kind voc", "--kind voc --accumulate 2", False),
        ("--kind voc", "--kind voc --cache x --root y --workers 3 --processes 2", True),
    ],
)
def test_progress_is_that_of_one_result(
    before: str, after: str, same: bool, identity_of: Callable[[str], str]
) -> None:
    """What decides the result, labels above all, is in its identity; how the job runs is not."""
    assert (identity_of(before) == identity_of(after)) == same


def test_a_stop_while_the_method_looks_at_the_images(
    start: Callable[..., Training], images: TrainingImages, tmp_path: Path
) -> None:
    """PLOP's pass for its thresholds takes its time; a limit in it must not end in a kill."""
    training, stop = start("plop"), StopRequest()
    seen = []
    assert training.teacher is not None
    training.teacher.register_forward_hook(
        lambda *_: seen.append(setattr(stop, "signal", "SIGTERM"))
    )
    progress = Progress(tmp_path / "progress.pt", "plop")
    with pytest.raises(InterruptedTrainingError, match=r"SIGTERM while .* before the first"):
        train(training, images, Runtime(), progress, stop)
    assert len(seen) == 1 < N_BATCHES
    assert (training.iteration, progress.load()) == (0, None)


def test_the_pass_before_training_has_an_order_and_crops_of_its_own(
    start: Callable[..., Training], images: TrainingImages
) -> None:
    training, batches = start("plop"), TrainingBatches(images, RECIPE.batch)
    looked_at = [labels for _, labels in _prepared(training, batches, StopRequest())]
    assert len(looked_at) == N_BATCHES
    for epoch in range(RECIPE.epochs):
        for ours, (_, theirs, _) in zip(looked_at, batches.epoch(epoch), strict=True):
            assert not torch.equal(ours, theirs.long())


@pytest.mark.parametrize("deterministic", [False, True])
def test_cudnn_tries_out_algorithms_where_all_batches_have_one_size(
    monkeypatch: pytest.MonkeyPatch, deterministic: bool
) -> None:
    monkeypatch.setattr(runtime, "_device", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda _: None)
    cudnn = torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", cudnn.allow_tf32)
    monkeypatch.setattr(cudnn, "benchmark", False)
    chosen = Runtime(threads=1, deterministic=deterministic)
    start_torch(chosen, same_sizes=True)
    assert cudnn.benchmark == (not deterministic)
    start_torch(chosen)
    assert not cudnn.benchmark
