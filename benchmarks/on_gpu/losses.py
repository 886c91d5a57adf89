"""The losses at full resolution: against the published way, by size of blocks, and compiled."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks import losses
from benchmarks.losses import AIM, CLASSES, Inputs, Sizes
from benchmarks.on_gpu import Machine, failed, judged, median_row
from benchmarks.reference.losses import LOSSES
from benchmarks.table import Row, at_least, compared
from ciss import methods, pixelwise

GROUP = "GPU: losses"
COMPILED = "GPU: losses compiled"
#: log₂ of the values in a block
BLOCKS = (20, 21, 22, 23, 24, 25, 26, 28)
#: gradients of the two ways differ by float32's rounding
TOLERANCE = 1e-4


def rows(machine: Machine) -> Iterator[Row]:
    """MiB as the published code at batch 24 and 151 classes, the others at batch 4."""
    for name in ("mib", *[name for name in LOSSES if name != "mib"]):
        batch, crop = (24 if name == "mib" else 4, 512)
        if machine.tiny:
            batch, crop = 1, 64
        yield from against_published(machine, name, Sizes(CLASSES["ade"], batch, crop))
    yield from by_block(machine)


def _sized(machine: Machine, sizes: Sizes) -> Inputs:
    return Inputs(sizes._replace(device=str(machine.device)))


def against_published(machine: Machine, name: str, sizes: Sizes) -> Iterator[Row]:
    """Time and memory of both ways; where the published one does not fit, of ours alone."""
    inputs, what = _sized(machine, sizes), f"{name}, {sizes}"
    note = "Losses: one forward and backward pass from the small logits."
    ours = partial(losses.step, "ciss", name, inputs)
    published = partial(losses.step, "published", name, inputs)
    ours()  # cuBLAS takes what it needs once
    mine, theirs = machine.peak(ours), _peak_if_it_fits(machine, published)
    machine.clear()
    if theirs is None:
        times = machine.alternate({"ours": ours})["ours"]
        yield median_row(GROUP, f"{what}: the published way does not fit", "ms", times)
        yield Row(GROUP, f"{what}: memory in all", "GiB", ours=mine, rounds=1)
        return
    (_, expected), (_, gradient) = published(), ours()
    difference = float((gradient - expected).abs().max() / expected.abs().max())
    yield judged(GROUP, f"{what}: gradients differ by", difference, TOLERANCE, "ppm", scale=1e6)
    times = machine.alternate({"published": published, "ours": ours})
    found = [compared(GROUP, what, "ms", times["published"], times["ours"], scale=1000, note=note)]
    if machine.is_gpu:
        memory = f"{what}: memory in all"
        found.append(compared(GROUP, memory, "GiB", [theirs], [mine], note=note))
    for row in found:
        yield at_least(row, AIM) if name == "mib" else row
    machine.clear()


def _peak_if_it_fits(machine: Machine, work: Callable[[], Any]) -> float | None:
    """``None`` where the memory does not suffice; what it held is let go on return."""
    try:
        return machine.peak(work)
    except torch.OutOfMemoryError:
        return None


def by_block(machine: Machine) -> Iterator[Row]:
    """MiB by the number of values in a block of upsampled logits."""
    for classes in CLASSES:
        sizes = Sizes(CLASSES[classes], *((1, 64) if machine.tiny else (24, 512)))
        inputs = _sized(machine, sizes)
        work = partial(losses.step, "ciss", "mib", inputs)
        ways: dict[str, Callable[[], Any]] = {}
        peaks: dict[str, float] = {}
        for power in BLOCKS[:2] if machine.tiny else BLOCKS:
            ways[f"2^{power}"] = partial(_with_block, machine, 2**power, work)
            peaks[f"2^{power}"] = machine.peak(ways[f"2^{power}"])
        usual = pixelwise.BLOCK[machine.device.type]
        note = f"Blocks: MiB, values of logits in a block; the code's is {usual:,}."
        for block, times in machine.alternate(ways, 5).items():
            what = f"mib, {sizes}, blocks of {block} values: {peaks[block]:.1f} GiB"
            yield median_row(GROUP, what, "ms", times, note=note)


def _with_block(machine: Machine, size: int, work: Callable[[], Any]) -> Any:
    with patch.dict(pixelwise.BLOCK, {machine.device.type: size}):
        return work()


def compiled_rows(machine: Machine) -> Iterator[Row]:
    """Each method's function of pixels as it is and through torch.compile, by size of blocks."""
    if machine.tiny and not machine.is_gpu:
        names, powers, sizes = ["ft"], [None], Sizes((3, 2), 1, 32)
    else:
        names, powers, sizes = ["mib", "ft", "lwf", "lwf-mc"], [None, 22, 26], Sizes(CLASSES["ade"])
        sizes = sizes._replace(batch=24)
    for name in names:
        inputs = _sized(machine, sizes)
        for power in powers if name == "mib" else powers[:1]:
            block = 2**power if power else pixelwise.BLOCK[machine.device.type]
            yield from _compiled(machine, name, inputs, sizes, block)


def _compiled(
    machine: Machine, name: str, inputs: Inputs, sizes: Sizes, block: int
) -> Iterator[Row]:
    what = f"{name}, {sizes}, blocks of {block:,} values"
    # A function is compiled for eight shapes at most, those of earlier rows included.
    torch.compiler.reset()
    original = methods.method_class(name).per_pixel
    faster = torch.compile(original, dynamic=False)
    eager = partial(_with_block, machine, block, partial(losses.step, "ciss", name, inputs))

    def compiled() -> tuple[float, Tensor]:
        with patch.object(methods.method_class(name), "per_pixel", faster):
            found: tuple[float, Tensor] = eager()
            return found

    try:
        first = machine.seconds(compiled, 1)
    except Exception as error:
        # Anything may go wrong in a compiler; what follows is worth its figures all the same.
        yield failed(COMPILED, what, error)
        return
    (_, expected), (_, gradient) = eager(), compiled()
    difference = float((gradient - expected).abs().max() / expected.abs().max())
    yield judged(COMPILED, f"{what}: gradients differ by", difference, TOLERANCE, "ppm", scale=1e6)
    times = machine.alternate({"eager": eager, "compiled": compiled}, 5)
    pays = statistics.median(times["eager"]) / statistics.median(times["compiled"])
    note = "Compiled: 'published' is this project's code as it is, 'here' what torch.compile makes."
    yield compared(
        COMPILED,
        f"{what}, × {pays:.2f} after {first:.0f} s",
        "ms",
        times["eager"],
        times["compiled"],
        scale=1000,
        note=note,
    )
