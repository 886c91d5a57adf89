"""The segmentation network: encoder, DeepLab-v3 head and one linear classifier for each step."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciss.errors import CissError
from ciss.models.deeplab import RATES, DeepLabHead
from ciss.models.normalisation import (
    NORMS,
    SLOPE,
    absolute_scale,
    is_norm,
    make_norm,
    norm_weights,
    signed_scale,
)
from ciss.models.resnet import DEPTHS, ResNet
from ciss.pixelwise import Upsampled, full_precision, largest_channel, pixel_maps, predict

#: random features of a batch that are in memory at once
_FEATURES = 512


@dataclass(frozen=True)
class NetworkConfig:
    """What determines the network's shape, the classes aside.

    ``width`` is the number of stem channels, ``head_channels`` the classifiers' input channels,
    ``pooling`` the window of the head's image pooling in evaluation, in feature-map positions.
    Raises ``CissError`` for values that do not exist.
    """

    backbone: str = "resnet101"
    output_stride: int = 16
    norm: str = "abn"
    width: int = 64
    head_channels: int = 256
    pooling: int = 32

    def __post_init__(self) -> None:
        for name, allowed in (("backbone", DEPTHS), ("output_stride", RATES), ("norm", NORMS)):
            value = getattr(self, name)
            if value not in allowed:
                choices = ", ".join(str(choice) for choice in allowed)
                raise CissError(f"network setting {name} is {value!r}; choose one of {choices}")
        for name in ("width", "head_channels", "pooling"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CissError(f"network setting {name} is {value!r}; give a positive integer")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> NetworkConfig:
        """Read settings; those that are absent take their default. Raises ``CissError``."""
        known = [field.name for field in fields(cls)]
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise CissError(
                f"network setting {', '.join(map(str, unknown))} does not exist; "
                f"there are {', '.join(known)}"
            )
        return cls(**settings)


class Features(NamedTuple):
    """What the network computes before its classifiers."""

    #: encoder output after its activation, [B, C, h, w] (ILT)
    body: Tensor
    #: the classifiers' input, [B, head_channels, h, w]
    pre_logits: Tensor
    #: the four stages' outputs before their activation (PLOP)
    attentions: list[Tensor]


class NetworkOutput(NamedTuple):
    """Everything that a loss may look at."""

    #: [B, N, h, w] at the feature map's size
    small_logits: Tensor
    body: Tensor
    pre_logits: Tensor
    attentions: list[Tensor]
    #: (H, W) of the images
    size: tuple[int, int]
    #: [B, F, h, w] of the classes that are to come, where the network has classifiers for them
    future_logits: Tensor | None = None

    #: [B, 1, h, w] logit of the unknown, where the network has it
    unknown: Tensor | None = None

    @property
    def allocated(self) -> NetworkOutput:
        """The same with the logits of the classes to come behind those of the classes there are."""
        if self.future_logits is None:
            return self
        small_logits = torch.cat([self.small_logits, self.future_logits], dim=1)
        return self._replace(small_logits=small_logits, future_logits=None)

    @property
    def features(self) -> Features:
        """What the logits were computed from."""
        return Features(self.body, self.pre_logits, self.attentions)

    @property
    def upsampled(self) -> Upsampled:
        """Logits at the images' size, computed block by block where they are needed."""
        return Upsampled(self.small_logits, self.size)

    @property
    def upsampled_with_unknown(self) -> Upsampled:
        """The same with the unknown's logit as the last channel: [B, N + 1] of them."""
        assert self.unknown is not None
        return Upsampled(torch.cat([self.small_logits, self.unknown], dim=1), self.size)

    @property
    def logits(self) -> Tensor:
        """Logits at the images' size, [B, N, H, W], all of them computed now."""
        return upsample(self.small_logits, self.size)

    @property
    def small_scores(self) -> Tensor:
        """What a position's class is chosen by, the largest: [B, N, h, w], as ``small_logits``."""
        if self.unknown is None:
            return self.small_logits
        return merge_unknown(torch.cat([self.small_logits, self.unknown], dim=1))

    @property
    def predicted(self) -> Tensor:
        """Class of each pixel, int64 [B, H, W]; what is unknown is background."""
        if self.unknown is None:
            return predict(self.upsampled)
        (classes,) = pixel_maps(
            lambda block: (largest_channel(merge_unknown(block)),), self.upsampled_with_unknown
        )
        return classes


class SegmentationNetwork(nn.Module):
    """DeepLab-v3 over a ResNet with one 1×1 classifier (``cls.0``, ``cls.1``, …) for each step.

    ``classes_per_step`` are the classifiers' outputs; those of step 0 begin with the background.
    State-dict names are those of the published checkpoints.

    Two things that most networks do not have: ``preallocated`` classes to come, which have a
    classifier already (``future``; DFT*), and ``features``, the number of random features that the
    classifiers see in place of the head's output (``expansion``; CFSSeg). Classifiers of random
    features have no bias.

    With ``unknown`` there is one output more, for background that may be of a class yet to come
    (SSUL), beside the N classes and not among them; and the background has a classifier of its own,
    ``cls.0``, so that it can train while the classes of step 0, ``cls.1``, do not. With ``hidden``
    there is a 3×3 convolution with its normalisation before each of these classifiers, as in SSUL's
    published code.
    """

    def __init__(
        self,
        config: NetworkConfig,
        classes_per_step: Sequence[int],
        *,
        preallocated: int = 0,
        features: int = 0,
        unknown: bool = False,
        hidden: bool = False,
    ) -> None:
        super().__init__()
        if not classes_per_step or min(classes_per_step) < 1:
            raise CissError(
                f"classes per step are {list(classes_per_step)}; each step needs at least one"
            )
        self.config = config
        self.body = ResNet(DEPTHS[config.backbone], config.output_stride, config.norm, config.width)
        self.head = DeepLabHead(
            self.body.outputs,
            config.head_channels,
            config.output_stride,
            config.pooling,
            config.norm,
        )
        base, *later = classes_per_step
        if unknown and base < 2:
            raise CissError("a network with an unknown needs a class beside the background")
        if hidden and not unknown:
            raise CissError("only a network with an unknown has hidden layers before classifiers")
        counts = [1, base - 1, *later] if unknown else [base, *later]
        inputs = features or config.head_channels
        self.cls = nn.ModuleList(nn.Conv2d(inputs, n, 1, bias=not features) for n in counts)
        self.future = nn.Conv2d(inputs, preallocated, 1) if preallocated else None
        self.unknown = nn.Conv2d(inputs, 1, 1) if unknown else None
        # One for each classifier, in their order, and the unknown's.
        self.hidden = nn.ModuleList(_hidden_layer(config) for _ in counts) if hidden else None
        self.unknown_hidden = _hidden_layer(config) if hidden else None
        #: [features, head_channels], fixed
        self.expansion: Tensor | None
        expansion = torch.zeros(features, config.head_channels) if features else None
        self.register_buffer("expansion", expansion)

    @property
    def shape(self) -> dict[str, Any]:
        """What ``of_shape`` makes a network of the same tensors from, as plain values."""
        extras = {
            "preallocated": 0 if self.future is None else self.future.out_channels,
            "features": 0 if self.expansion is None else len(self.expansion),
            "unknown": self.unknown is not None,
            "hidden": self.hidden is not None,
        }
        return {
            "config": self.config.to_dict(),
            "classes_per_step": list(self.classes_per_step),
            **{name: value for name, value in extras.items() if value},
        }

    @classmethod
    def of_shape(cls, shape: Mapping[str, Any]) -> SegmentationNetwork:
        """Make a network as ``shape`` says. Raises ``CissError``, ``KeyError`` or ``TypeError``."""
        rest = {name: value for name, value in shape.items() if name != "config"}
        return cls(NetworkConfig.from_dict(shape["config"]), **rest)

    @property
    def classes_per_step(self) -> tuple[int, ...]:
        """Outputs that each step added, the background's included in step 0's."""
        counts = [classifier.out_channels for classifier in self.classifiers]
        if self.unknown is None:
            return tuple(counts)
        return (counts[0] + counts[1], *counts[2:])

    @property
    def n_classes(self) -> int:
        """Outputs of all classes learned so far, the background included."""
        return sum(self.classes_per_step)

    @property
    def classifiers(self) -> list[nn.Conv2d]:
        """The classifiers, the oldest first: one a step, and with an unknown the background's."""
        return [module for module in self.cls if isinstance(module, nn.Conv2d)]

    @property
    def origin(self) -> nn.Conv2d:
        """The classifier whose first output stood for classes before they were learned.

        That of the unknown where there is one, else of step 0, whose first output is background's.
        """
        return self.classifiers[0] if self.unknown is None else self.unknown

    def origin_input(self, pre_logits: Tensor) -> Tensor:
        """What ``origin`` takes, [B, C, h, w]: the head's output, or its hidden layer's."""
        return pre_logits if self.unknown_hidden is None else self.unknown_hidden(pre_logits)

    def features(self, images: Tensor) -> Features:
        """Run encoder and head on normalised images [B, 3, H, W]."""
        body, attentions = self.body(images)
        return Features(body, self.head(body), attentions)

    def classify(self, pre_logits: Tensor) -> Tensor:
        """Apply all classifiers, as one convolution: [B, C, h, w] to logits [B, N, h, w]."""
        if self.hidden is not None:
            pairs = zip(self.cls, self.hidden, strict=True)
            return torch.cat([classifier(layer(pre_logits)) for classifier, layer in pairs], dim=1)
        weight = torch.cat([classifier.weight for classifier in self.classifiers])
        if self.expansion is not None:
            # Some features at a time: all 8,192 of an image of 512 × 512 pixels take 34 MB.
            parts = zip(
                self.expansion.split(_FEATURES), weight.split(_FEATURES, dim=1), strict=True
            )
            maps = [F.conv2d(random_features(pre_logits, r), part) for r, part in parts]
            return torch.stack(maps).sum(dim=0)
        biases = [classifier.bias for classifier in self.classifiers if classifier.bias is not None]
        return F.conv2d(pre_logits, weight, torch.cat(biases))

    def classify_unknown(self, pre_logits: Tensor) -> Tensor | None:
        """The unknown's logit, [B, 1, h, w], where the network has it."""
        return None if self.unknown is None else self.unknown(self.origin_input(pre_logits))

    def forward(self, images: Tensor) -> NetworkOutput:
        """Segment normalised images [B, 3, H, W]."""
        return self.output(self.features(images), (images.shape[-2], images.shape[-1]))

    def output(self, features: Features, size: tuple[int, int]) -> NetworkOutput:
        """Classify the features of images of ``size`` = (H, W)."""
        future = None if self.future is None else self.future(features.pre_logits)
        unknown = self.classify_unknown(features.pre_logits)
        return NetworkOutput(self.classify(features.pre_logits), *features, size, future, unknown)


def _hidden_layer(config: NetworkConfig) -> nn.Sequential:
    channels = config.head_channels
    convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    return nn.Sequential(convolution, make_norm(config.norm, channels))


def random_features(maps: Tensor, expansion: Tensor) -> Tensor:
    """Return ReLU(R x) of each position: [B, C, h, w] with R [F, C] to [B, F, h, w]."""
    return F.relu(F.conv2d(maps, expansion[:, :, None, None]))


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps [B, C, h, w] bilinearly to ``size`` = (H, W), corners not aligned."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def merge_unknown(logits: Tensor) -> Tensor:
    """Scores of the classes from sigmoid outputs, the unknown's added to the background's.

    [B, N + 1, …] logits, the unknown's last, to [B, N, …] (Cha et al., SSUL, NeurIPS 2021).
    """
    probabilities = full_precision(logits).sigmoid()
    background = probabilities[:, :1] + probabilities[:, -1:]
    return torch.cat([background, probabilities[:, 1:-1]], dim=1)


def initialise(network: SegmentationNetwork, seed: int) -> None:
    """Draw all weights anew, in place, for training from scratch; equal seeds, equal weights.

    Convolutions are drawn as He et al. (ICCV 2015) propose for a leaky ReLU, classifiers as
    PyTorch draws a convolution; normalisations start at scale 1 and shift 0.
    """
    generator = torch.Generator().manual_seed(seed)
    classifiers = {*network.classifiers, network.future, network.unknown}
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            if module in classifiers:
                draw_classifier(module, generator)
            else:
                weight = torch.empty(module.weight.shape)
                nn.init.kaiming_normal_(
                    weight, a=SLOPE, nonlinearity="leaky_relu", generator=generator
                )
                _set(module.weight, weight)
        elif is_norm(module):
            for name, start in (
                ("weight", 1),
                ("bias", 0),
                ("running_mean", 0),
                ("running_var", 1),
            ):
                nn.init.constant_(getattr(module, name), start)


def draw_classifier(classifier: nn.Conv2d, generator: torch.Generator) -> None:
    """Draw weight and bias uniformly from ±1/√(input channels), PyTorch's default, in place."""
    bound = 1 / math.sqrt(classifier.in_channels)
    for parameter in (classifier.weight, classifier.bias):
        assert parameter is not None
        draw = torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)
        _set(parameter, draw)


def widened(network: SegmentationNetwork, n_new: int, seed: int) -> SegmentationNetwork:
    """Return a copy of ``network`` with one more classifier of ``n_new`` outputs.

    It is freshly drawn, or the first part of the classifiers of classes to come, where there are
    such. A hidden layer before it is a copy of the unknown's: their channels mean the same.
    """
    if n_new < 1:
        raise CissError(f"a step adds at least one class, not {n_new}")
    wider = copy.deepcopy(network)
    if wider.future is not None:
        newest, wider.future = _divided(wider.future, n_new)
        wider.cls.append(newest)
        return wider
    classifier = nn.utils.skip_init(nn.Conv2d, network.config.head_channels, n_new, 1)
    draw_classifier(classifier, torch.Generator().manual_seed(seed))
    like = network.classifiers[0].weight
    wider.cls.append(classifier.to(device=like.device, dtype=like.dtype))
    if wider.hidden is not None and wider.unknown_hidden is not None:
        wider.hidden.append(copy.deepcopy(wider.unknown_hidden))
    return wider.train(network.training)


def _divided(future: nn.Conv2d, n_new: int) -> tuple[nn.Conv2d, nn.Conv2d | None]:
    """Take the first ``n_new`` outputs of a classifier off it; ``None`` where nothing is left."""
    left = future.out_channels - n_new
    if left < 0:
        raise CissError(
            f"{n_new} classes are added, but the network was made for {future.out_channels} more"
        )
    newest = _part(future, slice(0, n_new))
    return newest, _part(future, slice(n_new, None)) if left else None


def _part(classifier: nn.Conv2d, outputs: slice) -> nn.Conv2d:
    assert classifier.bias is not None
    weight, bias = classifier.weight[outputs], classifier.bias[outputs]
    part = nn.utils.skip_init(nn.Conv2d, classifier.in_channels, len(weight), 1).to(weight)
    assert part.bias is not None
    _set(part.weight, weight)
    _set(part.bias, bias)
    return part


def with_norm(network: SegmentationNetwork, norm: str) -> SegmentationNetwork:
    """Return a network of the same values whose normalisation is of kind ``norm``.

    ``abn`` and ``iabn`` take the same weights; towards and from ``bn`` the scales are converted.
    Raises ``CissError`` when a scale of ``bn`` is negative, which ``abn`` cannot express.
    """
    with torch.device("meta"):
        config = replace(network.config, norm=norm).to_dict()
        other = SegmentationNetwork.of_shape({**network.shape, "config": config})
    state = {name: value.clone() for name, value in network.state_dict().items()}
    if (network.config.norm == "bn") != (norm == "bn"):
        for name in norm_weights(network):
            scale = state[name]
            state[name] = signed_scale(scale) if norm == "bn" else absolute_scale(scale, name)
    # Counters, which nothing reads, are not in every kind.
    other.load_state_dict(state, strict=False, assign=True)
    return other.train(network.training)


def _set(parameter: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)
