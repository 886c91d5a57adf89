"""AWT's attribution as published: Captum's integrated gradients, image after image."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from captum.attr import LayerIntegratedGradients
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


def chosen_channels(
    network: SegmentationNetwork,
    images: Tensor,
    labels: Tensor,
    classes: Iterable[int],
    steps: int = 50,
    share: float = 0.25,
) -> Tensor:
    """Attribute the background on images [B, 3, H, W] that show ``classes``; returns bool [C].

    Attributions count where the label map, resized to the feature map, shows one of the classes;
    the channels with the largest maxima of the mean map are chosen.
    """
    model = SummedLogits(network)
    explainer = LayerIntegratedGradients(model, model.classifier)
    wanted, maps = torch.tensor(list(classes), device=images.device), []
    for image, label in zip(images, labels, strict=True):
        result = explainer.attribute(
            image[None],
            baselines=torch.zeros_like(image[None]),
            target=0,
            n_steps=steps,
            internal_batch_size=1,
            attribute_to_layer_input=True,
        )
        maps_of_image = (result[0] if isinstance(result, tuple) else result).detach()
        small = F.interpolate(label[None, None].float(), maps_of_image.shape[2:])[0, 0]
        shown = torch.isin(small.long(), wanted)
        if shown.any():
            maps.append(maps_of_image * shown)
    scores = torch.cat(maps).mean(dim=0).amax(dim=(1, 2))
    chosen = torch.zeros(len(scores), dtype=torch.bool, device=images.device)
    chosen[scores.topk(int(share * len(scores))).indices] = True
    return chosen
