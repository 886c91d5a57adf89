"""What initialisations of new classifiers work on, and what those that are learned consist of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciss import losses
from ciss.errors import CissError
from ciss.models.network import NetworkOutput, SegmentationNetwork


@dataclass(frozen=True)
class Classifiers:
    """The newest step's classifier and the background's, before or after initialisation.

    ``weight``: [n, C] and ``bias``: [n] of the n new classes, freshly drawn at first;
    ``background_weight``: [C] and ``background_bias``: [] after the step before.
    """

    weight: Tensor
    bias: Tensor
    background_weight: Tensor
    background_bias: Tensor

    @property
    def shared_bias(self) -> Tensor:
        """The background's bias less log(n + 1), scalar.

        MiB (Cermelli et al., CVPR 2020, eq. 10) shares the background's probability equally
        between the background and the n classes that were part of it.
        """
        return self.background_bias - math.log(len(self.bias) + 1)


class Learner(nn.Module):
    """New classifiers as a function of this module's parameters, on a frozen network.

    ``network`` is the widened one of the step: its last classifier holds the fresh draw. It is no
    submodule: it is neither trained nor exchanged between processes, nor kept with the progress.
    A subclass makes its parameters, on the network's device, and ``classifiers`` of them.
    """

    def __init__(self, network: SegmentationNetwork) -> None:
        super().__init__()
        if network.expansion is not None or network.unknown is not None:
            raise CissError(
                "pre-tuning learns softmax classifiers on the head's output, which this network "
                "does not have (SSUL, CFSSeg); choose another initialisation"
            )
        self._frozen = (network.eval().requires_grad_(False),)
        *old, fresh = network.classifiers
        #: outputs of the step before, background included, and those that the step adds
        self.n_old, self.n_new = network.n_classes - fresh.out_channels, fresh.out_channels
        #: of the step before: weights [n_old, C] and biases [n_old], the background first
        self.old_weight = torch.cat([_weight(classifier) for classifier in old])
        self.old_bias = torch.cat([_bias(classifier) for classifier in old])

    @property
    def network(self) -> SegmentationNetwork:
        """The frozen network."""
        return self._frozen[0]

    @property
    def classes_per_step(self) -> tuple[int, ...]:
        """Outputs of each step's classifier, the new one's included."""
        return self.network.classes_per_step

    @property
    def unknown(self) -> None:
        """There is no unknown beside the background here."""
        return None

    @property
    def fresh(self) -> Classifiers:
        """The fresh draw, and the background's classifier of the step before."""
        newest = self.network.classifiers[-1]
        return Classifiers(
            _weight(newest), _bias(newest), self.old_weight[0].clone(), self.old_bias[0].clone()
        )

    def start(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Look at the step's images once and give the parameters their first values.

        ``batches`` yields classifier inputs [B, C, h, w] in full precision and labels [B, H, W]; of
        several processes each gets its share. It is lazy: who needs no look does not consume it.
        """

    def classifiers(self) -> Classifiers:
        """Return the classifiers that the parameters stand for; gradients pass through."""
        raise NotImplementedError

    def per_pixel(self, labels: Tensor, logits: Tensor) -> dict[str, Tensor]:
        """Return the loss of each pixel, as ``Method.per_pixel`` does: MiB's cross-entropy.

        Labels hide old classes behind the background, whose probability is theirs in sum.
        """
        loss = losses.unbiased_cross_entropy(logits, labels, self.n_old)
        return {"classification": loss}

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """The classifiers' input [B, C, h, w] for normalised images [B, 3, H, W]."""
        return self.network.features(images).pre_logits

    def forward(self, images: Tensor) -> NetworkOutput:
        """Segment normalised images with the old classifiers and the learned ones."""
        x = self.features(images)
        # Mixed precision is for what is frozen: what is learned is small, and changes by little.
        with torch.autocast(images.device.type, enabled=False):
            made = self.classifiers()
        background = made.background_weight[None]
        weight = torch.cat([background, self.old_weight[1:], made.weight])
        bias = torch.cat([made.background_bias[None], self.old_bias[1:], made.bias])
        size = (images.shape[-2], images.shape[-1])
        return NetworkOutput(F.conv2d(x, weight[:, :, None, None], bias), x, x, [], size)


def _weight(classifier: nn.Conv2d) -> Tensor:
    return classifier.weight.detach()[:, :, 0, 0].clone()


def _bias(classifier: nn.Conv2d) -> Tensor:
    assert classifier.bias is not None
    return classifier.bias.detach().clone()
