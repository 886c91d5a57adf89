"""Time and memory of the losses at full resolution, against the published way.

    python benchmarks/losses.py
    python benchmarks/losses.py --device cuda --batch 24
    python benchmarks/losses.py --traffic
    python benchmarks/losses.py --methods mib --classes ade --batch 24 --published-batch 8

Both ways get the same small logits and labels, and must give the same loss and the same gradient.
They take turns; times are medians of CPU time (on a GPU, of time until it is done), memory is what
one forward and backward pass needs beyond its inputs. ``make bench`` shows MiB with the most
classes, the heaviest.

A batch that the published way has no memory for is measured with ``--published-batch``: the two
ways are compared on the smaller one, then each is measured on its own, by the image.

Traffic is counted, not measured: the bytes of all tensors that PyTorch's functions read and write.
On a GPU, where a block of logits does not fit the cache, the time is about proportional to it.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.given import Given
from benchmarks.reference import losses as reference
from benchmarks.table import Row, alternate, at_least, compared, cpu_seconds, plain, wall_seconds
from ciss import methods, plop
from ciss.methods.base import Batch
from ciss.pixelwise import Upsampled
from ciss.runtime import keep_memory

GROUP = "Losses at full resolution"
#: old and new outputs: the last step of VOC 15-1 and of ADE 100-50
CLASSES = {"voc": (20, 1), "ade": (101, 50)}
#: channels and share of the input's side of the maps that PLOP distils, ResNet-101 at stride 16
MAPS = [(256, 4), (512, 8), (1024, 16), (2048, 16), (256, 16)]
MIB = 2**20
#: times and memory of MiB that the published way shall take at least
AIM = 2


class Sizes(NamedTuple):
    """What is measured, and on which device."""

    classes: tuple[int, int]
    batch: int = 2
    crop: int = 512
    device: str = "cpu"

    def __str__(self) -> str:
        old, new = self.classes
        return f"{old} + {new} classes, {self.batch} × {self.crop}²"


class Inputs:
    """Random small logits, and labels as a step shows them: background, new classes, void."""

    def __init__(self, sizes: Sizes) -> None:
        classes, batch, crop, device = sizes
        self.n_old, self.n_new = classes
        generator = torch.Generator().manual_seed(0)
        side = crop // 16

        def draw(channels: int) -> Tensor:
            return torch.randn(batch, channels, side, side, generator=generator) * 3

        self.student = draw(sum(classes)).to(device).requires_grad_()
        self.teacher = draw(self.n_old).to(device)
        new = torch.randint(self.n_old, sum(classes), (batch, crop, crop), generator=generator)
        kind = torch.rand(batch, crop, crop, generator=generator)
        labels = torch.where(kind < 0.6, 0, torch.where(kind < 0.95, new, reference.VOID))
        self.labels = labels.to(device)


def published(name: str, inputs: Inputs) -> Tensor:
    terms = reference.LOSSES[name](inputs.student, inputs.teacher, inputs.labels, inputs.n_old)
    return torch.stack(list(terms.values())).sum()


def ours(name: str, inputs: Inputs) -> Tensor:
    method = methods.create(name, {}, inputs.n_old, inputs.n_new)
    size = (inputs.labels.shape[1], inputs.labels.shape[2])
    student = SimpleNamespace(upsampled=Upsampled(inputs.student, size))
    teacher = SimpleNamespace(upsampled=Upsampled(inputs.teacher, size))
    if name == "plop":
        thresholds = torch.full((inputs.n_old,), 0.002, device=inputs.labels.device)
        method.load_state_dict({"thresholds": thresholds})
        method._pod = lambda batch: torch.zeros((), device=inputs.labels.device)  # type: ignore
    batch = Batch(inputs.labels, student, teacher if method.needs_teacher else None)
    return torch.stack(list(method.losses(batch).values())).sum()


WAYS: dict[str, Callable[[str, Inputs], Tensor]] = {"published": published, "ciss": ours}


def step(way: str, name: str, inputs: Inputs) -> tuple[float, Tensor]:
    """One forward and backward pass; returns the loss and its gradient."""
    loss = WAYS[way](name, inputs)
    (gradient,) = torch.autograd.grad(loss, inputs.student)
    return float(loss.detach()), gradient


def seconds_on(device: str) -> Callable[[Callable[[], Any]], float]:
    """How time is taken: the CPU's own, or that until the GPU has done what it was given."""
    if device == "cpu":
        return cpu_seconds

    def seconds(work: Callable[[], Any]) -> float:
        torch.cuda.synchronize()

        def done() -> None:
            work()
            torch.cuda.synchronize()

        return wall_seconds(done)

    return seconds


def memory(way: str, name: str, inputs: Inputs, device: str) -> float:
    """Peak of one pass beyond its inputs, MiB; on a CPU only right in a process of its own."""
    small = inputs.student.shape[1] - inputs.n_old
    step(way, name, Inputs(Sizes((inputs.n_old, small), 1, 32, device)))  # what is loaded once
    if device == "cpu":
        before = peak_kib(reset=True)
        step(way, name, inputs)
        return (peak_kib() - before) / 1024
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(way, name, inputs)
    return (torch.cuda.max_memory_allocated() - before) / MIB


def peak_kib(*, reset: bool = False) -> int:
    """Largest memory of this process so far, or from now on (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def memory_apart(way: str, name: str, sizes: Sizes) -> float:
    """The same in a process of its own, on one thread."""
    command = [sys.executable, __file__, "--memory-of", way, "--methods", name, "--classes"]
    command += [*map(str, sizes.classes), "--batch", str(sizes.batch), "--crop", str(sizes.crop)]
    result = subprocess.run(
        [*command, "--device", sizes.device], stdout=subprocess.PIPE, text=True, check=True
    )
    return float(result.stdout)


def check(name: str, inputs: Inputs) -> None:
    """End where the two ways find another loss or another gradient."""
    found = {way: step(way, name, inputs) for way in WAYS}
    (loss, gradient), (expected, reference_gradient) = found["ciss"], found["published"]
    difference = float((gradient - reference_gradient).abs().max() / reference_gradient.abs().max())
    if abs(loss - expected) > 1e-4 * abs(expected) or difference > 1e-4:
        raise SystemExit(f"{name}: {loss} and {expected} differ, gradients by {difference:.1e}")


def measure(name: str, sizes: Sizes, rounds: int, *, with_memory: bool = True) -> Iterator[Row]:
    """Time, and memory, of one loss forward and backward."""
    inputs = Inputs(sizes)
    check(name, inputs)
    times = alternate(
        {way: partial(step, way, name, inputs) for way in WAYS},
        rounds,
        seconds_on(sizes.device),
        warm_up=False,
    )
    what, note = f"{name}, {sizes}", "Losses: one forward and backward pass from the small logits."
    yield compared(GROUP, what, "ms", times["published"], times["ciss"], scale=1000, note=note)
    if with_memory:
        yield memory_row(name, sizes, note)


def measure_apart(name: str, sizes: Sizes, published_batch: int, rounds: int) -> Iterator[Row]:
    """Time and memory by the image, the published way on a smaller batch; memory first.

    What a process keeps after it was timed would be missing for the next.
    """
    of_way = {"published": sizes._replace(batch=published_batch), "ciss": sizes}
    memories = {way: memory_apart(way, name, its) for way, its in of_way.items()}
    inputs = {way: Inputs(its) for way, its in of_way.items()}
    check(name, inputs["published"])
    times = alternate(
        {way: partial(step, way, name, inputs[way]) for way in of_way},
        rounds,
        seconds_on(sizes.device),
        warm_up=False,
    )
    images = {way: its.batch for way, its in of_way.items()}
    each = {way: [s / images[way] for s in found] for way, found in times.items()}
    old, new = sizes.classes
    what = f"{name}, {old} + {new} classes, {sizes.crop}², an image"
    note = (
        f"Losses: one forward and backward pass from the small logits, of {published_batch} images "
        f"as published and of {sizes.batch} here."
    )
    time = compared(GROUP, what, "ms", each["published"], each["ciss"], scale=1000, note=note)
    yield at_least(time, AIM) if name == "mib" else time
    share = {way: found / images[way] for way, found in memories.items()}
    memory = f"{what}: memory"
    row = compared(GROUP, memory, "MiB", [share["published"]], [share["ciss"]], note=note)
    yield at_least(row, AIM) if name == "mib" else row
    whole = (
        f"{name}, {old} + {new} classes: memory of {published_batch} and of {sizes.batch} images"
    )
    yield compared(GROUP, whole, "MiB", [memories["published"]], [memories["ciss"]], note=note)


class Traffic(TorchDispatchMode):
    """Counts the bytes that functions of PyTorch read and write within the block."""

    #: functions that look at nothing but the shape of what they are given, or nearly so
    UNREAD = ("new_zeros", "zeros_like", "ones_like", "zero_", "fill_", "nll_loss2d_forward",
              "nll_loss2d_backward")  # fmt: skip
    #: functions that touch no memory
    FREE = ("empty", "empty_like", "new_empty", "empty_strided", "_unsafe_view", "detach")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and name not in self.FREE:
            read = () if name in self.UNREAD else (args, kwargs)
            self.bytes += sum(map(_bytes, tree_leaves((read, found))))
        return found


def _bytes(value: Any) -> int:
    """Size of a tensor's memory; what is repeated by a stride of 0 counts once."""
    if not isinstance(value, Tensor):
        return 0
    sizes = [size for size, stride in zip(value.shape, value.stride(), strict=True) if stride]
    return math.prod(sizes) * value.element_size()


def traffic_row(name: str, classes: tuple[int, int], crop: int = 512) -> Row:
    """Bytes for each upsampled logit of the student, forward and backward, on an image."""
    inputs = Inputs(Sizes(classes, 1, crop))
    found = {}
    for way in WAYS:
        with Traffic() as traffic:
            step(way, name, inputs)
        found[way] = traffic.bytes / (sum(classes) * crop**2)
    old, new = classes
    what = f"{name}, {old} + {new} classes: bytes read and written for each logit"
    return compared(GROUP, what, "B", [found["published"]], [found["ciss"]])


def memory_row(name: str, sizes: Sizes, note: str = "") -> Row:
    found = {way: max(memory_apart(way, name, sizes), 1.0) for way in WAYS}
    what = f"{name}, {sizes}: memory"
    return compared(GROUP, what, "MiB", [found["published"]], [found["ciss"]], note=note)


def measure_pod(sizes: Sizes, rounds: int) -> Row:
    """Time of PLOP's POD over the maps of all stages."""
    maps = [
        [
            torch.randn(sizes.batch, c, sizes.crop // s, sizes.crop // s)
            .to(sizes.device)
            .requires_grad_(side == 0)
            for c, s in MAPS
        ]
        for side in range(2)
    ]

    def run(pod: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        total = torch.stack([pod(mine, its) for mine, its in zip(*maps, strict=True)]).sum()
        return list(torch.autograd.grad(total, maps[0]))

    for mine, its in zip(run(plop.local_pod), run(reference.local_pod), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-7)
    times = alternate(
        {
            "published": lambda: run(reference.local_pod),
            "ciss": lambda: run(plop.local_pod),
        },
        rounds,
        seconds_on(sizes.device),
        warm_up=False,
    )
    what = f"plop's POD, {sizes.batch} × {sizes.crop}²"
    return compared(GROUP, what, "ms", times["published"], times["ciss"], scale=1000)


def rows(what: Given) -> Iterator[Row]:
    """MiB with the classes of ADE 100-50."""
    torch.set_num_threads(1)
    sizes = Sizes(CLASSES["ade"], 1 if what.tiny else 2, 64 if what.tiny else 512)
    yield from measure("mib", sizes, min(what.rounds, 3), with_memory=not what.tiny)
    yield traffic_row("mib", sizes.classes, 64 if what.tiny else 512)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=list(reference.LOSSES))
    parser.add_argument(
        "--classes",
        nargs="+",
        default=list(CLASSES),
        help="names, or numbers of old and new outputs (default: voc ade)",
    )
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument(
        "--published-batch", type=int, help="images that the published way gets (default: as many)"
    )
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="0: memory alone")
    parser.add_argument("--traffic", action="store_true", help="count bytes; no time, no memory")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--memory-of", choices=list(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    given = arguments.classes
    chosen = [tuple(map(int, given))] if given[0].isdigit() else [CLASSES[name] for name in given]
    sizes = [Sizes(each, arguments.batch, arguments.crop, arguments.device) for each in chosen]
    if arguments.memory_of:
        inputs = Inputs(sizes[0])
        print(memory(arguments.memory_of, arguments.methods[0], inputs, arguments.device))
        return
    keep_memory()  # as every job does on a CPU; what is kept would count as needed above
    found: list[Row] = []
    for each in sizes:
        for name in arguments.methods:
            if arguments.published_batch:
                found += measure_apart(name, each, arguments.published_batch, arguments.rounds)
            elif arguments.traffic:
                found.append(traffic_row(name, each.classes))
            elif arguments.rounds == 0:
                found.append(memory_row(name, each))
            else:
                found += measure(name, each, arguments.rounds)
    if "plop" in arguments.methods and arguments.rounds and not arguments.traffic:
        found.append(measure_pod(sizes[0], arguments.rounds))
    print(plain(found))
    if arguments.json:
        content = {"rows": [asdict(row) for row in found]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
