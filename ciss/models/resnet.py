"""ResNet encoders whose last stages may be dilated instead of strided."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ciss.models.normalisation import SLOPE, make_norm


@dataclass(frozen=True)
class Depth:
    """Residual blocks in each of the four stages, and whether they are bottlenecks."""

    blocks: tuple[int, int, int, int]
    bottleneck: bool


DEPTHS = {
    "resnet18": Depth((2, 2, 2, 2), bottleneck=False),
    "resnet34": Depth((3, 4, 6, 3), bottleneck=False),
    "resnet50": Depth((3, 4, 6, 3), bottleneck=True),
    "resnet101": Depth((3, 4, 23, 3), bottleneck=True),
}

#: dilation of the four stages by output stride; a stage that is dilated is not strided
DILATIONS = {8: (1, 1, 2, 4), 16: (1, 1, 1, 2)}


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, or 1×1 – 3×3 – 1×1, around a shortcut (He et al., CVPR 2016).

    Returns the sum *before* its activation, which is what PLOP distils; the stage activates it.
    """

    def __init__(
        self, inputs: int, channels: int, *, bottleneck: bool, stride: int, dilation: int, norm: str
    ) -> None:
        super().__init__()
        outputs = 4 * channels if bottleneck else channels

        def conv3x3(inputs: int, stride: int) -> nn.Conv2d:
            return nn.Conv2d(
                inputs, channels, 3, stride, padding=dilation, dilation=dilation, bias=False
            )

        if bottleneck:
            layers: list[tuple[str, nn.Module]] = [
                ("conv1", nn.Conv2d(inputs, channels, 1, bias=False)),
                ("bn1", make_norm(norm, channels)),
                ("conv2", conv3x3(channels, stride)),
                ("bn2", make_norm(norm, channels)),
                ("conv3", nn.Conv2d(channels, outputs, 1, bias=False)),
                ("bn3", make_norm(norm, outputs, activated=False)),
            ]
        else:
            layers = [
                ("conv1", conv3x3(inputs, stride)),
                ("bn1", make_norm(norm, channels)),
                ("conv2", conv3x3(channels, 1)),
                ("bn2", make_norm(norm, channels, activated=False)),
            ]
        self.convs = nn.Sequential(OrderedDict(layers))
        self.projected = stride != 1 or inputs != outputs
        if self.projected:
            self.proj_conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.proj_bn = make_norm(norm, outputs, activated=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's pre-activation output, [B, outputs, h, w]."""
        shortcut = self.proj_bn(self.proj_conv(x)) if self.projected else x
        return self.convs(x) + shortcut


class ResNet(nn.Module):
    """Encoder: stem ``mod1`` and stages ``mod2`` to ``mod5``, of ``width``·(1, 2, 4, 8) channels.

    ``forward`` returns the activated output of the last stage and the list of the four stages'
    pre-activation outputs.
    """

    def __init__(self, depth: Depth, output_stride: int, norm: str, width: int) -> None:
        super().__init__()
        self.mod1 = nn.Sequential(
            OrderedDict(
                conv1=nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
                bn1=make_norm(norm, width),
                pool1=nn.MaxPool2d(3, stride=2, padding=1),
            )
        )
        inputs = width
        for stage, (blocks, dilation) in enumerate(
            zip(depth.blocks, DILATIONS[output_stride], strict=True)
        ):
            channels = width * 2**stage
            layers = nn.Sequential()
            for block in range(blocks):
                strided = block == 0 and stage > 0 and dilation == 1
                layers.add_module(
                    f"block{block + 1}",
                    ResidualBlock(
                        inputs,
                        channels,
                        bottleneck=depth.bottleneck,
                        stride=2 if strided else 1,
                        dilation=dilation,
                        norm=norm,
                    ),
                )
                inputs = 4 * channels if depth.bottleneck else channels
            self.add_module(f"mod{stage + 2}", layers)
        self.outputs = inputs

    def stages(self) -> list[nn.Sequential]:
        """The four stages of residual blocks, in order."""
        stages = (getattr(self, f"mod{number}") for number in range(2, 6))
        return [stage for stage in stages if isinstance(stage, nn.Sequential)]

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Encode images [B, 3, H, W]."""
        x = self.mod1(x)
        attentions = []
        for stage in self.stages():
            before = x
            for block in stage:
                before = block(x)
                x = F.leaky_relu(before, SLOPE)
            attentions.append(before)
        return x, attentions
