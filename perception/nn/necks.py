"""Necks: from a backbone's features to a pyramid."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise

from torch import Tensor, nn

from perception.config import configuration
from perception.nn.blocks import conv_norm_act, separable_conv, upsample_to


@configuration
class NeckConfig:
    """channels: width of the levels of stride 8 and coarser. fine_channels: of stride 4, which has most pixels."""

    channels: int = 96
    fine_channels: int = 48


class FPN(nn.Module):
    """Feature pyramid network (Lin et al. 2017) with BatchNorm and depthwise-separable smoothing.

    channels: {stride: channels} of the backbone. strides: the levels that heads read.
    After construction, ``channels`` holds {stride: channels} of the pyramid.
    """

    def __init__(self, channels: Mapping[int, int], config: NeckConfig, strides: Collection[int]) -> None:
        super().__init__()
        width = {stride: config.fine_channels if stride < 8 else config.channels for stride in channels}
        levels = [stride for stride in sorted(channels) if stride >= min(strides)]
        self.channels = {stride: width[stride] for stride in sorted(strides)}
        self.lateral = nn.ModuleDict({str(s): conv_norm_act(channels[s], width[s], act=False) for s in levels})
        self.narrow = nn.ModuleDict(
            {
                str(fine): conv_norm_act(width[coarse], width[fine], act=False)
                for fine, coarse in pairwise(levels)
                if width[fine] != width[coarse]
            }
        )
        self.smooth = nn.ModuleDict({str(s): separable_conv(width[s], width[s]) for s in sorted(strides)})

    def forward(self, features: Mapping[int, Tensor], strides: Collection[int]) -> dict[int, Tensor]:
        """{stride: [B, channels, H / stride, W / stride]} for ``strides`` only; finer levels are not computed."""
        pyramid: dict[int, Tensor] = {}
        above: Tensor | None = None
        for stride in sorted(features, reverse=True):
            if stride < min(strides):
                break
            level = self.lateral[str(stride)](features[stride])
            if above is not None:
                narrowed = self.narrow[str(stride)](above) if str(stride) in self.narrow else above
                level = level + upsample_to(narrowed, level)
            above = level
            if stride in strides:
                pyramid[stride] = self.smooth[str(stride)](level)
        return pyramid
