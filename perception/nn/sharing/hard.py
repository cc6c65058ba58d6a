"""Hard parameter sharing (Caruana 1993): one trunk; only the heads are task-specific."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from torch import Tensor, nn

from perception.config import config_dataclass
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.gradient_cut import CutFunction, no_cut
from perception.nn.necks import NeckConfig
from perception.nn.sharing.sharing import RequiredStrides, Sharing, SharingOutput, all_strides
from perception.nn.trunk import Trunk


@config_dataclass
class HardSharingConfig:
    """Config of `HardSharing`, without settings."""

    name: Literal["hard"] = "hard"


class HardSharing(Sharing):
    """One trunk for all streams: the cheapest architecture and the baseline. Gradients meet at the neck's pyramid."""

    Config = HardSharingConfig

    def __init__(
        self,
        config: HardSharingConfig,
        backbone: BackboneConfig,
        neck: NeckConfig,
        required_strides: RequiredStrides,
        weights: bool,
    ) -> None:
        super().__init__(config, backbone, neck, required_strides, weights)
        self.trunk = Trunk(backbone, neck, all_strides(required_strides), weights)
        self.channels = {
            name: {s: self.trunk.channels[s] for s in strides} for name, strides in required_strides.items()
        }

    def forward(self, images: Tensor, required_strides: RequiredStrides, cut: CutFunction = no_cut) -> SharingOutput:
        """Return the pyramids of the requested streams, see `Sharing.forward`."""
        pyramid = {stride: cut(level) for stride, level in self.trunk(images, all_strides(required_strides)).items()}
        streams = {name: {stride: pyramid[stride] for stride in strides} for name, strides in required_strides.items()}
        return SharingOutput(streams, tuple(pyramid.values()), {})

    def backbones(self) -> Iterator[Backbone]:
        """Return the trunk's backbone."""
        yield self.trunk.backbone

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return the trunk's parameters."""
        return self.trunk.parameters()

    def last_shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return the neck's parameters."""
        return self.trunk.neck.parameters()
