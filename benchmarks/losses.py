"""Time and memory of the losses at full resolution, against the published way.

    python benchmarks/losses.py
    python benchmarks/losses.py --device cuda --batch 24

Both ways get the same small logits and labels, and must give the same loss and the same gradient.
They take turns; times are medians of CPU time (on a GPU, of time until it is done), memory is what
one forward and backward pass needs beyond its inputs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.reference import losses as reference
from ciss import methods, plop
from ciss.methods.base import Batch
from ciss.pixelwise import Upsampled

#: old and new outputs: the last step of VOC 15-1 and of ADE 100-50
CLASSES = {"voc": (20, 1), "ade": (101, 50)}
#: channels and share of the input's side of the maps that PLOP distils, ResNet-101 at stride 16
MAPS = [(256, 4), (512, 8), (1024, 16), (2048, 16), (256, 16)]
MIB = 2**20


class Inputs:
    """Random small logits, and labels as a step shows them: background, new classes, void."""

    def __init__(self, classes: tuple[int, int], batch: int, crop: int, device: str) -> None:
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


def seconds(work: Callable[[], Any], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def memory(way: str, name: str, inputs: Inputs, device: str) -> float:
    """Peak of one pass beyond its inputs, MiB; on a CPU only right in a process of its own."""
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


def memory_apart(way: str, name: str, arguments: argparse.Namespace, dataset: str) -> float:
    command = [sys.executable, __file__, "--memory-of", way, "--methods", name]
    command += ["--classes", dataset, "--batch", str(arguments.batch)]
    command += ["--crop", str(arguments.crop), "--device", arguments.device]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout)


def measure(name: str, dataset: str, arguments: argparse.Namespace) -> dict[str, Any]:
    inputs = Inputs(CLASSES[dataset], arguments.batch, arguments.crop, arguments.device)
    found = {way: step(way, name, inputs) for way in WAYS}
    (loss, gradient), (expected, reference_gradient) = found["ciss"], found["published"]
    scale = reference_gradient.abs().max()
    difference = float((gradient - reference_gradient).abs().max() / scale)
    if abs(loss - expected) > 1e-4 * abs(expected) or difference > 1e-4:
        raise SystemExit(f"{name}: {loss} and {expected} differ, gradients by {difference:.1e}")
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way in WAYS:
            times[way].append(
                seconds(lambda way=way: step(way, name, inputs), arguments.device)  # type: ignore
            )
    row = {f"{way}_ms": 1000 * statistics.median(times[way]) for way in WAYS}
    row |= {f"{way}_mb": memory_apart(way, name, arguments, dataset) for way in WAYS}
    return {"loss": name, "classes": sum(CLASSES[dataset]), **row}


def measure_pod(arguments: argparse.Namespace) -> dict[str, Any]:
    maps = [
        [
            torch.randn(arguments.batch, c, arguments.crop // s, arguments.crop // s)
            .to(arguments.device)
            .requires_grad_(side == 0)
            for c, s in MAPS
        ]
        for side in range(2)
    ]

    def run(pod: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        total = torch.stack([pod(mine, its) for mine, its in zip(*maps, strict=True)]).sum()
        return list(torch.autograd.grad(total, maps[0]))

    ways = {"published": reference.local_pod, "ciss": plop.local_pod}
    for mine, its in zip(run(plop.local_pod), run(reference.local_pod), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-7)
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(arguments.rounds):
        for way, pod in ways.items():
            times[way].append(
                seconds(lambda pod=pod: run(pod), arguments.device)  # type: ignore
            )
    return {
        "loss": "plop: POD",
        "classes": None,
        **{f"{way}_ms": 1000 * statistics.median(times[way]) for way in ways},
    }


def show(rows: list[dict[str, Any]]) -> None:
    print(f"{'loss':10} {'classes':>7} {'published':>21} {'ciss':>19}   {'time':>6} {'memory':>7}")
    for row in rows:
        cells = [f"{row['loss']:10} {row['classes'] or '':>7}"]
        for way in WAYS:
            megabytes = f"{row[f'{way}_mb']:6.0f} MiB" if f"{way}_mb" in row else " " * 10
            cells.append(f"{row[f'{way}_ms']:8.0f} ms {megabytes}")
        ratio = f"× {row['published_ms'] / row['ciss_ms']:4.1f}"
        less = f"× {row['published_mb'] / max(row['ciss_mb'], 1):5.1f}" if "ciss_mb" in row else ""
        print("  ".join([*cells, ratio, less]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=list(reference.LOSSES))
    parser.add_argument("--classes", nargs="+", default=list(CLASSES), choices=list(CLASSES))
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--crop", type=int, default=512)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--memory-of", choices=list(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        classes = CLASSES[arguments.classes[0]]
        inputs = Inputs(classes, arguments.batch, arguments.crop, arguments.device)
        print(memory(arguments.memory_of, arguments.methods[0], inputs, arguments.device))
        return
    rows = [measure(n, d, arguments) for d in arguments.classes for n in arguments.methods]
    if "plop" in arguments.methods:
        rows.append(measure_pod(arguments))
    show(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
