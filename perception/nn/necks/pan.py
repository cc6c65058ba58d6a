"""Path aggregation network: a top-down and a bottom-up pathway."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from perception.config import config_dataclass
from perception.nn.blocks import ChannelCount, downsample, separable_conv
from perception.nn.necks.fpn import TopDownPathway, pyramid_channels
from perception.nn.necks.neck import Neck


@config_dataclass
class PANConfig:
    """Config of `PAN`.

    Attributes:
        channels: width of the levels of stride 8 and coarser.
        fine_channels: width of the level of stride 4, which has the most pixels.
    """

    name: Literal["pan"] = "pan"
    channels: ChannelCount = 96
    fine_channels: ChannelCount = 48


class PAN(Neck):
    """A feature pyramid with a bottom-up path that adds fine localization to its coarse levels (Liu et al. 2018).

    Each sum is smoothed once. The bottom-up path begins at stride 8. Stride 4 is read from the top-down path, so it
    adds no cost for heads that do not need it.
    """

    Config = PANConfig

    def __init__(self, channels: Mapping[int, int], config: PANConfig, strides: Collection[int]) -> None:
        super().__init__(channels, config, strides)
        width = pyramid_channels(channels, strides, config.channels, config.fine_channels)
        self.channels = {stride: width[stride] for stride in sorted(strides)}
        self.top_down = TopDownPathway(channels, width)
        self.bottom_up_strides = [stride for stride in width if 8 <= stride <= max(strides)]
        self.bottom_up = nn.ModuleDict(
            {str(coarse): downsample(width[fine], width[coarse]) for fine, coarse in pairwise(self.bottom_up_strides)}
        )
        made = {*self.bottom_up_strides, *strides}
        self.smooth = nn.ModuleDict({str(s): separable_conv(width[s], width[s]) for s in sorted(made)})

    def forward(self, features: Mapping[int, Tensor], strides: Collection[int]) -> dict[int, Tensor]:
        """Return {stride: features} of the requested levels, see `Neck.forward`."""
        climbing = [stride for stride in self.bottom_up_strides if stride <= max(strides)]
        levels = self.top_down(features, min([*climbing, *strides]))
        pyramid = {s: self.smooth[str(s)](levels[s]) for s in strides if s not in climbing}
        for stride in climbing:
            level = levels[stride]
            if str(stride) in self.bottom_up:
                level = level + self.bottom_up[str(stride)](pyramid[stride // 2])
            pyramid[stride] = self.smooth[str(stride)](level)
        return {stride: pyramid[stride] for stride in sorted(strides, reverse=True)}
