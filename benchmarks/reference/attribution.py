"""AWT's attribution as published: Captum's integrated gradients, image after image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciss.models import SegmentationNetwork


class SummedLogits(nn.Module):
    """The first classifier's outputs at full resolution, summed over all pixels: [B, N]."""

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        self.network, self.classifier = network, network.classifiers[0]

    def forward(self, images: Tensor) -> Tensor:
        small = self.classifier(self.network.features(images).pre_logits)
        logits = F.interpolate(small, images.shape[2:], mode="bilinear", align_corners=False)
        return logits.sum(dim=(2, 3))


#: (model, image [1, 3, H, W], steps, how many of them in a batch) -> attributions of the
#: classifier's input [1, C, h, w]
Explainer = Callable[[SummedLogits, Tensor, int, int], Tensor]


def captum_gradients(model: SummedLogits, image: Tensor, steps: int, at_once: int) -> Tensor:
    """Integrated gradients of the background by Captum."""
    from captum.attr import LayerIntegratedGradients

    result = LayerIntegratedGradients(model, model.classifier).attribute(
        image,
        baselines=torch.zeros_like(image),
        target=0,
        n_steps=steps,
        internal_batch_size=at_once,
        attribute_to_layer_input=True,
    )
    return (result[0] if isinstance(result, tuple) else result).detach()


def gradients_by_hand(model: SummedLogits, image: Tensor, steps: int, at_once: int) -> Tensor:
    """The same for machines without Captum: a forward pass of the whole network for every step.

    As Captum does it: the classifier's input is put in the place of the one computed, and points
    and weights are those of Gauss and Legendre.
    """
    seen: list[Tensor] = []
    looking = model.classifier.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        for each in (image, torch.zeros_like(image)):
            model(each)
    looking.remove()
    x, x_zero = seen
    total = torch.zeros_like(x)
    points, weights = (
        torch.from_numpy(values).to(x).reshape(-1, 1, 1, 1).split(at_once)
        for values in np.polynomial.legendre.leggauss(steps)
    )
    for point, weight in zip(points, weights, strict=True):
        inside = (x_zero + (point + 1) / 2 * (x - x_zero)).requires_grad_()
        replacing = model.classifier.register_forward_pre_hook(
            lambda _, __, inside=inside: (inside,)
        )
        output = model(image.expand(len(point), -1, -1, -1))
        (gradient,) = torch.autograd.grad(output[:, 0].sum(), inside)
        replacing.remove()
        total += (weight / 2 * gradient).sum(dim=0, keepdim=True)
    return total * (x - x_zero)


#: what explains here, and what it is called
HAS_CAPTUM = find_spec("captum") is not None and find_spec("matplotlib") is not None
EXPLAINER: Explainer = captum_gradients if HAS_CAPTUM else gradients_by_hand
NAME = "Captum" if HAS_CAPTUM else "integrated gradients as Captum computes them, without Captum,"


def chosen_channels(
    network: SegmentationNetwork,
    images: Tensor,
    labels: Tensor,
    classes: Iterable[int],
    steps: int = 50,
    at_once: int = 1,
    share: float = 0.25,
) -> Tensor:
    """Attribute the background on images [B, 3, H, W] that show ``classes``; returns bool [C].

    ``at_once`` of the ``steps`` make a batch. Attributions count where the label map, resized to
    the feature map, shows one of the classes; the channels with the largest maxima of the mean map
    are chosen.
    """
    model = SummedLogits(network)
    wanted, maps = torch.tensor(list(classes), device=images.device), []
    for image, label in zip(images, labels, strict=True):
        maps_of_image = EXPLAINER(model, image[None], steps, at_once)
        small = F.interpolate(label[None, None].float(), maps_of_image.shape[2:])[0, 0]
        shown = torch.isin(small.long(), wanted)
        if shown.any():
            maps.append(maps_of_image * shown)
    scores = torch.cat(maps).mean(dim=0).amax(dim=(1, 2))
    chosen = torch.zeros(len(scores), dtype=torch.bool, device=images.device)
    chosen[scores.topk(int(share * len(scores))).indices] = True
    return chosen
