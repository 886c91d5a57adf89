"""What ``benchmarks/gpu.py`` measures: a module for each group of its sections."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.table import Row, figure, verdict
from ciss.runtime import Runtime, start_torch


@dataclass(frozen=True)
class Machine:
    """Where is measured, and how much."""

    device: torch.device
    #: smallest sizes that still do everything, for a CPU and the tests
    tiny: bool
    rounds: int
    #: for whatever a section writes; gone afterwards
    folder: Path
    #: threads that read images
    workers: int
    #: folder of parity cases, where there is one
    cases: Path | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether this is the kind of device that it is about."""
        return self.device.type == "cuda"

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], times: int) -> float:
        """Seconds that ``work`` takes, of ``times`` that follow each other without waiting."""
        self.wait()
        start = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return (time.perf_counter() - start) / times

    def alternate(
        self, ways: Mapping[str, Callable[[], Any]], times: int = 10
    ) -> dict[str, list[float]]:
        """Give each way its turn in each round; return the seconds of each way by round.

        Before, each way runs a few times: cuDNN tries its algorithms out, memory is taken.
        """
        times = 1 if self.tiny else times
        for work in ways.values():
            self.seconds(work, min(times, 3))
        found: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(self.rounds):
            for name, work in ways.items():
                found[name].append(self.seconds(work, times))
        return found

    def clear(self) -> None:
        """Give back the memory of what is not used any more."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()

    def peak(self, work: Callable[[], Any]) -> float:
        """Largest memory of all tensors on the GPU while ``work`` runs, GiB; 0 on a CPU.

        Tensors that were there before count: what is measured should be alone.
        """
        if not self.is_gpu:
            work()
            return 0.0
        torch.cuda.reset_peak_memory_stats(self.device)
        work()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) / 2**30


#: a section: rows, each as soon as it is measured
Section = Callable[[Machine], Iterator[Row]]


def start(device: str, threads: int) -> torch.device:
    """Set torch up as a training does: cuDNN tries its algorithms out, float32 is float32."""
    found = start_torch(Runtime(device=device, threads=threads), same_sizes=True)
    if found.type == "cuda" and found.index is not None:
        # What names no GPU, synchronisation among it, is meant for this one.
        torch.cuda.set_device(found)
    return found


def judged(
    group: str,
    what: str,
    value: float,
    limit: float,
    unit: str = "",
    *,
    scale: float = 1.0,
    **more: Any,
) -> Row:
    """A figure, shown times ``scale``, that shall be ``limit`` at most; the row says if it is."""
    goal = f"≤ {figure(scale * limit)}{f' {unit}' if unit else ''}: {verdict(value <= limit)}"
    return Row(group, what, unit, ours=scale * value, rounds=1, goal=goal, **more)


def passed(group: str, what: str, good: bool, **more: Any) -> Row:
    """Something that is so or not: 0 or 1 thing that is wrong."""
    return judged(group, what, float(not good), 0.0, "wrong", **more)


def skipped(group: str, what: str, why: str) -> Row:
    """Something that was not measured, and why."""
    return Row(group, what, "", note=f"{what}: not measured, {why}.")


def failed(group: str, what: str, error: Exception) -> Row:
    """Something that was not measured as it ended with an error, which may have no words."""
    first = f"{error} ".splitlines()[0]
    return skipped(group, what, f"{type(error).__name__}: {first}")


def median_row(group: str, what: str, unit: str, seconds: list[float], **more: Any) -> Row:
    """The median of some times, in ms."""
    spread = (1000 * min(seconds), 1000 * max(seconds))
    median = 1000 * statistics.median(seconds)
    return Row(group, what, unit, ours=median, spread=spread, rounds=len(seconds), **more)
