"""A training iteration as class-incremental code bases write it.

All logits are upsampled at once, for student and teacher; importances of parameters are kept and
updated tensor by tensor; a teacher runs from the images on, though all but its classifiers may be
the student's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reference import losses
from ciss.datasets.base import UNKNOWN
from ciss.models import SegmentationNetwork
from ciss.models.network import NetworkOutput

#: methods that hold parameters by importances, by the statistics that these are made of
STATISTICS = {"ewc": ("fisher",), "pi": ("score",), "rw": ("fisher", "score")}
WITH_TEACHER = ("lwf", "lwf-mc", "ilt", "mib", "plop", "ssul")
NAMES = ("ft", *WITH_TEACHER, *STATISTICS, "dft")
#: an old class is the label of a background pixel from this sigmoid of the teacher's on (SSUL)
CONFIDENCE = 0.7
#: θ of the statistics below may be 0 apart
DAMPING = 1e-8


class Importances:
    """Penalty on moved parameters, and what the next step's penalty is made of."""

    def __init__(
        self, kind: str, network: SegmentationNetwork, before: Mapping[str, Tensor], old: Mapping
    ) -> None:
        self.kind = kind
        self.old = dict(old)
        self.weights = {}
        for name in self.old:
            scaled = []
            for statistic in STATISTICS[kind]:
                values = before[f"{kind}/{statistic}/{name}"]
                low, high = values.min(), values.max()
                scaled.append((values - low) / (high - low + 1e-8))
            self.weights[name] = sum(scaled)
        parameters = {name: p.detach() for name, p in network.named_parameters()}
        self.fisher = {
            name: before[f"{kind}/fisher/{name}"].clone()
            if "fisher" in STATISTICS[kind] and name in self.old
            else torch.ones_like(p)
            for name, p in parameters.items()
        }
        self.path = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.last = {name: p.clone() for name, p in parameters.items()}
        self.iteration = 0

    @torch.no_grad()
    def update(self, network: SegmentationNetwork) -> None:
        """See the loss's gradients."""
        for name, p in network.named_parameters():
            assert p.grad is not None
            if self.kind == "pi":
                self.path[name] += p.grad * (self.last[name] - p)
                self.last[name] = p.detach().clone()
                continue
            if self.kind == "rw" and self.iteration % 10 == 0:
                moved = p - self.last[name]
                distance = 0.5 * self.fisher[name] * moved**2 + DAMPING
                self.path[name] -= p.grad * moved / distance
                self.last[name] = p.detach().clone()
            self.fisher[name] = 0.9 * p.grad**2 + 0.1 * self.fisher[name]
        self.iteration += 1

    def penalty(self, network: SegmentationNetwork) -> Tensor:
        total = torch.zeros(())
        for name, p in network.named_parameters():
            if name in self.old:
                total = total + (self.weights[name] * (p - self.old[name]) ** 2).sum()
        return 100 * total


def trained_parts(name: str, network: SegmentationNetwork) -> list[tuple[nn.Module, float]]:
    """What a method trains, with factors on the learning rate; what it does not is frozen."""
    if name not in ("dft", "ssul"):
        return [(network, 1.0)]
    network.requires_grad_(False).eval()
    newest = network.classifiers[-1]
    if name == "dft":
        assert network.future is not None
        parts: list[tuple[nn.Module, float]] = [(newest, 1.0), (network.future, 1.0)]
    else:
        assert network.unknown is not None
        parts = [(newest, 10.0), (network.unknown, 10.0), (network.classifiers[0], 1e-3)]
    for part, _ in parts:
        part.requires_grad_()
    return parts


def ssul(student: NetworkOutput, teacher: NetworkOutput, labels: Tensor) -> losses.Terms:
    """Sigmoid cross-entropy on labels that the teacher completes; the last output: the unknown."""
    ours, its = (
        losses.upsample(torch.cat([output.small_logits, output.unknown], dim=1), labels)
        for output in (student, teacher)
        if output.unknown is not None
    )
    score, predicted = torch.sigmoid(its).max(dim=1)
    is_old = (predicted != 0) & (predicted != its.shape[1] - 1) & (score >= CONFIDENCE)
    is_open = (labels == 0) | (labels == UNKNOWN)
    labels = torch.where(is_old & is_open, predicted, labels)
    labels = torch.where(labels == UNKNOWN, ours.shape[1] - 1, labels)
    known = labels != losses.VOID
    targets = torch.zeros_like(ours)
    targets.scatter_(1, (labels * known)[:, None], 1.0)
    per_class = F.binary_cross_entropy_with_logits(ours, targets, reduction="none")
    of_image = (per_class.sum(dim=1) * known).sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp(min=1)
    return {"classification": of_image.mean()}


class Training:
    """Student, teacher and optimiser of a step after 0."""

    def __init__(
        self,
        name: str,
        network: SegmentationNetwork,
        teacher: SegmentationNetwork,
        lr: float,
        importances: Mapping[str, Tensor],
    ) -> None:
        self.name, self.network, self.teacher = name, network.train(), teacher.eval()
        self.optimiser = torch.optim.SGD(
            [
                {"params": list(part.parameters()), "lr": factor * lr}
                for part, factor in trained_parts(name, network)
            ],
            momentum=0.9,
            weight_decay=1e-4,
            nesterov=True,
        )
        self.held: Importances | None = None
        if name in STATISTICS:
            old = {key: p.detach().clone() for key, p in teacher.named_parameters()}
            self.held = Importances(name, network, importances, old)

    def update(self, images: Tensor, labels: Tensor) -> float:
        """Train on one batch; returns the loss without the penalty."""
        self.optimiser.zero_grad()
        student = self.network(images)
        teacher = None
        if self.name in WITH_TEACHER:
            with torch.no_grad():
                teacher = self.teacher(images)
        loss = torch.stack([*self.terms(student, teacher, labels).values()]).sum()
        loss.backward()
        if self.held is not None:
            self.held.update(self.network)
            self.held.penalty(self.network).backward()
        self.optimiser.step()
        return loss.item()

    def terms(
        self, student: NetworkOutput, teacher: NetworkOutput | None, labels: Tensor
    ) -> losses.Terms:
        n_old = self.teacher.n_classes
        if self.name == "dft":
            assert student.future_logits is not None
            every = torch.cat([student.small_logits, student.future_logits], dim=1)
            return losses.ft(every, every, labels, n_old)
        if teacher is None:
            return losses.ft(student.small_logits, student.small_logits, labels, n_old)
        if self.name == "ssul":
            return ssul(student, teacher, labels)
        name = "lwf" if self.name == "ilt" else self.name
        found = losses.LOSSES[name](student.small_logits, teacher.small_logits, labels, n_old)
        if self.name == "ilt":
            found["features"] = 100 * F.mse_loss(student.body, teacher.body)
        if self.name == "plop":
            found["pod"] = self.pod(student, teacher)
        return found

    def pod(self, student: NetworkOutput, teacher: NetworkOutput) -> Tensor:
        n_old, n_all = self.teacher.n_classes, self.network.n_classes
        ours, its = [*student.attentions, student.pre_logits], [*teacher.attentions]
        its.append(teacher.pre_logits)
        found = [0.01 * losses.local_pod(a, b) for a, b in zip(ours, its, strict=True)]
        # New classes count as what the teacher takes them for, background.
        folded = student.small_logits[:, :n_old].clone()
        folded[:, 0] = folded[:, 0] + student.small_logits[:, n_old:].sum(dim=1)
        found.append(0.0005 * losses.local_pod(folded, teacher.small_logits))
        return math.sqrt(n_all / (n_all - n_old)) * torch.stack(found).mean()
