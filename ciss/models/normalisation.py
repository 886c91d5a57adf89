"""Batch norm followed by a leaky ReLU, the unit that every convolution of the network ends in.

Three kinds compute it, with the state-dict keys of ``torch.nn.BatchNorm2d``:

``abn``
    act(x̂ · (|w| + ε) + b), ε = 1e-5, which is what the inplace-abn package computes (Rota Bulò
    et al., CVPR 2018): the scale stays positive, so that the activation can be inverted. The
    published weights were trained with it.
``bn``
    act(x̂ · w + b), the ordinary batch norm of torchvision's weights.
``iabn``
    the inplace-abn package itself: values of ``abn``, less memory on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ciss.errors import CissError

NORMS = ("abn", "bn", "iabn")
EPS = 1e-5
SLOPE = 0.01


class _SynchronisedBatchNorm(torch.autograd.Function):
    """Batch norm with the mean and variance of the batch that all processes hold together.

    The same values and gradients as one process with the whole batch would have, whatever the
    processes' shares: one exchange of 2 C + 1 numbers forward and of 2 C backward, and nothing
    kept for the backward pass but the input. All processes compute the same statistics, bit for
    bit, so that their running ones stay equal.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        scale: Tensor,
        shift: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
    ) -> Tensor:
        channels = input.shape[1]
        # Statistics in float32 at least, whatever the precision of the forward pass.
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        count = mean.new_full((1,), input.numel() // channels)
        own = torch.cat([mean, variance, count])
        everyone = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(everyone, own)
        means, variances, counts = torch.stack(everyone).split([channels, channels, 1], 1)
        total = counts.sum()
        shares = counts / total
        mean = (shares * means).sum(0)
        variance = (shares * (variances + (means - mean).square())).sum(0)
        unbiased = variance * (total / (total - 1).clamp(min=1))
        running_mean.lerp_(mean.to(running_mean), momentum)
        running_var.lerp_(unbiased.to(running_var), momentum)
        ctx.save_for_backward(input, scale, mean, variance, total)
        return F.batch_norm(input, mean, variance, scale, shift, eps=EPS)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input, scale, mean, variance, total = ctx.saved_tensors
        # As if the statistics were constants; then what flows through them.
        direct, of_scale, of_shift = torch.ops.aten.native_batch_norm_backward(
            gradients[0], input, scale, mean, variance, None, None, False, EPS, [True] * 3
        )
        sums = torch.cat([of_scale, of_shift])
        dist.all_reduce(sums)
        sum_scale, sum_shift = (sums / total).chunk(2)
        deviation = torch.rsqrt(variance + EPS)
        slope = -scale * deviation.square() * sum_scale
        offset = -scale * deviation * sum_shift - slope * mean
        through = torch.addcmul(offset[:, None, None], input, slope[:, None, None])
        return (direct + through).to(input.dtype), of_scale, of_shift, None, None, None


class ActivatedBatchNorm(nn.BatchNorm2d):
    """Batch norm and, where ``activated``, a leaky ReLU of slope 0.01, over [B, C, H, W].

    ``absolute`` scales by |weight| + ε (``abn``), else by the weight itself (``bn``).
    """

    #: whether training statistics are those of the batch over all processes
    synchronised = False

    def __init__(self, channels: int, *, absolute: bool = True, activated: bool = True) -> None:
        super().__init__(channels, eps=EPS)
        self.absolute = absolute
        self.activated = activated

    def forward(self, input: Tensor) -> Tensor:
        """Normalise, scale, shift and activate ``input``."""
        scale = self.weight.abs() + self.eps if self.absolute else self.weight
        if self.training:
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        if self.training and self.synchronised:
            output = _SynchronisedBatchNorm.apply(
                input, scale, self.bias, self.running_mean, self.running_var, self.momentum or 0.0
            )
        else:
            output = F.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                scale,
                self.bias,
                self.training,
                self.momentum or 0.0,
                self.eps,
            )
        # Batch norm's backward reads its input, never its output, so this may overwrite it.
        return F.leaky_relu(output, SLOPE, inplace=True) if self.activated else output

    def extra_repr(self) -> str:
        """Show the kind beside what ``BatchNorm2d`` shows."""
        kind = "abn" if self.absolute else "bn"
        return f"{super().extra_repr()}, kind={kind}, activated={self.activated}"


def make_norm(kind: str, channels: int, *, activated: bool = True) -> nn.Module:
    """Return a normalisation of ``kind`` (``abn``, ``bn``, ``iabn``) for ``channels`` channels.

    Raises ``CissError`` when the kind is unknown, or ``iabn`` is asked for and not installed.
    """
    if kind not in NORMS:
        raise CissError(f"normalisation '{kind}' is unknown; choose one of {', '.join(NORMS)}")
    if kind == "iabn":
        activation = {"activation": "leaky_relu", "activation_param": SLOPE}
        if not activated:
            activation = {"activation": "identity"}
        return _inplace_abn()(channels, eps=EPS, **activation)
    return ActivatedBatchNorm(channels, absolute=kind == "abn", activated=activated)


def synchronise(network: nn.Module) -> nn.Module:
    """Make every normalisation of ``network`` use statistics over all processes, in place.

    Does nothing in a single process. Raises ``CissError`` for the kind ``iabn``, whose
    synchronised form needs a process group that its package ignores by default (its issue 219).
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return network
    for module in network.modules():
        if isinstance(module, ActivatedBatchNorm):
            module.synchronised = True
        elif is_norm(module):
            raise CissError(
                "normalisation 'iabn' cannot be synchronised over processes here; "
                "set norm to 'abn' (same checkpoint, same values) to train on several GPUs"
            )
    return network


def is_norm(module: nn.Module) -> bool:
    """Tell whether ``module`` is what ``make_norm`` returns, of any kind."""
    return isinstance(module, ActivatedBatchNorm) or type(module).__name__ == "InPlaceABN"


def norm_weights(network: nn.Module) -> Iterator[str]:
    """Names of the scales of all normalisations in the state dict of ``network``."""
    for name, module in network.named_modules():
        if is_norm(module):
            yield f"{name}.weight"


def signed_scale(weight: Tensor) -> Tensor:
    """Scale of ``bn`` that does what ``weight`` does in ``abn``: |w| + ε."""
    return weight.abs() + EPS


def absolute_scale(weight: Tensor, name: str) -> Tensor:
    """Scale of ``abn`` that does what ``weight`` does in ``bn``; ``CissError`` where none does."""
    if bool((weight < EPS).any()):
        raise CissError(
            f"{name} has negative or vanishing scales, which normalisation 'abn' cannot express; "
            "set norm to 'bn' to use these weights"
        )
    return weight - EPS


def _inplace_abn() -> Any:
    try:
        from inplace_abn import InPlaceABN
    except ImportError as error:
        raise CissError(
            "normalisation 'iabn' needs the inplace-abn package: install it with "
            "`pip install --no-build-isolation 'ciss[iabn]'`, or set norm to 'abn', "
            "which gives the same values from the same checkpoint"
        ) from error
    return InPlaceABN
