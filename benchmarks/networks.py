"""Networks that benchmarks work on: drawn from a seed, with statistics that are not the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.reference.losses import VOID
from benchmarks.reference.training import STATISTICS
from ciss import methods
from ciss.models import NetworkConfig, SegmentationNetwork, initialise, widened

#: for the tests
TINY = NetworkConfig(backbone="resnet18", width=8, head_channels=16, pooling=4)


def drawn(
    config: NetworkConfig, classes_per_step: Sequence[int], seed: int = 0, **extras: Any
) -> SegmentationNetwork:
    """Draw a network, in evaluation mode, and let batch norm see some images.

    ``extras``: what a method's network has beside the usual, as ``SegmentationNetwork`` takes it.
    """
    network = SegmentationNetwork(config, classes_per_step, **extras)
    initialise(network, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        network.train()(torch.randn(2, 3, 64, 64, generator=generator))
    return network.eval()


def images(batch: int, crop: int, seed: int = 0) -> Tensor:
    """Random network inputs, float32 [B, 3, H, W]."""
    return torch.randn(batch, 3, crop, crop, generator=torch.Generator().manual_seed(seed))


def labels(batch: int, crop: int, new: range, seed: int = 0) -> Tensor:
    """Labels as a step shows them, int64 [B, H, W]: background, new classes in blocks, void."""
    generator = torch.Generator().manual_seed(seed)
    side = max(crop // 16, 1)
    classes = torch.randint(new.start, new.stop, (batch, side, side), generator=generator)
    kind = torch.rand(batch, side, side, generator=generator)
    cells = torch.where(kind < 0.6, 0, torch.where(kind < 0.95, classes, VOID))
    return cells.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :crop, :crop].contiguous()


class Step(NamedTuple):
    """What a step begins with, and a batch of it."""

    network: SegmentationNetwork
    teacher: SegmentationNetwork
    importances: dict[str, Tensor]
    images: Tensor
    labels: Tensor


def extras_of(name: str, n_old: int, n_new: int) -> dict[str, Any]:
    """What the networks of a method have beside the usual, as ``drawn`` and ``step`` take it."""
    method = methods.create(name, {}, n_old, n_new)
    extras: dict[str, Any] = {key: value for key, value in method.network_extras.items() if value}
    if methods.describe(name).base_objective == methods.PREALLOCATED:
        extras["preallocated"] = n_new + 1
    return extras


def step(
    config: NetworkConfig, classes: tuple[int, int], batch: int, crop: int, **extras: Any
) -> Step:
    """Draw a step's networks and a batch; ``classes``: old and new outputs, ``extras`` as above."""
    n_old, n_new = classes
    teacher = drawn(config, [n_old], **extras)
    network = widened(teacher, n_new, seed=1)
    generator = torch.Generator().manual_seed(2)
    importances = {
        f"{kind}/{statistic}/{parameter}": torch.rand(value.shape, generator=generator)
        for kind, statistics in STATISTICS.items()
        for statistic in statistics
        for parameter, value in teacher.named_parameters()
    }
    new = range(n_old, n_old + n_new)
    return Step(network, teacher, importances, images(batch, crop), labels(batch, crop, new))
