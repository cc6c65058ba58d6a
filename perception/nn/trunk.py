"""A backbone and its neck: from images to one pyramid."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.necks import NeckConfig, build_neck


class Trunk(nn.Module):
    """A backbone and its neck: uint8 RGB [B, 3, H, W] to {stride: features}.

    Args:
        backbone: config of the backbone.
        neck: config of the neck.
        strides: the pyramid levels to build.
        weights: whether to load the backbone's weights.

    Attributes:
        channels: {stride: channels} of the pyramid.
    """

    def __init__(self, backbone: BackboneConfig, neck: NeckConfig, strides: Collection[int], weights: bool) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, weights)
        self.neck = build_neck(neck, self.backbone.channels, strides)
        self.channels = self.neck.channels

    def forward(self, images: Tensor, strides: Collection[int]) -> dict[int, Tensor]:
        """Return {stride: features} of the requested levels."""
        return self.neck(self.backbone(images), strides)


def build_identical_trunks(
    backbone: BackboneConfig, neck: NeckConfig, required_strides: Mapping[str, Collection[int]], weights: bool
) -> dict[str, Trunk]:
    """Build one trunk per stream with the levels that it needs, all with the same initial weights."""
    state = Trunk(
        backbone, neck, {stride for strides in required_strides.values() for stride in strides}, weights
    ).state_dict()
    trunks = {name: Trunk(backbone, neck, strides, weights=False) for name, strides in required_strides.items()}
    for trunk in trunks.values():
        trunk.load_state_dict({key: state.get(key, value) for key, value in trunk.state_dict().items()})
    return trunks
