"""Multi-task attention network (MTAN, Liu et al. 2019): one backbone, with attention masks for each stream."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.blocks import ChannelCount, conv_norm_act, separable_conv
from perception.nn.gradient_cut import CutFunction, no_cut
from perception.nn.necks import NeckConfig, build_neck
from perception.nn.sharing.sharing import RequiredStrides, Sharing, SharingOutput, select_modules


@config_dataclass
class TaskAttentionConfig:
    """Config of `TaskAttention`.

    Attributes:
        channels: hidden channels of the attention modules.
    """

    name: Literal["task_attention"] = "task_attention"
    channels: ChannelCount = 64


class TaskAttention(Sharing):
    """One backbone; each stream has an attention module on each level, and a neck.

    A stream's modules begin at the finest level that its head reads. Gradients meet at the backbone's features.
    """

    Config = TaskAttentionConfig

    def __init__(
        self,
        config: TaskAttentionConfig,
        backbone: BackboneConfig,
        neck: NeckConfig,
        required_strides: RequiredStrides,
        weights: bool,
    ) -> None:
        super().__init__(config, backbone, neck, required_strides, weights)
        self.backbone = Backbone(backbone, weights)
        widths = self.backbone.channels
        self.attention_modules = nn.ModuleDict(
            {
                name: AttentionModule(widths, min(*strides, max(widths)), config.channels)
                for name, strides in required_strides.items()
            }
        )
        necks = {name: build_neck(neck, widths, strides) for name, strides in required_strides.items()}
        self.neck = nn.ModuleDict(necks)
        self.channels = {name: dict(neck.channels) for name, neck in necks.items()}

    def forward(self, images: Tensor, required_strides: RequiredStrides, cut: CutFunction = no_cut) -> SharingOutput:
        """Return the pyramids of the requested streams, see `Sharing.forward`."""
        features = {stride: cut(level) for stride, level in self.backbone(images).items()}
        streams = {
            name: self.neck[name](self.attention_modules[name](features), strides)
            for name, strides in required_strides.items()
        }
        return SharingOutput(streams, tuple(features.values()), {})

    def backbones(self) -> Iterator[Backbone]:
        """Return the backbone."""
        yield self.backbone

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return the backbone's parameters."""
        return self.backbone.parameters()

    def last_shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the backbone's last layer."""
        return [module for module in self.backbone.body.children() if list(module.parameters())][-1].parameters()

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Remove the attention modules and necks of all other tasks, in place."""
        super().keep_tasks(tasks)
        self.attention_modules, self.neck = (
            select_modules(self.attention_modules, tasks),
            select_modules(self.neck, tasks),
        )


class AttentionModule(nn.Module):
    """A soft mask on every backbone level from ``finest`` on.

    The mask is computed from the level itself and from the masked features of the level before.

    Args:
        level_channels: {stride: channels} of the backbone.
        finest: the finest stride with a mask.
        channels: hidden channels.
    """

    def __init__(self, level_channels: Mapping[int, int], finest: int, channels: int) -> None:
        super().__init__()
        self.strides = sorted(stride for stride in level_channels if stride >= finest)
        self.transfer = nn.ModuleDict(
            {
                str(s): separable_conv(level_channels[before], level_channels[s], 3)
                for before, s in pairwise(self.strides)
            }
        )
        self.masks = nn.ModuleDict()
        for s in self.strides:
            inputs = level_channels[s] * (2 if str(s) in self.transfer else 1)
            self.masks[str(s)] = nn.Sequential(
                conv_norm_act(inputs, channels), nn.Conv2d(channels, level_channels[s], 1)
            )

    def forward(self, features: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Return the features, masked from stride ``finest`` on."""
        picked, before = dict(features), None
        for stride in self.strides:
            seen = features[stride]
            if before is not None:
                carried = F.max_pool2d(self.transfer[str(stride)](before), 2)
                seen = torch.cat([seen, carried], 1)
            before = picked[stride] = features[stride] * self.masks[str(stride)](seen).sigmoid()
        return picked
