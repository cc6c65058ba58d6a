"""Feature pyramid network: what is far is explained to what is near."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from perception.config import configuration
from perception.nn.blocks import Width, conv_norm_act, double, downsample, separable_conv
from perception.nn.necks.neck import Neck


@configuration
class FPNConfig:
    """channels: width of the levels of stride 8 and coarser. fine_channels: of stride 4, which has most pixels."""

    name: Literal["fpn"] = "fpn"
    channels: Width = 96
    fine_channels: Width = 48


class FPN(Neck):
    """Top-down sums (Lin et al. 2017) with BatchNorm and depthwise-separable smoothing."""

    Config = FPNConfig

    def __init__(self, channels: Mapping[int, int], config: FPNConfig, strides: Collection[int]) -> None:
        super().__init__(channels, config, strides)
        width = widths(channels, strides, config.channels, config.fine_channels)
        self.channels = {stride: width[stride] for stride in sorted(strides)}
        self.top_down = TopDown(channels, width)
        self.smooth = nn.ModuleDict({str(s): separable_conv(width[s], width[s]) for s in sorted(strides)})

    def forward(self, features: Mapping[int, Tensor], strides: Collection[int]) -> dict[int, Tensor]:
        levels = self.top_down(features, min(strides))
        return {stride: self.smooth[str(stride)](levels[stride]) for stride in sorted(strides, reverse=True)}


class TopDown(nn.Module):
    """Every level of ``width`` ({stride: channels}) as the backbone's features and all coarser levels tell it."""

    def __init__(self, channels: Mapping[int, int], width: Mapping[int, int]) -> None:
        super().__init__()
        self.levels = sorted(width, reverse=True)
        self.lateral = nn.ModuleDict(
            {str(s): conv_norm_act(channels[s], width[s], act=False) for s in self.levels if s in channels}
        )
        self.beyond = nn.ModuleDict(
            {str(s): downsample(width[s // 2], width[s]) for s in reversed(self.levels) if s not in channels}
        )
        self.narrow = nn.ModuleDict(
            {
                str(fine): conv_norm_act(width[coarse], width[fine], act=False)
                for coarse, fine in pairwise(self.levels)
                if width[fine] != width[coarse]
            }
        )

    def forward(self, features: Mapping[int, Tensor], finest: int) -> dict[int, Tensor]:
        """{stride: [B, width, H / stride, W / stride]} down to ``finest``."""
        wanted = [stride for stride in self.levels if stride >= finest]
        levels = entrances(features, finest, self.lateral, self.beyond)
        for coarse, fine in pairwise(wanted):
            above = levels[coarse]
            if str(fine) in self.narrow:
                above = self.narrow[str(fine)](above)
            levels[fine] = levels[fine] + double(above, levels[fine])
        return levels


def entrances(
    features: Mapping[int, Tensor], finest: int, lateral: nn.ModuleDict, beyond: nn.ModuleDict
) -> dict[int, Tensor]:
    """The backbone's features from ``finest`` on in the pyramid's widths, and its levels coarser than the backbone's.

    ``beyond`` maps the stride of such a level, finest first, to the layer that makes it of the level before.
    """
    finest = min(finest, max(features))
    entered = {s: lateral[str(s)](one) for s, one in features.items() if s >= finest}
    for name, layer in beyond.items():
        entered[int(name)] = layer(entered[int(name) // 2])
    return entered


def widths(channels: Mapping[int, int], strides: Collection[int], coarse: int, fine: int) -> dict[int, int]:
    """{stride: width} of all levels from the finest that heads read to the coarsest that there is."""
    levels, stride = [], min(*strides, max(channels))
    while stride <= max(*channels, *strides):
        levels.append(stride)
        stride *= 2
    return {stride: fine if stride < 8 else coarse for stride in levels}
