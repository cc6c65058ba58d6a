"""Bidirectional feature pyramid network: repeated top-down and bottom-up fusion with learned weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.nn.blocks import ChannelCount, conv_norm_act, downsample, separable_conv, upsample_twice
from perception.nn.necks.fpn import project_levels, pyramid_channels
from perception.nn.necks.neck import Neck


@config_dataclass
class BiFPNConfig:
    """Config of `BiFPN`.

    Attributes:
        channels: width of the levels of stride 8 and coarser.
        fine_channels: width of the level of stride 4.
        num_layers: number of top-down and bottom-up layers.
    """

    name: Literal["bifpn"] = "bifpn"
    channels: ChannelCount = 96
    fine_channels: ChannelCount = 48
    num_layers: Annotated[int, Field(ge=1, le=16)] = 2


class BiFPN(Neck):
    """Weighted bidirectional fusion (Tan et al. 2020) between the levels of stride 8 and coarser.

    The level of stride 4 combines the result at stride 8 with the backbone's features, so it adds no cost for heads
    that do not need it.
    """

    Config = BiFPNConfig

    def __init__(self, channels: Mapping[int, int], config: BiFPNConfig, strides: Collection[int]) -> None:
        super().__init__(channels, config, strides)
        width = pyramid_channels(channels, strides, config.channels, config.fine_channels)
        self.channels = {stride: width[stride] for stride in sorted(strides)}
        self.levels = [stride for stride in width if stride >= 8]
        self.lateral = nn.ModuleDict(
            {str(s): conv_norm_act(channels[s], width[s], act=False) for s in width if s in channels}
        )
        self.extra = nn.ModuleDict({str(s): downsample(width[s // 2], width[s]) for s in width if s not in channels})
        self.layers = nn.ModuleList(
            BiFPNLayer(self.levels, config.channels, max(self.levels)) for _ in range(config.num_layers - 1)
        )
        self.layers.append(BiFPNLayer(self.levels, config.channels, max(strides)))
        self.reduce = nn.ModuleDict()
        self.smooth = nn.ModuleDict()
        if min(strides) < 8:
            self.reduce["4"] = conv_norm_act(config.channels, config.fine_channels, act=False)
            self.smooth["4"] = separable_conv(config.fine_channels, config.fine_channels)

    def forward(self, features: Mapping[int, Tensor], strides: Collection[int]) -> dict[int, Tensor]:
        """Return {stride: features} of the requested levels, see `Neck.forward`."""
        levels = project_levels(features, self.levels[0], self.lateral, self.extra)
        for number, layer in enumerate(self.layers, 1):
            levels = layer(levels, max(strides) if number == len(self.layers) else max(self.levels))
        if min(strides) < 8:
            fine = self.lateral["4"](features[4])
            fine = fine + upsample_twice(self.reduce["4"](levels[8]), fine)
            levels[4] = self.smooth["4"](fine)
        return {stride: levels[stride] for stride in sorted(strides, reverse=True)}


class BiFPNLayer(nn.Module):
    """One top-down and one bottom-up pass over levels of equal width.

    Args:
        levels: strides of the levels, the finest first.
        channels: width of the levels.
        coarsest: the last level of the bottom-up pass.
    """

    def __init__(self, levels: Sequence[int], channels: int, coarsest: int) -> None:
        super().__init__()
        self.levels = tuple(levels)
        climbing = [stride for stride in self.levels[1:] if stride <= coarsest]
        inputs = {stride: 2 if stride == self.levels[-1] else 3 for stride in climbing}
        self.fuse_down = nn.ModuleDict({str(s): WeightedSum(2) for s in self.levels[:-1]})
        self.smooth_down = nn.ModuleDict({str(s): separable_conv(channels, channels) for s in self.levels[:-1]})
        self.fuse_up = nn.ModuleDict({str(s): WeightedSum(inputs[s]) for s in climbing})
        self.smooth_up = nn.ModuleDict({str(s): separable_conv(channels, channels) for s in climbing})

    def forward(self, levels: Mapping[int, Tensor], coarsest: int) -> dict[int, Tensor]:
        """Return the fused levels up to stride ``coarsest``."""
        down = {self.levels[-1]: levels[self.levels[-1]]}
        for stride in reversed(self.levels[:-1]):
            above = upsample_twice(down[2 * stride], levels[stride])
            down[stride] = self.smooth_down[str(stride)](self.fuse_down[str(stride)](levels[stride], above))
        up = {self.levels[0]: down[self.levels[0]]}
        for stride in self.levels[1:]:
            if stride > coarsest:
                break
            below = F.max_pool2d(up[stride // 2], 3, stride=2, padding=1)
            inputs = (levels[stride],) if stride == self.levels[-1] else (levels[stride], down[stride])
            up[stride] = self.smooth_up[str(stride)](self.fuse_up[str(stride)](*inputs, below))
        return up


class WeightedSum(nn.Module):
    """Fast normalized fusion: a mean with learned non-negative weights (Tan et al. 2020, section 3.3)."""

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(num_inputs))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the weighted mean of the inputs."""
        weights = F.relu(self.weights)
        weights = weights / (weights.sum() + 1e-4)
        return sum(weights[i] * one for i, one in enumerate(inputs))  # type: ignore[return-value]
