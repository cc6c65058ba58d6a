"""Simple feature pyramid: a pyramid from a single map, for plain ViTs, whose features all have one stride."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from torch import Tensor, nn

from perception.config import config_dataclass
from perception.nn.blocks import ChannelCount, conv_norm_act, separable_conv
from perception.nn.necks.neck import Neck


@config_dataclass
class SimplePyramidConfig:
    """Config of `SimplePyramid`.

    Attributes:
        channels: width of the levels of stride 8 and coarser.
        fine_channels: width of the level of stride 4, which has the most pixels.
    """

    name: Literal["simple"] = "simple"
    channels: ChannelCount = 96
    fine_channels: ChannelCount = 48


class SimplePyramid(Neck):
    """Computes every level independently from the backbone's last map (ViTDet, Li et al. 2022).

    Finer levels use transposed convolutions, coarser ones use pooling.
    """

    Config = SimplePyramidConfig
    single_scale = True

    def __init__(self, channels: Mapping[int, int], config: SimplePyramidConfig, strides: Collection[int]) -> None:
        super().__init__(channels, config, strides)
        ((self.stride, depth),) = channels.items()
        self.channels = {s: config.fine_channels if s < 8 else config.channels for s in sorted(strides)}
        self.levels = nn.ModuleDict({str(s): self._build_level(s, depth, width) for s, width in self.channels.items()})

    def _build_level(self, stride: int, in_channels: int, out_channels: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        at = self.stride
        while at < stride:
            layers, at = [*layers, nn.MaxPool2d(3, stride=2, padding=1)], 2 * at
        while at > stride:
            layers, at = [*layers, *_upsample_layers(in_channels, max(in_channels // 2, out_channels))], at // 2
            in_channels = max(in_channels // 2, out_channels)
        return nn.Sequential(
            *layers, conv_norm_act(in_channels, out_channels, act=False), separable_conv(out_channels, out_channels)
        )

    def forward(self, features: Mapping[int, Tensor], strides: Collection[int]) -> dict[int, Tensor]:
        """Return {stride: features} of the requested levels, see `Neck.forward`."""
        return {stride: self.levels[str(stride)](features[self.stride]) for stride in sorted(strides, reverse=True)}


def _upsample_layers(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    """Build layers that double height and width."""
    return (
        nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )
