"""Training throughput at a later step, against plain cross-entropy on random tensors in memory.

The *baseline* is the same network under the same optimiser, trained with plain cross-entropy on
upsampled logits, on tensors that lie on the device. A method's losses, its teacher and the input
path together may cost 15 % of it beyond the teacher's own forward pass.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import networks
from benchmarks.losses import CLASSES
from benchmarks.on_gpu import Machine, Section, judged, median_row
from benchmarks.reference.losses import VOID
from benchmarks.table import Row
from ciss import methods
from ciss.datasets import open_dataset
from ciss.datasets.shapes import generate
from ciss.index import build_index
from ciss.labels import training_lookup
from ciss.loading import Batch as LoadedBatch
from ciss.loading import TrainingBatches, TrainingImages, to_network_input, to_network_labels
from ciss.methods.base import Batch
from ciss.models import NetworkConfig, SegmentationNetwork, widened
from ciss.training import EpochTotals, Recipe, Training

METHODS = ("ft", "mib", "plop")
#: of the baseline and the teacher's forward pass
LIMIT = 1.15
#: batches that the input path reads for its speed, after those that its threads are ahead
READ = 60
#: dense bfloat16 matrix products a second that the makers state, TFLOP/s, by part of a GPU's name
PEAKS = {
    "B200": 2250,
    "H200": 989,
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "A100": 312,
    "A40": 150,
    "A10": 125,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 4090": 165,
    "RTX 3090": 71,
    "RTX A6000": 155,
}


def peak_flops(name: str) -> float | None:
    """FLOPs a second at most of the GPU called ``name``; ``None`` where that is not known."""
    found = [peak for part, peak in PEAKS.items() if part in name]
    return 1e12 * found[0] if found else None


@cache
def flops(config: NetworkConfig, classes: tuple[int, ...], crop: int) -> tuple[int, int]:
    """FLOPs of a forward and of a backward pass for an image, losses not counted.

    A multiplication with an addition counts as two, as makers do.
    """
    with torch.device("meta"):
        network = SegmentationNetwork(config, classes).train()
        images = torch.empty(2, 3, crop, crop)
    with FlopCounterMode(display=False) as forward:
        output = network(images)
    with FlopCounterMode(display=False) as backward:
        output.small_logits.sum().backward()
    return forward.get_total_flops() // 2, backward.get_total_flops() // 2


class Bench:
    """A step's networks and a batch in memory, and the ways to train on it."""

    def __init__(
        self,
        machine: Machine,
        config: NetworkConfig,
        classes: tuple[int, int],
        batch: int,
        crop: int,
    ) -> None:
        self.machine, self.config, self.classes, self.batch = machine, config, classes, batch
        n_old, n_new = classes
        self.teacher = networks.drawn(config, [n_old])
        self.network = widened(self.teacher, n_new, seed=1)
        # Hardly moving: random tensors teach nothing, and a loss that is no number ends the run.
        self.recipe = Recipe(1, 1e-6, batch=batch, crop=crop)
        self.inputs = networks.images(batch, crop).to(machine.device)
        labels = networks.labels(batch, crop, range(n_old, n_old + n_new))
        self.labels = labels.to(machine.device)

    def training(self, name: str) -> Training:
        """The step under a method; all share the networks."""
        n_old, n_new = self.classes
        method = methods.create(name, {}, n_old, n_new)
        if name == "plop":
            thresholds = torch.full((n_old,), 0.002, device=self.machine.device)
            method.load_state_dict({"thresholds": thresholds})
        device = self.machine.device
        return Training(self.network, self.teacher, method, self.recipe, 10**6, device)

    def baseline(self) -> Callable[[], None]:
        """An iteration of plain cross-entropy."""
        training = self.training("ft")

        def update() -> None:
            training.optimiser.zero_grad(set_to_none=True)
            with training.autocast():
                small = training.network(self.inputs).small_logits
            logits = F.interpolate(small.float(), self.labels.shape[1:], mode="bilinear")
            F.cross_entropy(logits, self.labels, ignore_index=VOID).backward()
            training.optimiser.step()

        return update

    def teacher_forward(self) -> Callable[[], Any]:
        """The teacher's forward pass alone."""
        training = self.training("mib")

        @torch.no_grad()
        def run() -> Any:
            with training.autocast():
                return training.teacher(self.inputs)  # type: ignore[misc]

        return run

    def losses(self, name: str) -> Callable[[], None]:
        """The losses of a method, forward and backward, on outputs that are there."""
        training = self.training(name)
        with training.autocast(), torch.no_grad():
            student, seen = training.network(self.inputs), training.teacher(self.inputs)  # type: ignore[misc]
        leaf = student._replace(
            small_logits=student.small_logits.detach().requires_grad_(),
            pre_logits=student.pre_logits.detach().requires_grad_(),
            attentions=[each.detach().requires_grad_() for each in student.attentions],
        )
        method = training.method
        batch = Batch(self.labels, leaf, seen if method.needs_teacher else None)

        def run() -> None:
            torch.stack([term.float() for term in method.losses(batch).values()]).sum().backward()

        return run

    def optimiser(self) -> Callable[[], Any]:
        """The optimiser's step alone."""
        training = self.training("ft")
        training.update(self.inputs, self.labels)
        return training.optimiser.step

    def from_files(self, name: str, images: TrainingImages) -> Callable[[], None]:
        """An iteration of a method on the next batch of files, as in ``ciss.training.train``."""
        training, device = self.training(name), self.machine.device
        source = endless(images, self.batch, self.machine)
        totals = EpochTotals(training, images)

        def update() -> None:
            pixels, raw, indices = next(source)
            labels = to_network_labels(raw.to(device, non_blocking=True))
            inputs = to_network_input(pixels.to(device, non_blocking=True))
            terms, scores = training.update(inputs, labels)
            totals.add(terms, scores, labels, indices)

        return update


def endless(images: TrainingImages, batch: int, machine: Machine) -> Iterator[LoadedBatch]:
    """Batches from files, one epoch after the other."""
    batches = TrainingBatches(images, batch, workers=machine.workers, pin=machine.is_gpu)
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def files(machine: Machine, n_old: int, crop: int) -> TrainingImages:
    """Generated JPEG images of about VOC's size, labelled with the classes from ``n_old`` on."""
    root = machine.folder / "files"
    if not root.exists():
        count, size = (12, 48) if machine.tiny else (240, 400)
        generate(root, train=count, val=2, size=size, seed=0, workers=max(machine.workers, 1))
    dataset = open_dataset("shapes", "shapes", root)
    index = build_index(dataset, is_subset=True)
    own = index[index["subset"] == "train"]
    # Epochs as long as real ones: between two of them the threads have nothing to read.
    rows = pd.concat([own] * 50, ignore_index=True)
    # Every class of the files is one that the step learns.
    lookup = training_lookup(dataset.lookup, range(1, dataset.n_classes + 1))
    lookup[(lookup > 0) & (lookup != VOID)] = n_old
    return TrainingImages(root, rows, lookup, crop, seed=0)


def section(classes: str, batch: int) -> Section:
    """The section of one number of classes and one batch size."""
    return partial(rows, CLASSES[classes], batch, f"{classes.upper()}, batch {batch}")


def reading_seconds(images: TrainingImages, batch: int, machine: Machine) -> float:
    """Seconds a batch of the input path alone, when its threads are not ahead any more."""
    source = endless(images, batch, machine)
    for _ in range(2 if machine.tiny else 3 * machine.workers):
        next(source)
    return machine.seconds(partial(next, source), 4 if machine.tiny else READ)


def rows(classes: tuple[int, int], batch: int, what: str, machine: Machine) -> Iterator[Row]:
    """Throughput, utilisation, memory and shares of FT, MiB and PLOP."""
    config = networks.TINY if machine.tiny else NetworkConfig("resnet101")
    batch, crop = (2, 32) if machine.tiny else (batch, 512)
    bench = Bench(machine, config, classes, batch, crop)
    images = files(machine, classes[0], crop)
    reading = reading_seconds(images, batch, machine)
    group = f"GPU: training, {what}"
    note = (
        f"Training, {what}: {config.backbone}, {crop}², {bench.training('ft').dtype}, "
        f"{machine.workers} threads that read; 'published': plain cross-entropy on random tensors. "
        "Peak memory is that of all tensors, where nothing but the training is on the GPU."
    )
    speed = batch / reading
    yield Row(group, "input path alone", "images/s", ours=speed, rounds=1, note=note)
    parts: dict[str, list[float]] = {}
    for name in METHODS:
        yield from _of_method(bench, name, images, reading, group, note, parts)
        machine.clear()
    for part, times in parts.items():
        yield median_row(group, f"alone: {part}", "ms", times)


def _of_method(
    bench: Bench,
    name: str,
    images: TrainingImages,
    reading: float,
    group: str,
    note: str,
    parts: dict[str, list[float]],
) -> Iterator[Row]:
    """Rows of one method beside the baseline; its parts' times go into ``parts``.

    ``reading``: seconds in which the input path reads a batch.
    """
    machine, batch = bench.machine, bench.batch
    training = bench.training(name)
    update = partial(training.update, bench.inputs, bench.labels)
    # Before anything else is on the GPU, and after cuDNN has tried its algorithms out.
    update()
    peak = machine.peak(update)
    ways: dict[str, Callable[[], Any]] = {
        "baseline": bench.baseline(),
        "teacher": bench.teacher_forward(),
        "optimiser": bench.optimiser(),
        name: update,
        f"{name}, losses": bench.losses(name),
        f"{name}, files": bench.from_files(name, images),
    }
    times = machine.alternate(ways)
    for part in ("baseline", "teacher", "optimiser", f"{name}, losses"):
        parts[part] = times[part]
    median = {way: statistics.median(found) for way, found in times.items()}
    yield _speed(group, name, times[name], times["baseline"], batch, note)
    # In a turn the threads are ahead; for long, a training is no faster than they are.
    read = [max(seconds, reading) for seconds in times[f"{name}, files"]]
    yield _speed(group, f"{name}, images from files", read, None, batch, note)
    needs = training.method.needs_teacher
    yield judged(
        group,
        f"{name}, from files: time over baseline{' + teacher' if needs else ''}",
        statistics.median(read) / (median["baseline"] + needs * median["teacher"]),
        LIMIT,
        "%",
        scale=100,
        note=note,
    )
    used = utilisation(bench, median[name], needs, bench.inputs.shape[2])
    if used is not None:
        yield Row(group, f"{name}: model FLOPs utilisation", "%", ours=100 * used, rounds=1)
    if machine.is_gpu:
        yield Row(group, f"{name}: peak memory", "GiB", ours=peak, rounds=1)


def utilisation(bench: Bench, seconds: float, with_teacher: bool, crop: int) -> float | None:
    """Share of the GPU's FLOPs that networks use; ``None`` on a device that is not known."""
    if not bench.machine.is_gpu:
        return None
    peak = peak_flops(torch.cuda.get_device_name(bench.machine.device))
    forward, backward = flops(bench.config, bench.classes, crop)
    image = forward + backward + with_teacher * flops(bench.config, bench.classes[:1], crop)[0]
    return None if peak is None else bench.batch * image / seconds / peak


def _speed(
    group: str, what: str, times: list[float], others: list[float] | None, batch: int, note: str
) -> Row:
    """Images a second, beside the baseline's."""
    ours = batch / statistics.median(times)
    spread = (batch / max(times), batch / min(times))
    if others is None:
        return Row(group, what, "images/s", None, ours, None, spread, len(times), note=note)
    theirs = batch / statistics.median(others)
    ratios = [other / mine for mine, other in zip(times, others, strict=True)]
    between = (min(ratios), max(ratios))
    return Row(group, what, "images/s", theirs, ours, ours / theirs, between, len(times), note=note)
