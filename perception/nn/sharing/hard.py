"""Hard parameter sharing (Caruana 1993): one trunk; tasks part only at their heads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

from perception.config import configuration
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.gradient_cut import Divide, undivided
from perception.nn.necks import NeckConfig
from perception.nn.sharing.sharing import Features, Needs, Sharing, levels
from perception.nn.trunk import Trunk


@configuration
class HardConfig:
    """Has no settings."""

    name: Literal["hard"] = "hard"


class Hard(Sharing):
    """One trunk for all streams: the cheapest, and the one to beat. Gradients meet at the neck's pyramid."""

    Config = HardConfig

    def __init__(
        self, config: HardConfig, backbone: BackboneConfig, neck: NeckConfig, needs: Needs, weights: bool
    ) -> None:
        super().__init__(config, backbone, neck, needs, weights)
        self.trunk = Trunk(backbone, neck, levels(needs), weights)
        self.channels = {name: {s: self.trunk.channels[s] for s in strides} for name, strides in needs.items()}

    def forward(self, images: Tensor, needs: Needs, divide: Divide = undivided) -> Features:
        pyramid = {stride: divide(level) for stride, level in self.trunk(images, levels(needs)).items()}
        streams = {name: {stride: pyramid[stride] for stride in strides} for name, strides in needs.items()}
        return Features(streams, tuple(pyramid.values()), {})

    def backbones(self) -> Iterator[Backbone]:
        yield self.trunk.backbone

    def shared(self) -> Iterator[nn.Parameter]:
        return self.trunk.parameters()

    def last_shared(self) -> Iterator[nn.Parameter]:
        return self.trunk.neck.parameters()
