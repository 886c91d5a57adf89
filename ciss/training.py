"""The training loop of one step, and what it takes to go on after an interruption."""

from __future__ import annotations

import math
import time
import warnings
from collections import deque
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, cast

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ciss import distributed, freezing
from ciss.datasets.base import BACKGROUND, UNKNOWN
from ciss.errors import CissError
from ciss.loading import Batch as LoadedBatch
from ciss.loading import (
    Share,
    TrainingBatches,
    TrainingImages,
    shared_reading,
    to_network_input,
    to_network_labels,
)
from ciss.methods.base import Batch, Method
from ciss.metrics import confusion_matrix, iou, mean_iou
from ciss.models import SegmentationNetwork, synchronise
from ciss.models.network import NetworkOutput
from ciss.pixelwise import Upsampled, full_precision
from ciss.progress import Progress
from ciss.pseudo_labels import completed
from ciss.runtime import Runtime, StopRequest, log, peak_memory_mb, precision_for
from ciss.units import duration

#: iterations between two looks at the losses; each look makes the CPU wait for the GPU
_CHECK_EVERY = 20


@dataclass(frozen=True)
class Recipe:
    """How one step is trained; see ``config.yaml`` for the reasons of the defaults.

    Raises ``CissError`` where there are more micro-batches than images.
    """

    epochs: int = field(metadata={"help": "passes over the step's images", "least": 1})
    lr: float = field(metadata={"help": "learning rate of the first iteration", "least": 0})
    batch: int = field(
        default=24, metadata={"help": "images in a batch, over all processes", "least": 2}
    )
    accumulate: int = field(
        default=1,
        metadata={"help": "micro-batches that a batch is split into to save memory", "least": 1},
    )
    crop: int = field(default=512, metadata={"help": "side of the crops, pixels", "least": 16})
    momentum: float = field(default=0.9, metadata={"help": "Nesterov momentum", "least": 0})
    weight_decay: float = field(default=1e-4, metadata={"help": "on every parameter", "least": 0})
    power: float = field(
        default=0.9, metadata={"help": "exponent of the learning rate's decay", "least": 0}
    )
    precision: str = field(default="auto", metadata={"help": "auto, fp32, bf16 or fp16"})

    def __post_init__(self) -> None:
        if self.accumulate > self.batch:
            raise CissError(
                f"recipe.accumulate is {self.accumulate}, more micro-batches than recipe.batch has "
                f"images, {self.batch}; choose a divisor of it"
            )


class InterruptedTrainingError(CissError):
    """The run was asked to leave; the progress that it has made is saved."""


def poly_lr(base: float, iteration: int, iterations: int, power: float) -> float:
    """Learning rate at ``iteration`` (from 0) of ``iterations``: base · (1 − t/T)^power."""
    return float(base * (1 - iteration / iterations) ** power)


class Training:
    """One step's networks, method and optimiser, moved on one batch at a time by ``update``.

    ``teacher`` is the network of the step before, or ``None`` at step 0. The optimiser is SGD with
    Nesterov momentum over the parameters that the method trains, mostly all of them, weight decay
    on every one (as published). What it does not train is frozen, batch norm's statistics too, and
    the modules or parameters that ``frozen`` names.

    Of several processes each has all of this and a share of every batch. Gradients are averaged
    over them and batch norm is synchronised, so that they take the step that one process with
    the whole batch would, and stay equal.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        teacher: SegmentationNetwork | None,
        method: Method,
        recipe: Recipe,
        iterations: int,
        device: torch.device,
        frozen: Collection[str] = (),
    ) -> None:
        self.network = network.to(device)
        self.teacher = None if teacher is None else teacher.to(device).eval().requires_grad_(False)
        self.method = method
        factors = freezing.learning_rate_factors(network, method.trained(network))
        factors = freezing.without(factors, frozen)
        freezing.freeze_others(network, factors)
        freezing.train_mode(network)
        #: whether the teacher's features are the student's, which need not be computed twice
        self.shares_features = self.teacher is not None and all(
            not any(parameter.requires_grad for parameter in ours.parameters())
            and freezing.equal_modules(ours, its)
            for ours, its in ((network.body, self.teacher.body), (network.head, self.teacher.head))
        )
        self.recipe = recipe
        self.iterations = iterations
        self.iteration = 0
        self.device = device
        self.dtype = precision_for(recipe.precision, device)
        #: factors on the learning rate, of the optimiser's groups
        self.factors = tuple(dict.fromkeys(factors.values()))
        self.optimiser = torch.optim.SGD(
            [
                {"params": [p for n, p in network.named_parameters() if factors.get(n) == factor]}
                for factor in self.factors
            ],
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        #: what runs forward; the methods see the bare network, whose parameters have no prefix
        self.replica = self._replicated() if distributed.several() else self.network

    def _replicated(self) -> DistributedDataParallel:
        synchronise(self.network)
        with warnings.catch_warnings():
            # The first argument's new name is not known before torch 2.13.
            warnings.simplefilter("ignore", FutureWarning)
            replica = DistributedDataParallel(
                self.network,
                # Statistics are equal without being sent around.
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        # After its first backward pass it groups the gradients anew, and then adds them up in
        # another order. That pass is made here, so that a run that goes on after an interruption
        # does the same additions as one that was not interrupted.
        self.network.eval()
        size = 32
        output = replica(next(self.network.parameters()).new_zeros(1, 3, size, size)).allocated
        outputs = [output.small_logits, *([] if output.unknown is None else [output.unknown])]
        torch.stack([values.sum() for values in outputs]).sum().backward()
        self.optimiser.zero_grad(set_to_none=True)
        freezing.train_mode(self.network)
        return replica

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        return poly_lr(self.recipe.lr, self.iteration, self.iterations, self.recipe.power)

    def autocast(self) -> torch.autocast:
        """The context in which networks run forward."""
        return torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32
        )

    def update(
        self,
        images: Tensor,
        labels: Tensor,
        share: Share | None = None,
        exemplars: Tensor | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Train on one batch: network inputs [B, 3, H, W] and labels int64 [B, H, W].

        ``share`` says which part of the batch this is, and how it is split (default: the whole);
        ``exemplars``, bool [B] on the CPU, which images are exemplars (default: none).
        Returns the terms of the whole batch's loss, detached, and the small scores of the classes,
        [B, N, h, w].
        The method sees the gradients of its losses before its penalty is added, and the
        parameters before they move (the published order).
        """
        share = share or Share((len(images),), len(images))
        for group, factor in zip(self.optimiser.param_groups, self.factors, strict=True):
            group["lr"] = self.lr * factor
        self.optimiser.zero_grad(set_to_none=True)
        means: dict[str, Tensor] = {}
        small_scores = []
        if exemplars is None:
            exemplars = torch.zeros(len(images), dtype=torch.bool)
        sizes = share.sizes
        parts = zip(images.split(sizes), labels.split(sizes), exemplars.split(sizes), strict=True)
        for number, part in enumerate(parts, start=1):
            with self._exchange(last=number == len(sizes)):
                terms, logits = self._backward(*part, share.batch)
            means = {name: means.get(name, 0) + term for name, term in terms.items()}
            small_scores.append(logits)
        self.scaler.unscale_(self.optimiser)
        self.method.after_backward(self.network)
        penalty = self.method.penalty(self.network)
        if penalty is not None:
            penalty.backward()
            # All processes have the whole of it; their shares add up to one.
            means["penalty"] = penalty.detach() * (len(images) / share.batch)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.iteration += 1
        return _over_processes(means), torch.cat(small_scores)

    def _exchange(self, *, last: bool) -> AbstractContextManager[None]:
        """Gradients are exchanged once, in the backward pass of the last micro-batch."""
        if last or not isinstance(self.replica, DistributedDataParallel):
            return nullcontext()
        return self.replica.no_sync()

    def _backward(
        self, images: Tensor, labels: Tensor, exemplars: Tensor, batch: int
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Add the gradients of some images of a batch of ``batch``.

        The terms of the loss are means over images; each counts as many times as there are images.
        Returns their parts of the whole batch's mean, and the small scores.
        """
        weight = len(images) / batch
        with self.autocast():
            student = self.replica(images)
            with torch.no_grad():
                seen = self._teacher_output(images, student)
                labels = self._with_exemplars_completed(labels, images, exemplars, student, seen)
        terms = self.method.losses(Batch(labels, student, seen))
        total = torch.stack([full_precision(term) for term in terms.values()]).sum()
        # The exchange of gradients averages, where these parts are to be added.
        self.scaler.scale(total * (weight * distributed.size())).backward()
        parts = {name: term.detach() * weight for name, term in terms.items()}
        return parts, student.small_scores.detach()

    def _teacher_output(self, images: Tensor, student: NetworkOutput) -> NetworkOutput | None:
        """Run the teacher, where the method needs it; its classifiers alone, where they suffice."""
        if self.teacher is None or not self.method.needs_teacher:
            return None
        if self.shares_features:
            return self.teacher.output(student.features, student.size)
        return cast("NetworkOutput", self.teacher(images))

    def _with_exemplars_completed(
        self,
        labels: Tensor,
        images: Tensor,
        exemplars: Tensor,
        student: NetworkOutput,
        seen: NetworkOutput | None,
    ) -> Tensor:
        """Label old classes in the background of exemplars, where the teacher is sure of them."""
        confidence = self.method.exemplar_confidence
        if confidence is None or self.teacher is None or not exemplars.any():
            return labels
        chosen = exemplars.nonzero()[:, 0].to(labels.device)
        if seen is not None:
            logits = seen.small_logits[chosen]
        elif self.shares_features:
            logits = self.teacher.classify(student.pre_logits[chosen])
        else:
            logits = self.teacher(images[chosen]).small_logits
        found = completed(
            labels[chosen],
            Upsampled(logits, student.size),
            confidence,
            sigmoid=self.method.sigmoid_outputs,
        )
        return labels.index_copy(0, chosen, found)

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


def _over_processes(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sum each scalar over the processes, in one exchange."""
    values = torch.stack([full_precision(value) for value in means.values()])
    return dict(zip(means, distributed.total(values).unbind(), strict=True))


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
    Raises ``InterruptedTrainingError`` after saving when ``stop`` asks for it (before the first
    iteration there is nothing to save), ``CissError`` when a loss is not finite.
    """
    recipe = training.recipe
    batches = TrainingBatches(
        images,
        recipe.batch,
        accumulate=recipe.accumulate,
        **shared_reading(runtime, training.device),
    )
    totals = EpochTotals(training, images)
    rows: list[dict[str, float]] = []
    state = _agreed_state(progress)
    if state is None:
        with training.autocast():
            training.method.prepare(training.teacher, _prepared(training, batches, stop))
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
            labels = to_network_labels(raw_labels.to(training.device, non_blocking=True))
            inputs = to_network_input(pixels.to(training.device, non_blocking=True))
            exemplars = indices >= len(images)
            terms, small_scores = training.update(inputs, labels, batches.share, exemplars)
            totals.add(terms, small_scores, labels, indices)
            reason = stop.agreed()
            # After an epoch's last batch the epoch is finished first: its row belongs to it.
            if reason is not None and training.iteration % len(batches):
                save()
                raise _interruption(training, reason)
        rows.append(totals.finish(epoch, training))
        totals = EpochTotals(training, images)
        log.info(_epoch_line(rows[-1], training))
        save()
        reason = stop.agreed()
        if reason is not None and training.iteration < training.iterations:
            raise _interruption(training, reason)
    return pd.DataFrame(rows)


def _agreed_state(progress: Progress) -> dict[str, Any] | None:
    """Load the progress in every process; ``CissError`` where they do not find the same."""
    # The main process first: it clears away what is damaged.
    state = distributed.main_first(progress.load)
    found = distributed.gathered(None if state is None else state["training"]["iteration"])
    if len(set(found)) > 1:
        raise CissError(
            f"the processes of this job do not read the same progress from {progress.path}; start "
            "it again, or delete the file to begin anew"
        )
    return state


def _interruption(training: Training, reason: str) -> InterruptedTrainingError:
    return InterruptedTrainingError(
        f"stopped by {reason} after iteration {training.iteration} of "
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
            disable=None if distributed.is_main() else True,
            leave=False,
        )
    )


class EpochTotals:
    """What an epoch's history row is made of; kept on the device until it is looked at.

    Counts are this process's own until they are needed; sums of losses are the whole batches'.
    """

    def __init__(self, training: Training, images: TrainingImages) -> None:
        self.training = training
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
        #: terms, positions of the images, iteration
        self._unchecked: deque[tuple[dict[str, Tensor], Tensor, int]] = deque()

    def add(
        self,
        terms: dict[str, Tensor],
        small_scores: Tensor,
        labels: Tensor,
        indices: Tensor,
    ) -> None:
        """Add one batch; every few batches, check that its losses are finite."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value
        small_labels = F.interpolate(labels[:, None].float(), small_scores.shape[-2:])[:, 0].long()
        if self.training.network.unknown is not None:
            small_labels[small_labels == UNKNOWN] = BACKGROUND
        # Labels call old classes background where predictions do not: no score of a new class
        # looks at the difference.
        self.confusion += confusion_matrix(
            small_labels, small_scores.argmax(1), len(self.confusion), checked=False
        )
        self.batches += 1
        self.images += len(indices)
        self._unchecked.append((terms, indices, self.training.iteration))
        if small_scores.device.type == "cpu" or len(self._unchecked) >= _CHECK_EVERY:
            self._check()

    def _check(self) -> None:
        while self._unchecked:
            terms, indices, iteration = self._unchecked.popleft()
            values = torch.stack([term.float() for term in terms.values()]).tolist()
            for name, value in zip(terms, values, strict=True):
                if not math.isfinite(value):
                    raise self._diverged(name, value, indices, iteration, "penalty" in terms)

    def _diverged(
        self, term: str, value: float, indices: Tensor, iteration: int, penalised: bool
    ) -> CissError:
        """Say where a loss is no number any more, and what may help."""
        # Losses are the whole batch's, so all processes are here.
        shares = distributed.gathered([self.image_pairs[int(index)][0] for index in indices])
        step = len(self.training.network.classes_per_step) - 1
        advice = ["lower the learning rate"]
        if penalised:
            advice.append("lower the method's importance")
        if self.training.dtype is not torch.float32:
            advice.append("set recipe.precision to fp32")
        return CissError(
            f"step {step}, iteration {iteration} of {self.training.iterations}: the loss term "
            f"'{term}' became {value} on the images {', '.join(chain.from_iterable(shares))}; "
            + " or ".join(advice)
        )

    def finish(self, epoch: int, training: Training) -> dict[str, float]:
        """Return the epoch's history row, after checking the losses not yet looked at."""
        self._check()
        now = time.perf_counter()
        self.seconds += now - self._clock
        means = {name: float(total) / self.batches for name, total in self.sums.items()}
        confusion, images = self._counts()
        return {
            "epoch": epoch + 1,
            "iteration": training.iteration,
            "loss": sum(means.values()),
            **{f"loss_{name}": value for name, value in means.items()},
            "lr": training.lr if training.iteration < training.iterations else 0.0,
            "iou_new": mean_iou(iou(confusion), self.new),
            "images_per_second": images / self.seconds,
            "seconds": self.seconds,
            "memory_mb": distributed.largest(peak_memory_mb(training.device)),
        }

    def _counts(self) -> tuple[Tensor, int]:
        """Confusion matrix and number of images over all processes."""
        images = torch.tensor(self.images)
        return distributed.total(self.confusion), int(distributed.total(images))

    def state_dict(self) -> dict[str, Any]:
        """Return the totals so far; losses that are not finite are found before they are saved."""
        self._check()
        confusion, images = self._counts()
        return {
            "confusion": confusion,
            "sums": self.sums,
            "batches": self.batches,
            "images": images,
            "seconds": self.seconds + time.perf_counter() - self._clock,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` returned; counts go to one process, whatever they were."""
        self.sums = {name: total.to(self.confusion.device) for name, total in state["sums"].items()}
        self.batches, self.seconds = state["batches"], state["seconds"]
        if distributed.is_main():
            self.confusion = state["confusion"].to(self.confusion.device)
            self.images = state["images"]


def _prepared(
    training: Training, batches: TrainingBatches, stop: StopRequest
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the step's batches once, augmented unlike any of the epochs that follow.

    Raises ``InterruptedTrainingError`` before the next batch when ``stop`` asks for it. Each of
    several processes gets equally many batches, and so asks equally often.
    """
    for batch in batches.epoch(training.recipe.epochs):
        reason = stop.agreed()
        if reason is not None:
            raise InterruptedTrainingError(
                f"stopped by {reason} while the method looked at the step's images, before the "
                "first iteration; nothing is saved yet: run it again to start anew, with a longer "
                "time limit if that was too short"
            )
        pixels, labels = (tensor.split(batches.share.sizes) for tensor in batch[:2])
        for part, its_labels in zip(pixels, labels, strict=True):
            inputs = to_network_input(part.to(training.device))
            yield inputs, to_network_labels(its_labels.to(training.device))


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
        f"{row['images_per_second']:.1f} images/s  {duration(left)} left  "
        f"{training.device}  {row['memory_mb']:.0f} MB"
    )
