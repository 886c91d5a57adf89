"""Ways to run the network of one training iteration: order in memory, compiler, normalisation."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec

import torch

from benchmarks import networks
from benchmarks.on_gpu import Machine, failed, skipped
from benchmarks.on_gpu.training import Bench
from benchmarks.table import Row
from ciss.models import NetworkConfig, with_norm

GROUP = "GPU: variants of the network"


def _as_is(bench: Bench) -> None:
    """What a training does."""


def _channels_last(bench: Bench) -> None:
    bench.network.to(memory_format=torch.channels_last)
    bench.inputs = bench.inputs.to(memory_format=torch.channels_last)


def _compiled(bench: Bench) -> None:
    bench.network.body.compile(dynamic=False)
    bench.network.head.compile(dynamic=False)


def _both(bench: Bench) -> None:
    _channels_last(bench)
    _compiled(bench)


def _signed(bench: Bench) -> None:
    bench.network = with_norm(bench.network, "bn")


def _in_place(bench: Bench) -> None:
    bench.network = with_norm(bench.network, "iabn")


VARIANTS: dict[str, Callable[[Bench], None]] = {
    "as it is": _as_is,
    "norm: bn": _signed,
    "norm: iabn": _in_place,
    "channels last": _channels_last,
    "compiled": _compiled,
    "channels last, compiled": _both,
}


def _measured(
    machine: Machine, config: NetworkConfig, batch: int, crop: int, change: Callable[[Bench], None]
) -> tuple[float, list[float], float]:
    """Seconds of the first iteration, of later ones, and GiB; nothing of it stays in memory."""
    bench = Bench(machine, config, (20, 1), batch, crop)
    bench.network = copy.deepcopy(bench.network).to(machine.device)
    change(bench)
    update = partial(bench.training("ft").update, bench.inputs, bench.labels)
    first = machine.seconds(update, 1)
    times = machine.alternate({"": update})[""]
    return first, times, machine.peak(update)


def rows(machine: Machine) -> Iterator[Row]:
    """Fine-tuning at batch 24, VOC's classes: images a second and memory of each variant."""
    config = networks.TINY if machine.tiny else NetworkConfig("resnet101")
    batch, crop = (2, 32) if machine.tiny else (24, 512)
    usual: float | None = None
    note = (
        f"Variants: fine-tuning, {config.backbone}, batch {batch}, {crop}²; 'published': as it is."
    )
    for name, change in VARIANTS.items():
        if name == "norm: iabn" and find_spec("inplace_abn") is None:
            yield skipped(GROUP, name, "the package inplace-abn is not installed")
            continue
        if "compiled" in name and machine.tiny and not machine.is_gpu:
            yield skipped(GROUP, name, "a compiler takes minutes for a whole network")
            continue
        machine.clear()
        try:
            first, times, memory = _measured(machine, config, batch, crop, change)
        except Exception as error:
            # Compilers fail in many ways; the other variants are worth their figures all the same.
            yield failed(GROUP, name, error)
            continue
        speed = batch / statistics.median(times)
        usual = usual or speed
        spread = (batch / max(times), batch / min(times))
        what = f"{name}: {memory:.1f} GiB, first iteration {first:.0f} s"
        yield Row(
            GROUP, what, "images/s", usual, speed, speed / usual, spread, len(times), note=note
        )
