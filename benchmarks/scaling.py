"""Cost in the large: how time and memory grow, and the GPU hours of the paper's matrix.

    python benchmarks/scaling.py growth              images, classes, steps, resolution: three sizes
    python benchmarks/scaling.py hours               GPU hours, with and without sharing step 0
    python benchmarks/scaling.py growth hours --docs into docs/benchmarks.md

``growth`` measures a small network on one CPU thread, each size in a process of its own: CPU time,
and the largest memory beyond what the process has before. The exponent is the slope of a line
through the logarithms: 1 is proportional, 0 is no growth.

``hours`` adds up, for each training, evaluation and attribution of the matrices, the images that
pass through the network, and divides by images a second: those of ``benchmarks/gpu.json`` where
it has them, else what follows from counted FLOPs and an assumed utilisation.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import losses, networks
from benchmarks.on_gpu.training import flops, peak_flops
from benchmarks.table import NOT_MEASURED, REPOSITORY, cpu_name, cpu_seconds, figure, into_document
from ciss import methods, paths, planning, transfer
from ciss.attribution import attribute
from ciss.config import Config, evaluated_images, read_config, settings
from ciss.datasets import open_dataset
from ciss.datasets.shapes import generate
from ciss.evaluation import evaluate
from ciss.experiments import Experiment
from ciss.index import build_index
from ciss.labels import evaluation_lookup, training_lookup
from ciss.loading import EvaluationImages, TrainingImages, evaluation_batches, to_network_input
from ciss.models import NetworkConfig, SegmentationNetwork, widened
from ciss.progress import Progress
from ciss.runtime import Runtime, StopRequest
from ciss.scenarios import parse_scenario
from ciss.splits import select, split
from ciss.training import Recipe, Training, train

CPU = torch.device("cpu")
NETWORK = NetworkConfig("resnet18", width=16, head_channels=64)
#: for ``growth``; of each, three sizes
SIZES: dict[str, tuple[int, ...]] = {
    "images": (100, 200, 400),
    "classes": (21, 61, 151),
    "steps": (2, 4, 8),
    "resolution": (128, 256, 512),
}
#: the scenario over 20 classes that has so many steps, for ``steps``
SCENARIOS = {2: "13-7", 4: "14-2", 8: "13-1"}
BEGIN = "<!-- figures of benchmarks/scaling.py: begin -->"
END = "<!-- figures of benchmarks/scaling.py: end -->"


# --- How time and memory grow


class Cost(NamedTuple):
    """What a piece of work took: CPU seconds, and MiB beyond those of the process before."""

    seconds: float
    memory: float


def measured(work: Callable[[], Any], rounds: int = 1) -> Cost:
    """Run ``work``, ``rounds`` times for the time."""
    gc.collect()
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if give_back is not None:
        give_back(0)  # what earlier work left would not count as taken
    before = losses.peak_kib(reset=True)
    work()
    memory = (losses.peak_kib() - before) / 1024
    times = [cpu_seconds(work) for _ in range(rounds)]
    return Cost(sorted(times)[len(times) // 2], memory)


def images(count: int, folder: Path) -> Iterator[tuple[str, Cost]]:
    """Index, an epoch of training, and evaluation, by the number of images."""
    generate(folder / "shapes", train=count, val=count, size=96, seed=0)
    dataset = open_dataset("shapes", "shapes", folder / "shapes")
    yield "index", measured(lambda: build_index(dataset, is_subset=True))
    run = Run(folder, "13-7", crop=64)
    yield "epoch of step 0", measured(lambda: run.train(0, None))
    run.train(0, None)
    yield "evaluation", measured(lambda: run.evaluate(0))


def classes(count: int, folder: Path) -> Iterator[tuple[str, Cost]]:
    """Losses, an iteration and AWT's start of a classifier, by the number of outputs."""
    del folder
    n_new = max(count // 3, 1)
    sizes = losses.Sizes((count - n_new, n_new), 2, 256)
    inputs = losses.Inputs(sizes)
    yield "MiB's losses, 2 × 256²", measured(lambda: losses.step("ciss", "mib", inputs), 3)
    yield "iteration of MiB, 2 × 256²", measured(iteration(count, 256), 3)
    teacher = networks.drawn(NETWORK, [count - n_new])
    new = range(count - n_new, count)
    batch = (networks.images(8, 128), networks.labels(8, 128, new))

    def start() -> None:
        found = attribute(teacher, [batch], new)
        transfer.initialise(widened(teacher, n_new, 0), "awt", {}, found, seed=0)

    yield "attribution and transfer, 8 × 128²", measured(start, 3)


def resolution(side: int, folder: Path) -> Iterator[tuple[str, Cost]]:
    """An iteration, and evaluation of a batch, by the crop's side."""
    del folder
    yield "iteration of MiB, batch 2", measured(iteration(21, side), 3)
    network = networks.drawn(NETWORK, [21])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (4, 3, side, side), dtype=torch.uint8, generator=generator)
    labels = networks.labels(4, side, range(1, 21)).to(torch.uint8)
    yield "evaluation, batch 4", measured(lambda: evaluate(network, [(pixels, labels)], CPU), 3)


def steps(count: int, folder: Path) -> Iterator[tuple[str, Cost]]:
    """A whole experiment, MiB + AWT with an epoch a step, by its number of steps."""
    generate(folder / "shapes", train=240, val=60, size=96, seed=0)
    run = Run(folder, SCENARIOS[count], crop=64)

    def everything() -> None:
        for step in range(count):
            run.train(step, step - 1 if step else None)
            run.evaluate(step)

    yield "all of a run of MiB + AWT", measured(everything)


def iteration(outputs: int, crop: int) -> Callable[[], Any]:
    """An iteration of MiB on a batch of two; a third of the classes is new."""
    n_new = max(outputs // 3, 1)
    teacher = networks.drawn(NETWORK, [outputs - n_new])
    method = methods.create("mib", {}, outputs - n_new, n_new)
    network = widened(teacher, n_new, 0)
    training = Training(network, teacher, method, Recipe(1, 1e-4, batch=2), 10**6, CPU)
    batch = networks.images(2, crop), networks.labels(2, crop, range(outputs - n_new, outputs))
    return lambda: training.update(*batch)


class Run:
    """A small experiment in memory: the library's functions in the workflow's order."""

    def __init__(self, folder: Path, scenario: str, crop: int) -> None:
        self.dataset = open_dataset("shapes", "shapes", folder / "shapes")
        self.scenario = parse_scenario(scenario, self.dataset.n_classes)
        index = build_index(self.dataset, is_subset=True)
        self.rows = split(index, self.dataset, self.scenario, range(self.scenario.n_steps))
        self.crop = crop
        self.models: dict[int, SegmentationNetwork] = {}

    def train(self, step: int, before: int | None) -> None:
        """An epoch of a step, with the attribution and transfer that come before it."""
        counts, recipe = self.scenario.classes_per_step, Recipe(1, 1e-3, batch=8, crop=self.crop)
        rows = select(self.rows, step, "train")
        lookup = training_lookup(self.dataset.lookup, self.scenario.new_classes(step))
        if before is None:
            network, teacher = networks.drawn(NETWORK, counts[:1]), None
            method = methods.create_base("ce", counts[0])
        else:
            teacher, new = self.models[before], self.scenario.new_classes(step)
            given = EvaluationImages(self.dataset.root, rows, lookup, self.crop)
            batches = (
                (to_network_input(pixels), labels.long())
                for pixels, labels, _ in evaluation_batches(given, 8)
            )
            network = widened(teacher, counts[step], 0)
            transfer.initialise(network, "awt", {}, attribute(teacher, batches, new), seed=0)
            method = methods.create("mib", {}, sum(counts[:step]), counts[step])
        training = Training(
            network, teacher, method, recipe, max(len(rows) // recipe.batch, 1), CPU
        )
        training_images = TrainingImages(self.dataset.root, rows, lookup, self.crop, 0)
        train(training, training_images, Runtime(), Progress(None, ""), StopRequest())
        # Jobs of the workflow have no other in memory.
        self.models = {step: network.eval()}

    def evaluate(self, step: int) -> None:
        """The confusion matrix of a step's model."""
        rows = select(self.rows, step, "test")
        lookup = evaluation_lookup(self.dataset.lookup, self.scenario.seen_classes(step))
        given = EvaluationImages(self.dataset.root, rows, lookup, self.crop)
        batches = ((pixels, labels) for pixels, labels, _ in evaluation_batches(given, 8))
        evaluate(self.models[step], batches, CPU)


FACTORS: dict[str, Callable[[int, Path], Iterator[tuple[str, Cost]]]] = {
    "images": images,
    "classes": classes,
    "steps": steps,
    "resolution": resolution,
}


def one(factor: str, size: int) -> dict[str, Cost]:
    """Measure one size, in this process."""
    torch.set_num_threads(1)
    iteration(5, 32)()  # what libraries take once is nobody's growth
    with TemporaryDirectory(prefix="ciss-scaling-") as folder:
        return dict(FACTORS[factor](size, Path(folder)))


def one_apart(factor: str, size: int) -> dict[str, Cost]:
    """The same in a process of its own, whose memory is that of the work."""
    command = [sys.executable, __file__, "one", factor, str(size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {name: Cost(*cost) for name, cost in json.loads(done.stdout).items()}


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Slope of the line through the logarithms of sizes and costs."""
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(costs, 1e-9)), 1)[0])


def growth(measure: Callable[[str, int], dict[str, Cost]] = one_apart) -> str:
    """Measure everything; returns the table."""
    text = [
        "| | three sizes | CPU time | exponent | memory | exponent |",
        "| --- | --- | --- | ---: | --- | ---: |",
    ]
    for factor, sizes in SIZES.items():
        costs = [measure(factor, size) for size in sizes]
        for name in costs[0]:
            seconds, memory = zip(*(cost[name] for cost in costs), strict=True)
            spelled = [
                f"{factor}: {name}",
                ", ".join(map(str, sizes)),
                ", ".join(map(figure, seconds)) + " s",
                f"{exponent(sizes, seconds):.2f}",
                ", ".join(figure(max(m, 0.0)) for m in memory) + " MiB",
                # Below some MiB it is the libraries' own.
                f"{exponent(sizes, memory):.2f}" if min(memory) > 4 else "",
            ]
            text.append("| " + " | ".join(spelled) + " |")
            print(text[-1], flush=True)
    return "\n".join(text) + "\n"


# --- GPU hours of the paper's matrix

#: training images of a track's steps where no split of the results says it: facts of published
#: lists (MiB's repository), and what follows from them. 10-1's steps are the images that show one
#: of VOC's classes 11 to 20: 19-1 begins with all others at least, 5-3's steps have the sum at most
OF_CLASS = dict(
    zip(range(11, 21), (528, 1177, 444, 482, 3898, 487, 299, 491, 500, 548), strict=True)
)
KNOWN = {
    ("voc", "15", 0): 9568,
    ("voc", "10", 0): 6139,
    ("voc", "19", 0): 10_582 - OF_CLASS[20],
    ("voc", "15-5", 1): 2145,
    ("voc", "19-1", 1): OF_CLASS[20],
    **{("voc", "10-1", label - 10): count for label, count in OF_CLASS.items()},
    **{("voc", "15-1", label - 15): OF_CLASS[label] for label in range(16, 21)},
    **{
        ("voc", "5-3", step): sum(OF_CLASS[3 * step + 3 + n] for n in range(3))
        for step in (3, 4, 5)
    },
}
#: ... or assumptions: images of the data set, and how many classes an image shows on average. If
#: classes came independently, k of K would be on a share 1 − (1 − shown / K)^k of the images
ASSUMED = {"voc": (10_582, 1.5), "ade": (20_210, 10.5), "cityscapes": (2_975, 12.0)}
TEST_IMAGES = {"voc": 1_449, "ade": 2_000, "cityscapes": 500}
#: where no GPU was measured: a GPU's name, and the share of its peak that a training reaches
ASSUMED_GPU, ASSUMED_UTILISATION = "H100", 0.25
#: methods of ``gpu.json`` that stand for the others: without a teacher, and with one
WITHOUT_TEACHER, WITH_TEACHER = "ft", "mib"


@dataclass(frozen=True)
class Work:
    """Images that pass through networks in one job, and how."""

    rule: str
    dataset: str
    output: str
    images: float
    #: method that decides the cost of a training image; ``forward`` for other jobs
    kind: str
    outputs: int


def images_of(config: Config, records: planning.Records, e: Experiment, step: int) -> float:
    """Training images of a step: of the results' split, of a published list, or assumed."""
    track = e.scenario.track(step)
    found = records.images(e.dataset, track, step, "train") or KNOWN.get((e.dataset, track, step))
    if found is not None:
        return float(found)
    kind = config["datasets"][e.dataset]["kind"]
    if kind not in ASSUMED:
        raise SystemExit(
            f"nothing is known of the images of {e.dataset} {track}: make its split first, "
            f"snakemake {records.results}/{paths.SPLIT.format(dataset=e.dataset, track=track)}"
        )
    total, shown = ASSUMED[kind]
    n_new = len(e.scenario.new_classes(step))
    return float(total * (1 - (1 - shown / e.scenario.n_classes) ** n_new))


def _training(
    run: str, e: Experiment, step: int, model: str, count: float, epochs: int
) -> Iterator[tuple[str, Work]]:
    """Yield what makes a step's model, of ``count`` images."""
    outputs = sum(e.scenario.classes_per_step[: step + 1])
    closed_form = methods.describe(e.method.kind).closed_form
    once = Work("solve", e.dataset, f"{model}:once", count, "forward", outputs)
    if step == 0:
        yield run, Work("train", e.dataset, model, count * epochs, WITHOUT_TEACHER, outputs)
        return
    if closed_form:
        yield run, once
        return
    n_new = e.scenario.classes_per_step[step]
    method = methods.create(e.method.kind, e.method.options, outputs - n_new, n_new)
    kind = WITH_TEACHER if method.needs_teacher else WITHOUT_TEACHER
    if e.method.kind == "plop":
        kind = "plop"
        yield run, once  # the pass over the data that finds the thresholds
    yield run, Work("train", e.dataset, model, count * epochs, kind, outputs)


def works(
    config: Config, chosen: Sequence[tuple[Experiment, int]], results: Path
) -> Iterator[tuple[str, Work]]:
    """Yield the jobs of every run, with the run's name: what runs share comes once for each."""
    records = planning.Records(results, config)
    for e, seed in chosen:
        run = f"{e.name} {seed}"
        for step in range(e.scenario.n_steps):
            chosen_settings = settings(config, e.dataset, e.scenario if step else None)
            epochs = chosen_settings["recipe"]["later" if step else "base"]["epochs"]
            count = images_of(config, records, e, step)
            outputs = sum(e.scenario.classes_per_step[: step + 1])
            model = paths.artifact(paths.MODEL, e, seed, step)
            yield from _training(run, e, step, model, count, epochs)
            subset = evaluated_images(config, e.dataset)
            tested = records.images(e.dataset, e.scenario.track(step), step, subset)
            tested = tested or TEST_IMAGES.get(config["datasets"][e.dataset]["kind"], 0)
            confusion = paths.artifact(paths.CONFUSION, e, seed, step)
            yield run, Work("evaluate", e.dataset, confusion, tested, "forward", outputs)
            if step and e.needs_attribution:
                before = paths.artifact(paths.ATTRIBUTION, e, seed, step - 1)
                yield run, Work("attribute", e.dataset, before, count, "forward", outputs)


@cache
def assumed_seconds(kind: str, outputs: int, backbone: str, stride: int, crop: int) -> float:
    """Seconds of the assumed GPU for an image: networks alone, no losses."""
    forward, backward = flops(NetworkConfig(backbone, stride), (outputs,), crop)
    total = forward
    if kind != "forward":
        total += backward + (kind != WITHOUT_TEACHER) * forward
    peak = peak_flops(ASSUMED_GPU)
    assert peak is not None
    return total / (peak * ASSUMED_UTILISATION)


def measured_speeds(path: Path) -> dict[tuple[str, str], float]:
    """Images a second by method and number of classes (voc, ade), of ``benchmarks/gpu.json``.

    Those of trainings on images from files.
    """
    if not path.is_file():
        return {}
    sections = json.loads(path.read_text(encoding="utf-8"))["sections"]
    found = {}
    for name in ("voc", "ade"):
        section = sections.get(f"training-{name}-24", {"rows": [], "tiny": True})
        for row in section["rows"]:
            method, _, rest = row["what"].partition(", ")
            if not section["tiny"] and rest == "images from files":
                found[method, name] = row["ours"]
    return found


class Hours(NamedTuple):
    """Of a data set, or of all."""

    runs: int
    jobs: int
    trainings: int
    images: float
    hours: float


def add_up(
    config: Config,
    all_works: Sequence[tuple[str, Work]],
    speeds: Mapping[tuple[str, str], float],
) -> Hours:
    """Add up jobs, images and GPU hours."""
    trainings = [w for _, w in all_works if w.rule == "train" and w.kind != "forward"]
    return Hours(
        len({run for run, _ in all_works}),
        len(all_works),
        len(trainings),
        sum(work.images for work in trainings),
        sum(work.images * seconds(config, work, speeds) for _, work in all_works) / 3600,
    )


def seconds(config: Config, work: Work, speeds: Mapping[tuple[str, str], float]) -> float:
    """Seconds for an image of a job: measured if its kind was, else assumed."""
    chosen = settings(config, work.dataset, None)
    model, crop = chosen["model"], chosen["recipe"]["crop"]
    nearest = "voc" if work.outputs <= 60 else "ade"
    as_measured = (model["backbone"], model["output_stride"], crop) == ("resnet101", 16, 512)
    if as_measured and (work.kind, nearest) in speeds:
        return 1 / speeds[work.kind, nearest]
    assumed = assumed_seconds(
        work.kind, work.outputs, model["backbone"], model["output_stride"], crop
    )
    reference = (WITHOUT_TEACHER, nearest)
    if not as_measured or reference not in speeds:
        return assumed
    # A forward pass costs its share of a measured training's.
    share = assumed / assumed_seconds(WITHOUT_TEACHER, work.outputs, "resnet101", 16, 512)
    return share / speeds[reference]


def shared(all_works: Sequence[tuple[str, Work]]) -> list[tuple[str, Work]]:
    """What the workflow runs: every job once."""
    return list({work.output: (run, work) for run, work in reversed(all_works)}.values())


def unshared(all_works: Sequence[tuple[str, Work]]) -> list[tuple[str, Work]]:
    """What a script for each run does: every run trains its own step 0.

    Later steps are nobody else's either way.
    """
    return list({(run, work.output): (run, work) for run, work in all_works}.values())


def hours(config: Config, targets: Sequence[str], results: Path, gpu: Path) -> str:
    """Predict; returns the text and the table."""
    chosen = planning.chosen_experiments(config, list(targets))
    everything = list(works(config, chosen, results))
    speeds = measured_speeds(gpu)
    names = list(dict.fromkeys(e.dataset for e, _ in chosen))
    text = [
        "| | runs | trainings | shared | images through training | GPU hours, each run its own "
        "step 0 | step 0 shared | saved |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in [*names, "all"]:
        own = [(run, w) for run, w in everything if name in (w.dataset, "all")]
        alone = add_up(config, unshared(own), speeds)
        together = add_up(config, shared(own), speeds)
        saved = 1 - together.hours / alone.hours
        text.append(
            f"| {name} | {alone.runs} | {alone.trainings} | {alone.trainings - together.trainings} "
            f"| {together.images / 1e6:.1f} M (of {alone.images / 1e6:.1f} M) | {alone.hours:,.0f} "
            f"| {together.hours:,.0f} | {saved:.0%} |"
        )
    measured = ", ".join(f"{method} {classes}: {v:.0f}" for (method, classes), v in speeds.items())
    assumed = (
        f"**Assumption, not a measurement**: {ASSUMED_UTILISATION:.0%} of the "
        f"{(peak_flops(ASSUMED_GPU) or 0) / 1e12:.0f} TFLOP/s that the maker states for the "
        f"{ASSUMED_GPU} in dense bfloat16, for networks alone. GPU throughput: {NOT_MEASURED}"
    )
    basis = f"From measured images a second ({measured})" if speeds else assumed
    return f"{basis}.\n\n" + "\n".join(text) + "\n"


def main(arguments: argparse.Namespace) -> None:
    if arguments.what[0] == "one":
        print(json.dumps(one(arguments.what[1], int(arguments.what[2]))))
        return
    if unknown := {*arguments.what} - {"growth", "hours"}:
        raise SystemExit(f"'{', '.join(unknown)}' is neither growth nor hours")
    parts = []
    if "growth" in arguments.what:
        begun = f"{time.strftime('%Y-%m-%d')}, one thread of {cpu_name()}"
        parts.append(f"{begun}, torch {torch.__version__}:\n\n{growth()}")
    if "hours" in arguments.what:
        config = read_config(REPOSITORY / "config.yaml", *arguments.config)
        parts.append(hours(config, arguments.targets, Path(config["results"]), arguments.gpu))
        print(f"\n{parts[-1]}")
    if arguments.docs:
        page = REPOSITORY / "docs" / "benchmarks.md"
        into_document(page, "\n".join(parts), (BEGIN, END))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", help="growth, hours or both")
    parser.add_argument("--targets", nargs="+", default=["paper"], help="matrices, experiments")
    parser.add_argument("--config", type=Path, nargs="+", default=[], help="over config.yaml")
    parser.add_argument("--gpu", type=Path, default=REPOSITORY / "benchmarks" / "gpu.json")
    parser.add_argument("--docs", action="store_true", help="put both in docs/benchmarks.md")
    main(parser.parse_args())
