"""What surrounds a place, up to the whole image: the view that tells road from roof and near from far."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from perception.nn.blocks import conv_norm_act, upsample_to


class PyramidPooling(nn.Module):
    """Features beside averages of their surroundings over ever larger windows, and over the whole image.

    As PSPNet (Zhao et al. 2017) in the overlapping form of DDRNet (Hong et al. 2021): the windows have fixed sizes in
    cells, so it means the same at every size of the image and is plain pooling when exported.

    [B, inputs, H, W] to [B, outputs, H, W]. pool_strides: distance of the windows in cells; each is ``2 * step + 1``
    wide.
    """

    def __init__(self, in_channels: int, out_channels: int, pool_strides: tuple[int, ...] = (2, 4)) -> None:
        super().__init__()
        self.pool_strides = pool_strides
        self.point_conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.pool_convs = nn.ModuleList(nn.Conv2d(in_channels, out_channels, 1, bias=False) for _ in pool_strides)
        self.global_conv = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        # One normalization, of the sum: that of one average per image would be noise.
        self.fuse = nn.Sequential(
            nn.BatchNorm2d(out_channels), nn.ReLU6(inplace=True), *conv_norm_act(out_channels, out_channels)
        )

    def forward(self, features: Tensor) -> Tensor:
        mixed = self.point_conv(features) + self.global_conv(features.mean((2, 3), keepdim=True))
        for step, around in zip(self.pool_strides, self.pool_convs, strict=True):
            pooled = F.avg_pool2d(features, 2 * step + 1, step, step, count_include_pad=False)
            mixed = mixed + upsample_to(around(pooled), mixed)
        return self.fuse(mixed)
