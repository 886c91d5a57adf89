"""Several processes that train, evaluate and attribute together do what one process does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from helpers import REPOSITORY, relative_difference, run_python
from torch import Tensor

from ciss import distributed, methods, ridge
from ciss.attribution import attribute
from ciss.checkpoint import load_model
from ciss.datasets import list_images, open_dataset
from ciss.datasets.base import UNKNOWN
from ciss.datasets.shapes import generate
from ciss.errors import CissError
from ciss.evaluation import evaluate
from ciss.labels import training_lookup
from ciss.loading import (
    EpochBatches,
    EvaluationImages,
    TrainingImages,
    deal,
    evaluation_batches,
    single_pass,
    to_network_input,
)
from ciss.models import NetworkConfig, SegmentationNetwork, initialise, widened
from ciss.pretuning import pretuning
from ciss.progress import Progress
from ciss.runtime import Runtime, StopRequest, check_devices
from ciss.training import InterruptedTrainingError, Recipe, Training, train

CPU = torch.device("cpu")
SMALL = NetworkConfig("resnet18", width=2, head_channels=4)
N_OLD, N_NEW = 4, 2
#: a penalty at which these few large steps do not diverge; RW's score grows in each of them
OPTIONS: dict[str, dict[str, Any]] = {
    "ewc": {"importance": 1.0},
    "pi": {"importance": 1.0},
    "rw": {"importance": 1.0, "interval": 1},
    "ssul": {"lr_factor": 1.0, "compat": True},
}
#: what the network of a method has beside the usual
EXTRAS: dict[str, dict[str, Any]] = {
    "dft": {"preallocated": 5},
    "ssul": {"unknown": True, "hidden": True},
}
STEP_0 = "ce-importance"
RECIPE = Recipe(epochs=2, lr=0.02, batch=8, crop=32)


# --- What each process does -----------------------------------------------------------------


def networks(
    dtype: torch.dtype, method: str = "mib"
) -> tuple[SegmentationNetwork, SegmentationNetwork]:
    """A student and its teacher."""
    teacher = SegmentationNetwork(SMALL, [N_OLD], **EXTRAS.get(method, {}))
    initialise(teacher, seed=1)
    return widened(teacher, N_NEW, seed=2).to(dtype), teacher.to(dtype)


def method_for(name: str, teacher: SegmentationNetwork) -> Any:
    if name == STEP_0:
        return methods.create_base(name, N_OLD + N_NEW)
    method = methods.create(name, OPTIONS.get(name, {}), N_OLD, N_NEW)
    generator = torch.Generator().manual_seed(3)
    previous = dict(teacher.named_parameters())
    importances = {
        f"{kind.kind}/{statistic}/{key}": torch.rand(
            value.shape, generator=generator, dtype=value.dtype
        )
        for kind in getattr(method, "kinds", ())
        for statistic in kind.statistics
        for key, value in previous.items()
    }
    method.load_importances(importances, previous)
    return method


def updates(
    name: str,
    dtype: torch.dtype = torch.float64,
    n_images: int = 7,
    accumulate: int = 1,
    frozen_statistics: bool = False,
) -> dict[str, Tensor]:
    """Three iterations of a method with this process's share; everything that they change."""
    network, teacher = networks(dtype, name)
    method = method_for(name, teacher)
    teacher_or_none = None if name == STEP_0 else teacher
    recipe = Recipe(epochs=1, lr=0.05, batch=n_images, accumulate=accumulate)
    training = Training(network, teacher_or_none, method, recipe, 10, CPU)
    network.train(not frozen_statistics)
    place = {
        "accumulate": accumulate,
        "rank": distributed.rank(),
        "world_size": distributed.size(),
    }
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(n_images, 3, 32, 32, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(N_OLD, N_OLD + N_NEW, (n_images, 32, 32), generator=generator)
    labels[:, :20] = 0
    labels[:, 20:22] = 255
    if name == STEP_0:
        labels[:, :10] = 1
    if name == "ssul":
        labels[:, 5:10] = UNKNOWN
        # Not as many in each image: each one's mean is over its own.
        labels[::2, :5] = 255
    batches = [
        (images[chosen], labels[chosen])
        for epoch in range(3)
        for chosen in [
            [key[1] for key in keys] for keys in EpochBatches(n_images, n_images, 5, epoch, **place)
        ]
    ]
    method.prepare(teacher_or_none, batches[:1])
    share = deal(n_images, n_images, **place)
    terms = [training.update(*batch, share)[0] for batch in batches]
    assert training.iteration == 3
    return {
        **{f"network/{key}": value.clone() for key, value in network.state_dict().items()},
        **{f"importances/{key}": value for key, value in method.importances(network).items()},
        **{
            f"terms/{i}/{key}": value for i, each in enumerate(terms) for key, value in each.items()
        },
        **{f"method/{key}": value for key, value in method.state_dict().items()},
    }


def confusion_and_attribution(root: Path) -> dict[str, Any]:
    """Evaluate and attribute this process's share of nine images, in batches of two."""
    network, _ = networks(torch.float32)
    dataset = open_dataset("shapes", "shapes", root)
    rows = pd.DataFrame(list_images(dataset)["train"][:9], columns=["image", "mask"])
    new = range(N_OLD + N_NEW, dataset.n_classes)
    images = EvaluationImages(root, rows, training_lookup(dataset.lookup, new), 32)

    def batches() -> Any:
        return evaluation_batches(images, 2, rank=distributed.rank(), world_size=distributed.size())

    seen = ((pixels, labels.clamp(max=N_OLD)) for pixels, labels, _ in batches())
    confusion = evaluate(network, seen, CPU)
    inputs = ((to_network_input(pixels), labels.long()) for pixels, labels, _ in batches())
    return {
        "confusion": confusion,
        "attribution": attribute(network, inputs, new),
        "ridge": vars(regression(root)),
    }


def regression(root: Path) -> ridge.Ridge:
    """The sums of a regression, of which this process brings its share of the images."""
    network, _ = networks(torch.float32)
    counts = [N_OLD, N_NEW]
    generator = torch.Generator().manual_seed(5)
    expansion, phi = (torch.randn(9, n, generator=generator) for n in (4, N_OLD + N_NEW))
    network = ridge.with_head(network, expansion, phi, counts)
    place = {"rank": distributed.rank(), "world_size": distributed.size()}
    batches = (batch[:2] for batch in single_pass(training_images(root), 3, **place))
    before = ridge.Ridge.empty(9, sum(counts), CPU)
    before.gram += 1
    return ridge.accumulate(before, network, batches, 0.4)


def pretuned(root: Path) -> dict[str, Tensor]:
    """Classifiers that ``nest`` learns in four iterations, and its losses."""
    network = networks(torch.float64)[0]
    features = network.features
    network.features = lambda images: features(images.double())  # type: ignore[method-assign]
    training = pretuning(network, "nest", {}, RECIPE, 4, CPU)
    history = train(training, training_images(root), Runtime(), Progress(None, ""), StopRequest())
    made = {key: value.clone() for key, value in training.network.state_dict().items()}
    return {**made, "losses": torch.tensor(history["loss"].tolist(), dtype=torch.float64)}


def training_images(root: Path, remember: bool = False) -> TrainingImages:
    dataset = open_dataset("shapes", "shapes", root)
    rows = pd.DataFrame(list_images(dataset)["train"], columns=["image", "mask"])
    lookup = training_lookup(dataset.lookup, range(N_OLD, N_OLD + N_NEW))
    images = TrainingImages(root, rows, lookup, RECIPE.crop, seed=3)
    if remember:
        images.remember(rows[:3], [training_lookup(dataset.lookup, range(1, N_OLD))] * 3)
    return images


def started(name: str) -> Training:
    network, teacher = networks(torch.float32)
    method = method_for(name, teacher)
    return Training(network, teacher, method, RECIPE, RECIPE.epochs * 2, CPU)


def finish(
    training: Training, root: Path, progress: Progress, remember: bool = False
) -> dict[str, Any]:
    images = training_images(root, remember)
    history = train(training, images, Runtime(), progress, StopRequest())
    measured = ["images_per_second", "seconds", "memory_mb"]
    return {
        "network": training.network.state_dict(),
        "method": training.method.state_dict(),
        "history": history.drop(columns=measured).to_dict("list"),
        "images": list(history["images_per_second"] * history["seconds"]),
    }


def not_finite(root: Path) -> str:
    """What is said when one process's images make the loss infinite."""
    training = started("mib")
    update = training.update

    def poisoned(images: Tensor, *rest: Any) -> Any:
        broken = training.iteration == 1 and distributed.rank() == 1
        return update(images * float("nan") if broken else images, *rest)

    training.update = poisoned  # type: ignore[method-assign]
    with pytest.raises(CissError, match="became nan") as error:
        finish(training, root, Progress(None, ""))
    return str(error.value)


def interrupted(training: Training, root: Path, progress: Progress, remember: bool = False) -> None:
    """Stop after the third iteration because the last process alone was asked to."""
    stop, update = StopRequest(), training.update

    def watched(*batch: Any) -> Any:
        result = update(*batch)
        if training.iteration == 3 and distributed.rank() == distributed.size() - 1:
            stop.signal = "SIGTERM"
        return result

    training.update = watched  # type: ignore[method-assign]
    with pytest.raises(InterruptedTrainingError, match="SIGTERM after iteration 3 of 4"):
        train(training, training_images(root, remember), Runtime(), progress, stop)


def interrupted_before_the_first(root: Path) -> str:
    """What is said when one process alone is asked to stop while PLOP prepares."""
    training, stop = started("plop"), StopRequest()
    assert training.teacher is not None
    if distributed.rank() == 1:
        training.teacher.register_forward_hook(lambda *_: setattr(stop, "signal", "SIGUSR1"))
    with pytest.raises(InterruptedTrainingError) as error:
        train(training, training_images(root), Runtime(), Progress(None, ""), stop)
    return str(error.value)


def two_processes(folder: Path) -> dict[str, Any]:
    names = [*methods.trained_names(), STEP_0]
    root = folder / "shapes"
    return {
        "updates": {name: updates(name) for name in names},
        "float32": updates("mib", torch.float32),
        "accumulated": {name: updates(name, n_images=9, accumulate=2) for name in ("plop", "rw")},
        **confusion_and_attribution(root),
        "not finite": not_finite(root),
        "interrupted": interrupted_before_the_first(root),
        "pretuned": pretuned(root),
    }


def three_processes(folder: Path) -> dict[str, Any]:
    """Eight images a batch, shared as 3, 3 and 2; the same with exemplars."""
    root = folder / "shapes"
    undisturbed = finish(started("plop"), root, Progress(folder / "undisturbed", "plop"))
    progress = Progress(folder / "progress", "plop")
    interrupted(started("plop"), root, progress)
    if distributed.is_main():
        (folder / "copy").write_bytes((folder / "progress").read_bytes())
    resumed = finish(started("plop"), root, progress)
    remembered = Progress(folder / "with exemplars", "mib")
    interrupted(started("mib"), root, remembered, remember=True)
    return {
        "undisturbed": undisturbed,
        "resumed": resumed,
        "with exemplars": finish(started("mib"), root, remembered, remember=True),
    }


# --- Starting them ---------------------------------------------------------------------------


def _process(rank: int, size: int, work: Callable[[Path], Any], folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store{size}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    torch.save(work(folder), folder / f"{rank}_of_{size}.pt")
    dist.destroy_process_group()


def over_processes(size: int, work: Callable[[Path], Any], folder: Path) -> list[Any]:
    """What ``work`` returns in each of ``size`` processes."""
    torch.multiprocessing.spawn(_process, (size, work, folder), nprocs=size)
    paths = [folder / f"{rank}_of_{size}.pt" for rank in range(size)]
    return [torch.load(path, weights_only=False) for path in paths]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("distributed")
    generate(made / "shapes", train=20, val=2, size=40, seed=0)
    return made


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    return over_processes(2, two_processes, folder)


def largest_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Over all tensors, as a share of each one's largest value."""
    assert ours.keys() == theirs.keys()
    # PI's score is its path over squared distances that may be next to nothing: a rounding more
    # changes it a lot. Path and parameters are compared.
    names = [name for name in theirs if not name.startswith("importances/pi/score")]
    return max(relative_difference(ours[name].numpy(), theirs[name].numpy()) for name in names)


# --- The same training ------------------------------------------------------------------------

#: In float64, rounding is 5e8 times smaller than in float32: an image that counts too much or a
#: statistic of one process alone shows. Three iterations amplify 1e-16 to less than 1e-10.
SAME = 1e-9


@pytest.mark.parametrize("name", [*methods.trained_names(), STEP_0])
def test_two_processes_train_as_one_does(name: str, two: list[dict[str, Any]]) -> None:
    """Seven images, four here and three there: losses, weights, statistics, importances."""
    ours, theirs = (each["updates"][name] for each in two)
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key
    assert largest_difference(ours, updates(name)) < SAME


def test_two_processes_pretune_as_one_does(two: list[dict[str, Any]], folder: Path) -> None:
    ours, theirs = (each["pretuned"] for each in two)
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key
    assert largest_difference(ours, pretuned(folder / "shapes")) < SAME


def test_in_float32_two_processes_are_as_exact_as_one(two: list[dict[str, Any]]) -> None:
    exact = updates("mib")
    noise = largest_difference(updates("mib", torch.float32), exact)
    assert 0 < noise < 1e-2
    # Other sums in another order: the same noise, drawn again.
    assert largest_difference(two[0]["float32"], exact) < 10 * noise


@pytest.mark.parametrize("name", ["plop", "rw"])
def test_micro_batches_are_the_same_over_two_processes(
    name: str, two: list[dict[str, Any]]
) -> None:
    alone = updates(name, n_images=9, accumulate=2)
    assert largest_difference(two[1]["accumulated"][name], alone) < SAME
    whole = updates(name, n_images=9)
    # Batch norm over five and four images is not batch norm over nine.
    assert largest_difference(alone, whole) > 1e-3


@pytest.mark.parametrize("name", [*methods.trained_names(), STEP_0])
def test_with_fixed_statistics_micro_batches_change_nothing(name: str) -> None:
    whole = updates(name, frozen_statistics=True)
    split = updates(name, accumulate=3, frozen_statistics=True)
    assert largest_difference(split, whole) < SAME


def test_a_loss_that_is_not_finite_names_the_images_of_all_processes(
    two: list[dict[str, Any]], folder: Path
) -> None:
    messages = [each["not finite"] for each in two]
    assert messages[0] == messages[1]
    keys = list(EpochBatches(20, 8, 3, 0))[1]
    pairs = training_images(folder / "shapes").pairs
    assert all(pairs[position][0] in messages[0] for _, position in keys)
    assert messages[0].count(".jpg") == 8


def test_processes_stop_together_while_a_method_prepares(two: list[dict[str, Any]]) -> None:
    for each in two:
        assert "SIGUSR1 while the method looked at the step's images" in each["interrupted"]


def test_evaluation_attribution_and_regression_are_those_of_one_process(
    two: list[dict[str, Any]], folder: Path
) -> None:
    alone = confusion_and_attribution(folder / "shapes")
    assert int(alone["confusion"].sum()) > 0
    for each in two:
        assert torch.equal(each["confusion"], alone["confusion"])
        ours, theirs = each["attribution"], alone["attribution"]
        assert torch.equal(ours.count, theirs.count)
        assert ours.joint_count == theirs.joint_count > 0
        for name in ("sums", "max_sums", "joint_max_sum"):
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name))
        assert torch.equal(each["ridge"]["count"], alone["ridge"]["count"])
        for name in ("gram", "cross"):
            # Sums in float64, but of features in float32, which depend on who shares a batch.
            theirs = alone["ridge"][name]
            torch.testing.assert_close(each["ridge"][name], theirs, rtol=1e-6, atol=1e-6)


def test_an_interrupted_run_of_three_processes_ends_with_the_bits_of_an_undisturbed_one(
    folder: Path,
) -> None:
    results = over_processes(3, three_processes, folder)
    expected = results[0]["undisturbed"]
    assert expected["history"]["epoch"] == [1, 2]
    assert expected["images"] == pytest.approx([16, 16])
    for each in results:
        for run in (each["undisturbed"], each["resumed"]):
            assert run["history"] == expected["history"]
            for part in ("network", "method"):
                for name, value in expected[part].items():
                    assert torch.equal(run[part][name], value), name
    # One process goes on where three were stopped.
    alone = finish(started("plop"), folder / "shapes", Progress(folder / "copy", "plop"))
    difference = largest_difference(alone["network"], expected["network"])
    assert difference < 1e-2
    assert alone["history"]["iou_new"] == pytest.approx(expected["history"]["iou_new"], abs=1)
    assert alone["images"] == pytest.approx([16, 16])
    # Half of each batch from the memory, shared and resumed: what one undisturbed process does.
    undisturbed = finish(started("mib"), folder / "shapes", Progress(None, ""), remember=True)
    for each in results:
        theirs = each["with exemplars"]
        assert largest_difference(theirs["network"], undisturbed["network"]) < 1e-2
        assert theirs["images"] == pytest.approx([16, 16])
        for name, value in results[0]["with exemplars"]["network"].items():
            assert torch.equal(theirs["network"][name], value), name
    plain = finish(started("mib"), folder / "shapes", Progress(None, ""))
    assert largest_difference(plain["network"], undisturbed["network"]) > 0.02


# --- Starting and ending ----------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
sys.path.insert(0, {repository!r})
from ciss import distributed, scripting
from ciss.errors import CissError
from ciss.flags import add_flags, from_flags
from ciss.runtime import Runtime, log, start_torch

def main(arguments):
    start_torch(from_flags(arguments, Runtime))
    log.info("process %d of %d", distributed.rank(), distributed.size())
    if arguments.how == "all fail":
        raise CissError("no such class")
    if distributed.rank() == 1 and arguments.how == "one fails":
        raise CissError("no such image")
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.wait()

parser = scripting.parser("Fail.")
parser.add_argument("how")
add_flags(parser, Runtime)
scripting.run(main, parser, shared=True)
"""


@pytest.mark.parametrize(
    ("how", "errors"),
    [
        ("all fail", ["no such class"]),
        ("one fails", ["no such image"]),
        (
            "one is killed",
            ["another process of this job has ended", "process 2 of 2 was ended by SIGKILL"],
        ),
    ],
)
def test_a_failure_is_one_sentence_and_ends_all(
    how: str, errors: list[str], tmp_path: Path
) -> None:
    script = tmp_path / "fail.py"
    script.write_text(SCRIPT.format(repository=str(REPOSITORY)))
    words = ["--processes", "2", "--device", "cpu", "--log", "log"]
    done = run_python(script, how, *words, cwd=tmp_path)
    assert done.returncode == 1
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line.partition("error: ")[2] for line in lines if "error" in line] == errors
    assert not any("process 1 of 2" in line for line in lines)
    assert "Traceback" not in done.stderr


def launched(processes: int, code: str) -> int:
    return distributed.launch(
        processes, [sys.executable, "-c", f"import os, signal, sys, time\n{code}"]
    )


def test_a_launcher_leaves_with_the_worst_status() -> None:
    code = "sys.exit(70 * (os.environ['RANK'] == '1' and os.environ['WORLD_SIZE'] == '3'))"
    assert launched(3, code) == 70
    assert launched(2, code) == 0


def test_a_launcher_passes_signals_on_and_believes_a_job_that_ends_well() -> None:
    # torchrun would leave with an error, and Snakemake delete what the job has written.
    code = """
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(0))
os.kill(os.getppid(), signal.SIGUSR1)
time.sleep(100)
sys.exit("no signal came")
"""
    assert launched(1, code) == 0


def test_a_signal_that_comes_before_the_processes_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = subprocess.Popen
    signalled: list[int] = []

    def signal_and_start(*words: Any, **options: Any) -> Any:
        if not signalled:
            signalled.append(signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR1)
        return start(*words, **options)

    monkeypatch.setattr(subprocess, "Popen", signal_and_start)
    assert launched(2, "time.sleep(5)") == 1


def test_a_launcher_does_not_wait_for_ever_for_those_that_one_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(distributed, "_GRACE", ((0.1, signal.SIGTERM), (0.2, signal.SIGKILL)))
    code = """
if os.environ["RANK"] == "0":
    sys.exit(1)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
time.sleep(1000)
"""
    assert launched(2, code) == 1


def test_a_signal_that_comes_twice_at_once_is_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(os, "kill", lambda pid, number: ended.append(number))
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    stop = StopRequest()
    assert stop.reason is None
    stop(signal.SIGUSR1, None)
    stop(signal.SIGTERM, None)
    clock[0] += 3  # a launcher passes on what everybody was sent
    stop(signal.SIGTERM, None)
    assert (stop.reason, ended) == ("SIGTERM", [])
    clock[0] += 3  # somebody is impatient
    stop(signal.SIGTERM, None)
    assert ended == [signal.SIGTERM]


def test_more_gpus_than_there_are_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CissError, match="3 GPUs are asked for, but PyTorch sees 0 here"):
        check_devices(Runtime(processes=3))
    check_devices(Runtime(processes=3, device="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_devices(Runtime(processes=2))
    with pytest.raises(CissError, match="3 GPUs are asked for, but PyTorch sees 2 here"):
        check_devices(Runtime(processes=3, device="cuda"))
    with pytest.raises(CissError, match="'cuda:1', one GPU, but 2 processes"):
        check_devices(Runtime(processes=2, device="cuda:1"))


def train_command(folder: Path) -> list[str]:
    dataset = open_dataset("shapes", "shapes", folder / "shapes")
    rows = [
        {"step": 0, "subset": "train", "image": image, "mask": mask}
        for image, mask in list_images(dataset)["train"]
    ]
    pd.DataFrame(rows).to_csv(folder / "split.csv", index=False)
    return (
        f"{REPOSITORY}/workflow_scripts/train.py --step 0 --method ce --seed 1"
        " --split split.csv --new-classes 10 --dataset shapes --kind shapes --root shapes"
        " --backbone resnet18 --width 4 --head-channels 8 --batch 4 --crop 32 --lr 0.05"
        " --device cpu --threads 1 --workers 1 --epochs 12"
        " --output job/model --history job/history --progress job/progress --log job/log"
    ).split()


def test_a_signalled_job_saves_leaves_nobody_behind_and_goes_on_under_torchrun(
    folder: Path,
) -> None:
    command, log = train_command(folder), folder / "job" / "log"
    # SIGUSR1 is one that torchrun would not pass on, and only the launcher gets it.
    job = subprocess.Popen(
        [sys.executable, *command, "--processes", "2"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 300
        while not log.is_file() or "images/s" not in log.read_text():
            assert job.poll() is None, "ended before the signal"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        job.send_signal(signal.SIGUSR1)
        status = job.wait(timeout=300)
    finally:
        with pytest.raises(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    text = log.read_text()
    assert status == 1, text
    assert text.count("error: stopped by SIGUSR1 after iteration") == 1
    # Nothing half-written either.
    files = {path.name for path in log.parent.iterdir()}
    assert files - {"previous_progress"} == {"log", "progress"}

    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--"]
    done = run_python(*torchrun, *command, cwd=folder)
    assert done.returncode == 0, done.stderr
    text = log.read_text()
    assert text.count("going on after iteration") == 1
    assert "batches of 4 images, batch norm over 4 of them; processes: 2" in text
    assert pd.read_csv(log.with_name("history"))["epoch"].tolist() == list(range(1, 13))
    _, metadata = load_model(log.with_name("model"))
    assert (metadata["processes"], metadata["bn_batch"]) == (2, 4)
