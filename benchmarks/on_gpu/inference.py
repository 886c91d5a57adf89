"""Attribution and evaluation on the device."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from benchmarks import attribution, evaluation, networks
from benchmarks.on_gpu import Machine
from benchmarks.table import Row
from ciss.attribution import attribute
from ciss.models import NetworkConfig

ATTRIBUTION = "GPU: attribution"
EVALUATION = "GPU: evaluation"


def attribution_rows(machine: Machine) -> Iterator[Row]:
    """The closed form against integrated gradients, and alone on larger batches."""
    config = networks.TINY if machine.tiny else NetworkConfig("resnet101")
    crop, classes, steps = (64, 3, 4) if machine.tiny else (512, 50, 50)
    given = attribution.inputs(config, crop, classes, str(machine.device))
    what = f"{config.backbone} at {crop} × {crop}"
    for row in attribution.measure(given, what, machine.rounds, steps):
        yield replace(row, group=ATTRIBUTION)
    batch = 2 if machine.tiny else 16
    network = networks.drawn(config, [101]).to(machine.device)
    new = range(101, 101 + classes)
    images = networks.images(batch, crop).to(machine.device)
    labels = networks.labels(batch, crop, new).to(machine.device)
    work = partial(attribute, network, [(images, labels)], new)
    times = machine.alternate({"closed form": work})["closed form"]
    speed = [batch / seconds for seconds in times]
    yield Row(
        ATTRIBUTION,
        f"closed form, {classes} new classes, batch {batch}",
        "images/s",
        ours=statistics.median(speed),
        spread=(min(speed), max(speed)),
        rounds=len(speed),
        note=f"Attribution: {config.backbone}, {crop}², float32, the zero image included.",
    )


def evaluation_rows(machine: Machine) -> Iterator[Row]:
    """Blocks of rows of the logits against all of them, VOC's and ADE's classes."""
    config = networks.TINY if machine.tiny else NetworkConfig("resnet101")
    images, crop = (3, 32) if machine.tiny else (64, 512)
    for classes in (21, 151):
        found = evaluation.measure(
            config, classes, images, crop, str(machine.device), machine.rounds
        )
        yield replace(found, group=EVALUATION)
