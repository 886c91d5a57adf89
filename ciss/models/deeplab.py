"""The DeepLab-v3 head: atrous spatial pyramid pooling (Chen et al., arXiv 1706.05587)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ciss.models.normalisation import make_norm

#: dilation of the three 3×3 branches by output stride. The paper doubles 6/12/18 for stride 8;
#: the code bases of MiB, PLOP and AWT have 32 where that gives 36, and so have we.
RATES = {8: (12, 24, 32), 16: (6, 12, 18)}


class DeepLabHead(nn.Module):
    """Four parallel convolutions and image pooling, reduced to ``channels`` channels.

    Pooling is over the whole map in training. In evaluation it is over windows of ``pooling``
    positions, so that a larger image is pooled over as much context as a training crop was.
    """

    def __init__(
        self, inputs: int, channels: int, output_stride: int, pooling: int, norm: str
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.map_convs = nn.ModuleList([nn.Conv2d(inputs, channels, 1, bias=False)])
        for rate in RATES[output_stride]:
            self.map_convs.append(
                nn.Conv2d(inputs, channels, 3, padding=rate, dilation=rate, bias=False)
            )
        self.map_bn = make_norm(norm, 4 * channels)
        self.global_pooling_conv = nn.Conv2d(inputs, channels, 1, bias=False)
        self.global_pooling_bn = make_norm(norm, channels)
        self.red_conv = nn.Conv2d(4 * channels, channels, 1, bias=False)
        self.pool_red_conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.red_bn = make_norm(norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map the encoder's output [B, C, h, w] to the classifiers' input [B, channels, h, w]."""
        return self.joined(x, self._pool(x))

    def joined(self, x: Tensor, means: Tensor) -> Tensor:
        """Do the same with the encoder's output averaged already: [B, C, h, w] or [B, C, 1, 1]."""
        maps = self.map_bn(torch.cat([conv(x) for conv in self.map_convs], dim=1))
        pooled = self.global_pooling_bn(self.global_pooling_conv(means))
        return self.red_bn(self.red_conv(maps) + self.pool_red_conv(pooled))

    def _pool(self, x: Tensor) -> Tensor:
        """Average over the whole map ([B, C, 1, 1]) or over windows ([B, C, h, w])."""
        height, width = x.shape[2:]
        window = min(self.pooling, height), min(self.pooling, width)
        if self.training or window == (height, width):
            return x.mean(dim=(2, 3), keepdim=True)
        means = F.avg_pool2d(x, window, stride=1)
        top, left = ((size - 1) // 2 for size in window)
        bottom, right = (size // 2 for size in window)
        return F.pad(means, (left, right, top, bottom), mode="replicate")
