"""Losses and gradients of every method on the device against float64 on the CPU.

A training iteration of a small network: forward pass of student and teacher, losses, penalty, and
the gradients of all parameters together (norm of the difference over the norm). Batch norm makes
the gradients of a network with random weights sensitive: what rounding does to them is large in
bfloat16 on any device. So the device is judged by what the CPU makes of it in the same precision.
The losses alone, given the same maps in both precisions, have limits of their own: nothing but
float32's rounding is left there.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import networks
from benchmarks.on_gpu import Machine, judged
from benchmarks.table import Row
from ciss import methods
from ciss.methods.base import Batch, Method
from ciss.models import NetworkConfig, NetworkOutput
from ciss.training import Recipe, Training

GROUP = "GPU: correctness"
OLD, NEW = 5, 2
#: how many times the CPU's error in the same precision the device's may be
FACTOR = {"fp32": 3.0, "bf16": 1.5}
#: but never as large as that of no gradient at all, 1
LARGEST = 0.9
#: smaller relative errors are none, in losses and gradients
NONE = {"fp32": (1e-5, 1e-4), "bf16": (1e-2, 2e-2)}
#: largest relative errors of the losses alone
TOLERANCE = (1e-5, 1e-4)
#: standard deviation of the logits that the losses alone see: no sigmoid is 1 in float32
SPREAD = 3.0


def step_of(name: str, config: NetworkConfig, batch: int, crop: int) -> networks.Step:
    """Draw networks of the kind that a method needs, and a batch."""
    return networks.step(config, (OLD, NEW), batch, crop, **networks.extras_of(name, OLD, NEW))


def method_of(name: str, step: networks.Step, device: torch.device, dtype: torch.dtype) -> Method:
    """Make a method with what the step before would have left it."""
    method = methods.create(name, {}, OLD, NEW)
    on_device = {key: value.to(device, dtype) for key, value in step.importances.items()}
    previous = {key: p.detach().to(device, dtype) for key, p in step.teacher.named_parameters()}
    method.load_importances(on_device, previous)
    if name == "plop":
        method.load_state_dict({"thresholds": torch.full((OLD,), 0.02, device=device)})
    return method


def iteration(
    name: str, step: networks.Step, device: torch.device, precision: str
) -> tuple[Tensor, Tensor]:
    """Train on the batch once; returns the loss and the gradients in one vector, both float64."""
    dtype = torch.float64 if precision == "fp64" else torch.float32
    network, teacher = (copy.deepcopy(each).to(dtype) for each in (step.network, step.teacher))
    recipe = Recipe(1, 1e-3, precision="fp32" if precision == "fp64" else precision)
    method = method_of(name, step, device, dtype)
    training = Training(network, teacher, method, recipe, 10**6, device)
    terms, _ = training.update(step.images.to(device, dtype), step.labels.to(device))
    loss = torch.stack([term.double() for term in terms.values()]).sum()
    gradients = [p.grad.reshape(-1).double() for p in network.parameters() if p.grad is not None]
    return loss.cpu(), torch.cat(gradients).cpu()


def losses_alone(
    name: str, step: networks.Step, device: torch.device, double: bool
) -> tuple[Tensor, ...]:
    """The same of the losses, given the maps of the float32 networks."""
    dtype = torch.float64 if double else torch.float32
    with torch.no_grad():
        given = [net.eval()(step.images).allocated for net in (step.network, step.teacher)]
    student, teacher = (_moved(_scaled(output), device, dtype) for output in given)
    leaves = [student.small_logits, student.body, student.pre_logits, *student.attentions]
    leaves += [student.unknown] if student.unknown is not None else []
    for leaf in leaves:
        leaf.requires_grad_()
    method = method_of(name, step, device, dtype)
    seen = teacher if method.needs_teacher else None
    terms = method.losses(Batch(step.labels.to(device), student, seen))
    loss = torch.stack([term.double() for term in terms.values()]).sum()
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    flat = [gradient.reshape(-1).double() for gradient in gradients if gradient is not None]
    return loss.detach().cpu(), torch.cat(flat).cpu()


def _scaled(output: NetworkOutput) -> NetworkOutput:
    factor = SPREAD / output.small_logits.std()
    unknown = None if output.unknown is None else output.unknown * factor
    return output._replace(small_logits=output.small_logits * factor, unknown=unknown)


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move the tensors of a network's output."""
    if isinstance(value, Tensor):
        return value.detach().to(device, dtype, copy=True)
    if isinstance(value, list):
        return [_moved(each, device, dtype) for each in value]
    if hasattr(value, "_fields"):
        return type(value)(*[_moved(each, device, dtype) for each in value])
    return value


def errors(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> tuple[float, float]:
    """Relative errors of a loss and of a vector of gradients."""
    (loss, gradient), (loss_64, gradient_64) = found, expected
    of_loss = float((loss - loss_64).abs() / loss_64.abs())
    return of_loss, float((gradient - gradient_64).norm() / gradient_64.norm())


def rows(machine: Machine) -> Iterator[Row]:
    """A row for the loss and one for the gradients of each method and precision."""
    config = networks.TINY if machine.tiny else NetworkConfig("resnet18")
    batch, crop = (4 if machine.tiny else 8), 64
    cpu = torch.device("cpu")
    for name in methods.trained_names():
        step = step_of(name, config, batch, crop)
        exact = iteration(name, step, cpu, "fp64")
        for precision, none in NONE.items():
            found = errors(iteration(name, step, machine.device, precision), exact)
            usual = errors(iteration(name, step, cpu, precision), exact)
            limits = [
                min(max(FACTOR[precision] * error, floor), LARGEST)
                for error, floor in zip(usual, none, strict=True)
            ]
            yield from _rows(f"{name}, {precision}", found, limits)
        alone = losses_alone(name, step, machine.device, double=False)
        found = errors(alone, losses_alone(name, step, cpu, double=True))
        yield from _rows(f"{name}, losses alone, fp32", found, TOLERANCE)


def _rows(what: str, found: tuple[float, float], limits: Sequence[float]) -> Iterator[Row]:
    note = (
        "Correctness: relative errors against float64 on the CPU, one training iteration; the aim "
        f"is {FACTOR['fp32']:g} times (bf16: {FACTOR['bf16']:g} times) the CPU's own error."
    )
    for part, error, limit in zip(("loss", "gradients"), found, limits, strict=True):
        yield judged(GROUP, f"{what}: {part}", error, limit, "ppm", scale=1e6, note=note)
