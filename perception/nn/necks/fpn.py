"""Feature pyramid network: adds upsampled coarse features to finer levels (Lin et al. 2017)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from perception.config import config_dataclass
from perception.nn.blocks import ChannelCount, conv_norm_act, downsample, separable_conv, upsample_twice
from perception.nn.necks.neck import Neck


@config_dataclass
class FPNConfig:
    """Config of `FPN`.

    Attributes:
        channels: width of the levels of stride 8 and coarser.
        fine_channels: width of the level of stride 4, which has the most pixels.
    """

    name: Literal["fpn"] = "fpn"
    channels: ChannelCount = 96
    fine_channels: ChannelCount = 48


class FPN(Neck):
    """Top-down sums (Lin et al. 2017) with BatchNorm and depthwise-separable smoothing."""

    Config = FPNConfig

    def __init__(self, channels: Mapping[int, int], config: FPNConfig, strides: Collection[int]) -> None:
        super().__init__(channels, config, strides)
        width = pyramid_channels(channels, strides, config.channels, config.fine_channels)
        self.channels = {stride: width[stride] for stride in sorted(strides)}
        self.top_down = TopDownPathway(channels, width)
        self.smooth = nn.ModuleDict({str(s): separable_conv(width[s], width[s]) for s in sorted(strides)})

    def forward(self, features: Mapping[int, Tensor], strides: Collection[int]) -> dict[int, Tensor]:
        """Return {stride: features} of the requested levels, see `Neck.forward`."""
        levels = self.top_down(features, min(strides))
        return {stride: self.smooth[str(stride)](levels[stride]) for stride in sorted(strides, reverse=True)}


class TopDownPathway(nn.Module):
    """Adds all coarser levels to the backbone's features of each level.

    Args:
        channels: {stride: channels} of the backbone.
        level_channels: {stride: channels} of the levels.
    """

    def __init__(self, channels: Mapping[int, int], level_channels: Mapping[int, int]) -> None:
        super().__init__()
        self.levels = sorted(level_channels, reverse=True)
        self.lateral = nn.ModuleDict(
            {str(s): conv_norm_act(channels[s], level_channels[s], act=False) for s in self.levels if s in channels}
        )
        self.extra = nn.ModuleDict(
            {
                str(s): downsample(level_channels[s // 2], level_channels[s])
                for s in reversed(self.levels)
                if s not in channels
            }
        )
        self.reduce = nn.ModuleDict(
            {
                str(fine): conv_norm_act(level_channels[coarse], level_channels[fine], act=False)
                for coarse, fine in pairwise(self.levels)
                if level_channels[fine] != level_channels[coarse]
            }
        )

    def forward(self, features: Mapping[int, Tensor], finest: int) -> dict[int, Tensor]:
        """Return {stride: [B, C, H / stride, W / stride]} down to the stride ``finest``."""
        wanted = [stride for stride in self.levels if stride >= finest]
        levels = project_levels(features, finest, self.lateral, self.extra)
        for coarse, fine in pairwise(wanted):
            above = levels[coarse]
            if str(fine) in self.reduce:
                above = self.reduce[str(fine)](above)
            levels[fine] = levels[fine] + upsample_twice(above, levels[fine])
        return levels


def project_levels(
    features: Mapping[int, Tensor], finest: int, lateral: nn.ModuleDict, extra: nn.ModuleDict
) -> dict[int, Tensor]:
    """Project the backbone's features from ``finest`` on to the pyramid's widths, and add coarser levels.

    Args:
        features: {stride: features} of the backbone.
        finest: the finest stride to project.
        lateral: stride -> projection of the backbone's level.
        extra: stride of a level coarser than the backbone's, finest first -> layer that computes it from the level
            before.

    Returns:
        {stride: features}.
    """
    finest = min(finest, max(features))
    entered = {s: lateral[str(s)](one) for s, one in features.items() if s >= finest}
    for name, layer in extra.items():
        entered[int(name)] = layer(entered[int(name) // 2])
    return entered


def pyramid_channels(
    channels: Mapping[int, int], strides: Collection[int], coarse_channels: int, fine_channels: int
) -> dict[int, int]:
    """Return {stride: width} of all levels from the finest that heads read to the coarsest one."""
    levels, stride = [], min(*strides, max(channels))
    while stride <= max(*channels, *strides):
        levels.append(stride)
        stride *= 2
    return {stride: fine_channels if stride < 8 else coarse_channels for stride in levels}
