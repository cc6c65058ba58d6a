"""A backbone and its neck: from pictures to one pyramid."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.necks import NeckConfig, build_neck


class Trunk(nn.Module):
    """uint8 RGB [B, 3, H, W] to {stride: features}; after construction ``channels`` holds {stride: channels} of them.

    strides: the levels that can be asked for. weights: load the backbone's.
    """

    def __init__(self, backbone: BackboneConfig, neck: NeckConfig, strides: Collection[int], weights: bool) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, weights)
        self.neck = build_neck(neck, self.backbone.channels, strides)
        self.channels = self.neck.channels

    def forward(self, images: Tensor, strides: Collection[int]) -> dict[int, Tensor]:
        return self.neck(self.backbone(images), strides)
