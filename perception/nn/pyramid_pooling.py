"""Pyramid pooling: multi-scale context features, up to the whole image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from perception.nn.blocks import conv_norm_act, upsample_to


class PyramidPooling(nn.Module):
    """Adds average-pooled context of increasing window sizes, and of the whole image, to the features.

    As PSPNet (Zhao et al. 2017) in the overlapping form of DDRNet (Hong et al. 2021). The windows have fixed sizes in
    cells, so the context is the same for every image size, and the export uses plain pooling.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        pool_strides: strides of the pooling windows in cells. A window of stride s is ``2 * s + 1`` wide.
    """

    def __init__(self, in_channels: int, out_channels: int, pool_strides: tuple[int, ...] = (2, 4)) -> None:
        super().__init__()
        self.pool_strides = pool_strides
        self.point_conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.pool_convs = nn.ModuleList(nn.Conv2d(in_channels, out_channels, 1, bias=False) for _ in pool_strides)
        self.global_conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        # Normalize the sum once: statistics of a single global average per image would be noise.
        self.fuse = nn.Sequential(
            nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True), *conv_norm_act(out_channels, out_channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H, W]."""
        mixed = self.point_conv(features) + self.global_conv(features.mean((2, 3), keepdim=True))
        for step, around in zip(self.pool_strides, self.pool_convs, strict=True):
            pooled = F.avg_pool2d(features, 2 * step + 1, step, step, count_include_pad=False)
            mixed = mixed + upsample_to(around(pooled), mixed)
        return self.fuse(mixed)
