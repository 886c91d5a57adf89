"""Which channels of the background classifier speak for a new class (AWT, arXiv 2210.07207).

The attributed quantity is the background logit summed over all pixels, the attributed features
are the classifier's input, and the baseline is that input on a zero (mean-coloured) image.
Integrated gradients need no integration here: the classifier is linear and the upsampling after
it too, so the gradient is the same all along the path, and for the classifier's input ``x``

    attribution = (x - x_zero) · w_background · (adjoint of the upsampling applied to ones)

exactly. Attributions count where the label map, resized to the feature map, shows the new class.

A network that tells the unknown from the background (SSUL) has its new classes in the unknown so
far: there, the unknown's classifier takes the background's place.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ciss import distributed
from ciss.checkpoint import load_tensors, save_tensors
from ciss.errors import CissError
from ciss.models.network import SegmentationNetwork, upsample, with_norm

#: order of pooling over positions and averaging over images; the first is the published default
POOLINGS = ("max_after_mean", "mean_after_max", "mean_after_avg", "avg_after_mean")
#: one mask for all new classes of a step, or one for each
GROUPINGS = ("joint", "per_class")


@dataclass
class Attribution:
    """Masked attributions of the new classes, summed over images; enough for every variant.

    ``n`` new classes, ``C`` channels, feature maps of h × w. An image counts for a class when its
    resized label map shows the class, and for the joint sums when it shows any new class. Where
    an image does not show the class its attribution is zero.
    """

    #: positions of the new classes in the learning order
    new_classes: tuple[int, ...]
    #: [n, C, h, w] sum over images
    sums: Tensor
    #: [n] int64, images that show the class
    count: Tensor
    #: images that show any new class
    joint_count: int
    #: [n, C] sum over images of each image's maximum over positions
    max_sums: Tensor
    #: [C] the same with the new classes taken together
    joint_max_sum: Tensor


#: fields of ``Attribution`` that are tensors
_TENSORS = ("sums", "count", "max_sums", "joint_max_sum")


@lru_cache(maxsize=32)
def upsampling_adjoint(small: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Weight of each feature-map position in the sum over all pixels, [h, w] float32 on the CPU.

    That is, the adjoint of the bilinear upsampling from ``small`` to ``size`` applied to ones:
    (H/h)·(W/w) everywhere when both ratios are whole, otherwise varying towards the borders.
    """
    with torch.inference_mode(False), torch.enable_grad():
        maps = torch.zeros(1, 1, *small, dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(upsample(maps, size).sum(), maps)
    return gradient[0, 0].float()


def closed_form(x: Tensor, x_zero: Tensor, w_background: Tensor, size: Sequence[int]) -> Tensor:
    """Integrated gradients of the summed background logits for images of ``size`` = (H, W).

    ``x``: [B, C, h, w] the classifiers' input, ``x_zero``: [1, C, h, w] the same on a zero image,
    ``w_background``: [C]. Returns [B, C, h, w].
    """
    height, width = size
    adjoint = upsampling_adjoint((x.shape[-2], x.shape[-1]), (height, width)).to(x)
    return (x - x_zero) * (w_background.reshape(-1, 1, 1) * adjoint)


def shrink_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize label maps [B, H, W] to ``size`` = (h, w): position y takes pixel ⌊y·H/h⌋."""
    rows, columns = (
        torch.arange(small, device=labels.device) * large // small
        for small, large in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[:, rows[:, None], columns]


def accumulate(
    attribution: Attribution | None, maps: Tensor, labels: Tensor, new_classes: Sequence[int]
) -> Attribution:
    """Add a batch's attributions, in float64 and in place; ``None`` starts a new sum.

    ``maps``: [B, C, h, w]; ``labels``: [B, H, W] in learning order, on the same device.
    Raises ``CissError`` when the feature map's size differs from the batches before.
    """
    channels, size = maps.shape[1], maps.shape[2:]
    if attribution is None:
        zeros = torch.zeros(
            len(new_classes), channels, *size, dtype=torch.float64, device=maps.device
        )
        attribution = Attribution(
            new_classes=tuple(new_classes),
            sums=zeros,
            count=torch.zeros(len(new_classes), dtype=torch.int64, device=maps.device),
            joint_count=0,
            max_sums=zeros[:, :, 0, 0].clone(),
            joint_max_sum=zeros[0, :, 0, 0].clone(),
        )
    if attribution.sums.shape[1:] != maps.shape[1:]:
        raise _size_error(tuple(maps.shape[1:]), tuple(attribution.sums.shape[1:]))
    small = shrink_labels(labels, size)
    shown = torch.stack([small == label for label in new_classes], dim=1)
    # Most batches show few of the new classes.
    present = shown.sum(dim=(2, 3)) > 0
    attribution.count += present.sum(dim=0)
    attribution.joint_count += int(present.any(dim=1).sum())
    for index in present.any(dim=0).nonzero().flatten().tolist():
        masked = maps * shown[:, index, None]
        attribution.sums[index] += masked.sum(dim=0, dtype=torch.float64)
        attribution.max_sums[index] += masked.amax(dim=(2, 3)).sum(dim=0, dtype=torch.float64)
    masked = maps * shown.any(dim=1, keepdim=True)
    attribution.joint_max_sum += masked.amax(dim=(2, 3)).sum(dim=0, dtype=torch.float64)
    return attribution


def _size_error(one: tuple[int, ...], other: tuple[int, ...]) -> CissError:
    return CissError(
        f"attribution maps of {one} follow maps of {other}; attribution averages over images, "
        "which must be cropped to one size"
    )


def attribute(
    network: SegmentationNetwork,
    batches: Iterable[tuple[Tensor, Tensor]],
    new_classes: Sequence[int],
    method: str = "closed_form",
    n_steps: int = 50,
) -> Attribution:
    """Attribute the background output of ``network`` over ``batches`` for each of ``new_classes``.

    ``batches`` yields images [B, 3, H, W] as the network takes them and labels [B, H, W] int64 in
    learning order, on the network's device. ``method`` is ``closed_form``; or ``captum``, the
    published integrated gradients of ``n_steps`` forward passes; or ``captum:`` and the name of
    another of Captum's layer attributions, such as ``captum:LayerGradientXActivation``. The
    network runs in evaluation mode; its mode is restored. Of several processes each brings its own
    batches. Returns float32 sums, over all processes, on the CPU.

    Raises ``CissError`` when no image shows a new class, or the method is unknown.
    """
    was_training = network.training
    network.eval()
    try:
        maps_of = attribution_maps(network, method, n_steps)
        attribution = None
        for images, labels in batches:
            maps = maps_of(images)
            with torch.no_grad():
                attribution = accumulate(attribution, maps, labels, new_classes)
    finally:
        network.train(was_training)
    attribution = _over_processes(attribution)
    if attribution is None or attribution.joint_count == 0:
        raise CissError(
            f"no image shows any of the new classes {', '.join(map(str, new_classes))} once its "
            "labels are resized to the feature map; there is nothing to attribute"
        )
    return replace(
        attribution,
        sums=attribution.sums.float().cpu(),
        count=attribution.count.cpu(),
        max_sums=attribution.max_sums.float().cpu(),
        joint_max_sum=attribution.joint_max_sum.float().cpu(),
    )


def attribution_maps(
    network: SegmentationNetwork, method: str = "closed_form", n_steps: int = 50
) -> Callable[[Tensor], Tensor]:
    """Return a function from images [B, 3, H, W] to their attributions [B, C, h, w], float32.

    ``network`` must be in evaluation mode; ``method`` and ``n_steps`` are those of ``attribute``.
    """
    if method == "closed_form":
        return _closed_form_of(network)
    return _captum_of(network, method, n_steps)


def _over_processes(attribution: Attribution | None) -> Attribution | None:
    """Add up what the processes have, in float64; one that had no batch has ``None``."""
    if not distributed.several():
        return attribution
    found = [each for each in distributed.gathered(_on_cpu(attribution)) if each is not None]
    if not found:
        return None
    sizes = {tuple(each.sums.shape[1:]) for each in found}
    if len(sizes) > 1:
        raise _size_error(*sorted(sizes)[:2])
    return Attribution(
        new_classes=found[0].new_classes,
        joint_count=sum(each.joint_count for each in found),
        **{name: sum(getattr(each, name) for each in found) for name in _TENSORS},
    )


def _on_cpu(attribution: Attribution | None) -> Attribution | None:
    if attribution is None:
        return None
    return replace(attribution, **{name: getattr(attribution, name).cpu() for name in _TENSORS})


def _closed_form_of(network: SegmentationNetwork) -> Callable[[Tensor], Tensor]:
    w_background = network.origin.weight[0].detach()
    zeros: dict[torch.Size, Tensor] = {}

    def input_of(images: Tensor) -> Tensor:
        return network.origin_input(network.features(images).pre_logits).float()

    @torch.no_grad()
    def maps_of(images: Tensor) -> Tensor:
        if images.shape[1:] not in zeros:
            blank = torch.zeros_like(images[:1])
            zeros[images.shape[1:]] = input_of(blank)
        x = input_of(images)
        return closed_form(x, zeros[images.shape[1:]], w_background, images.shape[2:])

    return maps_of


class _SummedLogits(nn.Module):
    """Upsampled outputs of the origin's classifier summed over pixels, [B, outputs]."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network = network
        self.classifier = network.origin

    def forward(self, images: Tensor) -> Tensor:
        pre_logits = self.network.features(images).pre_logits
        logits = self.classifier(self.network.origin_input(pre_logits))
        return upsample(logits, images.shape[-2:]).sum(dim=(2, 3))


def _captum_of(
    network: SegmentationNetwork, method: str, n_steps: int
) -> Callable[[Tensor], Tensor]:
    package, _, name = method.partition(":")
    if package != "captum":
        raise CissError(
            f"attribution method '{method}' is unknown; choose closed_form, captum or "
            "captum:<a layer attribution of captum.attr>"
        )
    import captum.attr

    name = name or "LayerIntegratedGradients"
    if not (name.startswith("Layer") and hasattr(captum.attr, name)):
        known = [entry for entry in dir(captum.attr) if entry.startswith("Layer")]
        raise CissError(f"captum.attr has no '{name}'; choose one of {', '.join(known)}")
    if network.config.norm == "iabn":
        # In-place normalisation overwrites what Captum's hooks need.
        network = with_norm(network, "abn")
    model = _SummedLogits(network)
    explainer = getattr(captum.attr, name)(model, model.classifier)
    accepted = inspect.signature(explainer.attribute).parameters

    def maps_of(images: Tensor) -> Tensor:
        arguments: dict[str, Any] = {
            "baselines": torch.zeros_like(images[:1]),
            "target": 0,
            "n_steps": n_steps,
            "internal_batch_size": len(images),
            "attribute_to_layer_input": True,
        }
        result = explainer.attribute(
            images, **{key: value for key, value in arguments.items() if key in accepted}
        )
        return (result[0] if isinstance(result, tuple) else result).detach().float()

    return maps_of


def scores(
    attribution: Attribution, pooling: str = "max_after_mean", grouping: str = "joint"
) -> Tensor:
    """Score every channel: float32 [1, C] for ``joint`` or [n, C] for ``per_class``.

    ``pooling`` reads from its end: ``max_after_mean`` takes the maximum over positions
    of the mean over images, ``mean_after_max`` the mean over images of each one's maximum; ``avg``
    is the average over positions. Raises ``CissError`` for a class that no image shows.
    """
    if pooling not in POOLINGS:
        raise CissError(f"pooling '{pooling}' is unknown; choose one of {', '.join(POOLINGS)}")
    if grouping not in GROUPINGS:
        raise CissError(f"grouping '{grouping}' is unknown; choose one of {', '.join(GROUPINGS)}")
    if grouping == "joint":
        # Classes never share a pixel, so that the sum over classes is that of their union.
        sums = attribution.sums.double().sum(dim=0, keepdim=True)
        max_sums = attribution.joint_max_sum[None]
        count = torch.tensor([attribution.joint_count])
    else:
        sums, max_sums, count = attribution.sums, attribution.max_sums, attribution.count
        missing = [
            label
            for label, n in zip(attribution.new_classes, count.tolist(), strict=True)
            if n == 0
        ]
        if missing:
            raise CissError(
                f"no image shows class {', '.join(map(str, missing))} once its labels are resized "
                "to the feature map; set the initialisation's grouping to 'joint'"
            )
    count = count.double()[:, None]
    if pooling == "mean_after_max":
        result = max_sums.double() / count
    elif pooling == "max_after_mean":
        result = sums.double().amax(dim=(2, 3)) / count
    else:
        result = sums.double().mean(dim=(2, 3)) / count
    return result.float()


def channel_count(fraction: float, channels: int) -> int:
    """Number of channels that ``fraction`` means: a share up to 1, or a whole number above 1.

    A share is rounded to the nearest count, a half up: 10 % of 256 are 26. Raises ``CissError``.
    """
    whole = float(fraction).is_integer()
    if not 0 < fraction <= channels or (fraction > 1 and not whole):
        raise CissError(
            f"fraction {fraction} of {channels} channels does not exist; give a share above 0 and "
            f"up to 1, or a number of channels from 2 to {channels}"
        )
    if fraction > 1:
        return int(fraction)
    return max(1, math.floor(fraction * channels + 0.5))


def channel_mask(scores: Tensor, fraction: float) -> Tensor:
    """Choose the channels of the highest scores in each row: [rows, C] to bool [rows, C].

    Among equal scores the lower channel comes first.
    """
    count = channel_count(fraction, scores.shape[1])
    order = torch.sort(scores, dim=1, descending=True, stable=True).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(1, order[:, :count], value=True)


def save_attribution(
    path: Path | str, attribution: Attribution, metadata: dict[str, Any] | None = None
) -> None:
    """Write an attribution as safetensors; ``metadata`` is JSON of the caller's."""
    tensors = {name: getattr(attribution, name) for name in _TENSORS}
    content = {
        "new_classes": list(attribution.new_classes),
        "joint_count": attribution.joint_count,
        "metadata": metadata or {},
    }
    save_tensors(path, tensors, content, kind="attribution")


def load_attribution(path: Path | str) -> Attribution:
    """Read what ``save_attribution`` wrote. Raises ``CissError`` for any other or damaged file."""
    tensors, content = load_tensors(path, kind="attribution", names=_TENSORS)
    return Attribution(
        new_classes=tuple(content["new_classes"]), joint_count=content["joint_count"], **tensors
    )
