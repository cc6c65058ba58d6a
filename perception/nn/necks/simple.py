"""A pyramid from one map: for plain ViTs, whose features all have one stride."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from torch import Tensor, nn

from perception.config import configuration
from perception.nn.blocks import Width, conv_norm_act, separable_conv
from perception.nn.necks.neck import Neck


@configuration
class SimplePyramidConfig:
    """channels: width of the levels of stride 8 and coarser. fine_channels: of stride 4, which has most pixels."""

    name: Literal["simple"] = "simple"
    channels: Width = 96
    fine_channels: Width = 48


class SimplePyramid(Neck):
    """Every level by itself from the backbone's last map (ViTDet, Li et al. 2022): finer ones by transposed
    convolutions, coarser ones by pooling."""

    Config = SimplePyramidConfig
    plain = True

    def __init__(self, channels: Mapping[int, int], config: SimplePyramidConfig, strides: Collection[int]) -> None:
        super().__init__(channels, config, strides)
        ((self.stride, depth),) = channels.items()
        self.channels = {s: config.fine_channels if s < 8 else config.channels for s in sorted(strides)}
        self.level = nn.ModuleDict({str(s): self._level(s, depth, width) for s, width in self.channels.items()})

    def _level(self, stride: int, depth: int, width: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        at = self.stride
        while at < stride:
            layers, at = [*layers, nn.MaxPool2d(3, stride=2, padding=1)], 2 * at
        while at > stride:
            layers, at = [*layers, *_doubled(depth, max(depth // 2, width))], at // 2
            depth = max(depth // 2, width)
        return nn.Sequential(*layers, conv_norm_act(depth, width, act=False), separable_conv(width, width))

    def forward(self, features: Mapping[int, Tensor], strides: Collection[int]) -> dict[int, Tensor]:
        return {stride: self.level[str(stride)](features[self.stride]) for stride in sorted(strides, reverse=True)}


def _doubled(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    """Layers that double height and width."""
    return nn.ConvTranspose2d(inputs, outputs, 2, stride=2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True)
