"""The training loop of one step, and what it takes to go on after an interruption."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ciss.errors import CissError
from ciss.loading import Batch as LoadedBatch
from ciss.loading import TrainingBatches, TrainingImages, to_network_input
from ciss.methods.base import Batch, Method
from ciss.metrics import confusion_matrix, iou, mean_iou
from ciss.models import SegmentationNetwork
from ciss.progress import Progress
from ciss.runtime import Runtime, StopRequest, log, peak_memory_mb, precision_for

#: iterations between two looks at the losses; each look makes the CPU wait for the GPU
_CHECK_EVERY = 20


@dataclass(frozen=True)
class Recipe:
    """How one step is trained; see ``config.yaml`` for the reasons of the defaults."""

    epochs: int = field(metadata={"help": "passes over the step's images"})
    lr: float = field(metadata={"help": "learning rate of the first iteration"})
    batch: int = field(default=24, metadata={"help": "images in a batch"})
    crop: int = field(default=512, metadata={"help": "side of the crops, pixels"})
    momentum: float = field(default=0.9, metadata={"help": "Nesterov momentum"})
    weight_decay: float = field(default=1e-4, metadata={"help": "on every parameter"})
    power: float = field(default=0.9, metadata={"help": "exponent of the learning rate's decay"})
    precision: str = field(default="auto", metadata={"help": "auto, fp32, bf16 or fp16"})


class InterruptedTrainingError(CissError):
    """The run was asked to leave; its progress is saved."""


def poly_lr(base: float, iteration: int, iterations: int, power: float) -> float:
    """Learning rate at ``iteration`` (from 0) of ``iterations``: base · (1 − t/T)^power."""
    return float(base * (1 - iteration / iterations) ** power)


class Training:
    """One step's networks, method and optimiser, moved on one batch at a time by ``update``.

    ``teacher`` is the network of the step before, or ``None`` at step 0. The optimiser is SGD with
    Nesterov momentum over all parameters, weight decay on every one of them (as published).
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        teacher: SegmentationNetwork | None,
        method: Method,
        recipe: Recipe,
        iterations: int,
        device: torch.device,
    ) -> None:
        self.network = network.to(device).train()
        self.teacher = None if teacher is None else teacher.to(device).eval().requires_grad_(False)
        self.method = method
        self.recipe = recipe
        self.iterations = iterations
        self.iteration = 0
        self.device = device
        self.dtype = precision_for(recipe.precision, device)
        self.optimiser = torch.optim.SGD(
            network.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        return poly_lr(self.recipe.lr, self.iteration, self.iterations, self.recipe.power)

    def autocast(self) -> torch.autocast:
        """The context in which networks run forward."""
        return torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32
        )

    def update(self, images: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Train on one batch: network inputs [B, 3, H, W] and labels int64 [B, H, W].

        Returns the terms of the loss, detached, and the small logits [B, N, h, w]. The method sees
        the gradients of its losses before its penalty is added, and the parameters before they
        move (the published order).
        """
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr
        self.optimiser.zero_grad(set_to_none=True)
        with self.autocast():
            student = self.network(images)
            with torch.no_grad():
                old = self.teacher
                seen = None if old is None or not self.method.needs_teacher else old(images)
        terms = self.method.losses(Batch(labels, student, seen))
        total = torch.stack([term.float() for term in terms.values()]).sum()
        self.scaler.scale(total).backward()
        self.scaler.unscale_(self.optimiser)
        self.method.after_backward(self.network)
        penalty = self.method.penalty(self.network)
        if penalty is not None:
            penalty.backward()
            terms = {**terms, "penalty": penalty}
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.iteration += 1
        detached = {name: term.detach() for name, term in terms.items()}
        return detached, student.small_logits.detach()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next update depends on."""
        return {
            "iteration": self.iteration,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "method": self.method.state_dict(),
            "random": torch.get_rng_state(),
            "random_device": _device_random_state(self.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.iteration = state["iteration"]
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        on_device = {name: value.to(self.device) for name, value in state["method"].items()}
        self.method.load_state_dict(on_device)
        torch.set_rng_state(state["random"])
        if state["random_device"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_device"], self.device)


def _device_random_state(device: torch.device) -> Tensor | None:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def train(
    training: Training,
    images: TrainingImages,
    runtime: Runtime,
    progress: Progress,
    stop: StopRequest,
) -> pd.DataFrame:
    """Run a step to its end, from saved progress where there is some; return its history.

    The history has a row an epoch: mean of each loss term, learning rate, IoU of the new classes
    on the training batches (percent, at the feature map's resolution), time and memory.
    Raises ``InterruptedTrainingError`` after saving when ``stop`` asks for it, ``CissError`` when
    a loss is not finite.
    """
    recipe = training.recipe
    batches = TrainingBatches(
        images, recipe.batch, workers=runtime.workers, pin=training.device.type == "cuda"
    )
    totals = EpochTotals(training, images)
    rows: list[dict[str, float]] = []
    state = progress.load()
    if state is None:
        with training.autocast():
            training.method.prepare(training.teacher, _prepared(training, batches))
    else:
        training.load_state_dict(state["training"])
        totals.load_state_dict(state["epoch"])
        rows = state["history"]
        log.info("going on after iteration %d of %d", training.iteration, training.iterations)

    def save() -> None:
        progress.save(
            {
                "training": training.state_dict(),
                "epoch": totals.state_dict(),
                "history": rows,
            }
        )

    for epoch in range(training.iteration // len(batches), recipe.epochs):
        done = training.iteration - epoch * len(batches)
        for pixels, raw_labels, indices in _bar(batches, epoch, done, recipe.epochs):
            labels = raw_labels.to(training.device, non_blocking=True).long()
            inputs = to_network_input(pixels.to(training.device, non_blocking=True))
            terms, small_logits = training.update(inputs, labels)
            totals.add(terms, small_logits, labels, indices)
            # After an epoch's last batch the epoch is finished first: its row belongs to it.
            if stop.reason is not None and training.iteration % len(batches):
                save()
                raise _interruption(training, stop)
        rows.append(totals.finish(epoch, training))
        totals = EpochTotals(training, images)
        log.info(_epoch_line(rows[-1], training))
        save()
        if stop.reason is not None and training.iteration < training.iterations:
            raise _interruption(training, stop)
    return pd.DataFrame(rows)


def _interruption(training: Training, stop: StopRequest) -> InterruptedTrainingError:
    return InterruptedTrainingError(
        f"stopped by {stop.reason} after iteration {training.iteration} of "
        f"{training.iterations}; the progress is saved, run it again to go on"
    )


def _bar(batches: TrainingBatches, epoch: int, done: int, epochs: int) -> Iterator[LoadedBatch]:
    """Show a progress bar on a terminal, and nothing elsewhere."""
    return iter(
        tqdm(
            batches.epoch(epoch, done),
            f"epoch {epoch + 1}/{epochs}",
            len(batches),
            initial=done,
            disable=None,
            leave=False,
        )
    )


class EpochTotals:
    """What an epoch's history row is made of; kept on the device until it is looked at."""

    def __init__(self, training: Training, images: TrainingImages) -> None:
        self.image_pairs = images.pairs
        self.new = range(training.method.n_old or 1, training.method.n_old + training.method.n_new)
        n_classes = training.method.n_old + training.method.n_new
        self.confusion = torch.zeros(
            n_classes, n_classes, dtype=torch.int64, device=training.device
        )
        self.sums: dict[str, Tensor] = {}
        self.batches = 0
        self.images = 0
        self.seconds = 0.0
        self._clock = time.perf_counter()
        self._unchecked: deque[tuple[dict[str, Tensor], Tensor]] = deque()

    def add(
        self,
        terms: dict[str, Tensor],
        small_logits: Tensor,
        labels: Tensor,
        indices: Tensor,
    ) -> None:
        """Add one batch; every few batches, check that its losses are finite."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        small_labels = F.interpolate(labels[:, None].float(), small_logits.shape[-2:])[:, 0].long()
        predicted = small_logits.argmax(1)
        # This step's labels call old classes background: so must predictions, to be comparable.
        predicted[predicted < self.new.start] = 0
        self.confusion += confusion_matrix(
            small_labels, predicted, len(self.confusion), checked=False
        )
        self.batches += 1
        self.images += len(indices)
        self._unchecked.append((terms, indices))
        if small_logits.device.type == "cpu" or len(self._unchecked) >= _CHECK_EVERY:
            self._check()

    def _check(self) -> None:
        while self._unchecked:
            terms, indices = self._unchecked.popleft()
            values = torch.stack([term.float() for term in terms.values()]).tolist()
            for name, value in zip(terms, values, strict=True):
                if value != value or value in (float("inf"), -float("inf")):
                    names = ", ".join(self.image_pairs[int(index)][0] for index in indices)
                    raise CissError(
                        f"the loss term '{name}' became {value} on the images {names}; lower the "
                        "learning rate or set recipe.precision to fp32"
                    )

    def finish(self, epoch: int, training: Training) -> dict[str, float]:
        """Return the epoch's history row, after checking the losses not yet looked at."""
        self._check()
        now = time.perf_counter()
        self.seconds += now - self._clock
        means = {name: float(total) / self.batches for name, total in self.sums.items()}
        return {
            "epoch": epoch + 1,
            "iteration": training.iteration,
            "loss": sum(means.values()),
            **{f"loss_{name}": value for name, value in means.items()},
            "lr": training.lr if training.iteration < training.iterations else 0.0,
            "iou_new": mean_iou(iou(self.confusion), self.new),
            "images_per_second": self.images / self.seconds,
            "seconds": self.seconds,
            "memory_mb": peak_memory_mb(training.device),
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the totals so far; losses that are not finite are found before they are saved."""
        self._check()
        return {
            "confusion": self.confusion,
            "sums": self.sums,
            "batches": self.batches,
            "images": self.images,
            "seconds": self.seconds + time.perf_counter() - self._clock,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned."""
        self.confusion = state["confusion"].to(self.confusion.device)
        self.sums = {name: total.to(self.confusion.device) for name, total in state["sums"].items()}
        self.batches, self.images = state["batches"], state["images"]
        self.seconds = state["seconds"]


def _prepared(training: Training, batches: TrainingBatches) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the step's batches once, augmented unlike any of the epochs that follow."""
    for pixels, labels, _ in batches.epoch(training.recipe.epochs):
        yield to_network_input(pixels.to(training.device)), labels.to(training.device).long()


def _epoch_line(row: dict[str, float], training: Training) -> str:
    losses = "  ".join(
        f"{name.removeprefix('loss_')} {value:.4f}"
        for name, value in row.items()
        if name.startswith("loss_")
    )
    left = row["seconds"] * (training.recipe.epochs - row["epoch"])
    return (
        f"epoch {row['epoch']:.0f}/{training.recipe.epochs}  loss {row['loss']:.4f} ({losses})  "
        f"new classes {row['iou_new']:.1f} %  lr {row['lr']:.2g}  "
        f"{row['images_per_second']:.1f} images/s  {_duration(left)} left  "
        f"{training.device}  {row['memory_mb']:.0f} MB"
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
