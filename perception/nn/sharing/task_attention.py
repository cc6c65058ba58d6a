"""Multi-task attention network (MTAN, Liu et al. 2019): one backbone, from which each stream picks by attention."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perception.config import configuration
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.blocks import Width, conv_norm_act, separable_conv
from perception.nn.gradient_cut import Divide, undivided
from perception.nn.necks import NeckConfig, build_neck
from perception.nn.sharing.sharing import Features, Needs, Sharing, only


@configuration
class TaskAttentionConfig:
    """width: hidden channels of the attention modules."""

    name: Literal["task_attention"] = "task_attention"
    width: Width = 64


class TaskAttention(Sharing):
    """One backbone; each stream has an attention module on each of its levels, and a neck.

    A stream's modules begin at the finest level that its reader wants. Gradients meet at the backbone's features.
    """

    Config = TaskAttentionConfig

    def __init__(
        self, config: TaskAttentionConfig, backbone: BackboneConfig, neck: NeckConfig, needs: Needs, weights: bool
    ) -> None:
        super().__init__(config, backbone, neck, needs, weights)
        self.backbone = Backbone(backbone, weights)
        widths = self.backbone.channels
        self.attention = nn.ModuleDict(
            {name: Attention(widths, min(*strides, max(widths)), config.width) for name, strides in needs.items()}
        )
        necks = {name: build_neck(neck, widths, strides) for name, strides in needs.items()}
        self.neck = nn.ModuleDict(necks)
        self.channels = {name: dict(neck.channels) for name, neck in necks.items()}

    def forward(self, images: Tensor, needs: Needs, divide: Divide = undivided) -> Features:
        features = {stride: divide(level) for stride, level in self.backbone(images).items()}
        streams = {name: self.neck[name](self.attention[name](features), strides) for name, strides in needs.items()}
        return Features(streams, tuple(features.values()), {})

    def backbones(self) -> Iterator[Backbone]:
        yield self.backbone

    def shared(self) -> Iterator[nn.Parameter]:
        return self.backbone.parameters()

    def last_shared(self) -> Iterator[nn.Parameter]:
        return [module for module in self.backbone.body.children() if list(module.parameters())][-1].parameters()

    def keep(self, streams: Collection[str]) -> None:
        super().keep(streams)
        self.attention, self.neck = only(self.attention, streams), only(self.neck, streams)


class Attention(nn.Module):
    """A soft mask on every level of a backbone from ``finest`` on, made of the level itself and of what the mask of the
    level before let through.

    channels: {stride: channels} of the backbone.
    """

    def __init__(self, channels: Mapping[int, int], finest: int, width: int) -> None:
        super().__init__()
        self.strides = sorted(stride for stride in channels if stride >= finest)
        self.carry = nn.ModuleDict(
            {str(s): separable_conv(channels[before], channels[s], 3) for before, s in pairwise(self.strides)}
        )
        self.mask = nn.ModuleDict()
        for s in self.strides:
            inputs = channels[s] * (2 if str(s) in self.carry else 1)
            self.mask[str(s)] = nn.Sequential(conv_norm_act(inputs, width), nn.Conv2d(width, channels[s], 1))

    def forward(self, features: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The features, those from ``finest`` on behind their masks."""
        picked, before = dict(features), None
        for stride in self.strides:
            seen = features[stride]
            if before is not None:
                carried = F.max_pool2d(self.carry[str(stride)](before), 2)
                seen = torch.cat([seen, carried], 1)
            before = picked[stride] = features[stride] * self.mask[str(stride)](seen).sigmoid()
        return picked
