"""Soft parameter sharing (Duong et al. 2015): a trunk for each stream, with a penalty on weight differences."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.gradient_cut import CutFunction, no_cut
from perception.nn.necks import NeckConfig
from perception.nn.sharing.sharing import RequiredStrides, Sharing, SharingOutput, select_modules
from perception.nn.trunk import Trunk, build_identical_trunks


@config_dataclass
class SoftSharingConfig:
    """Config of `SoftSharing`.

    Attributes:
        l2_weight: weight of the penalty on the distance of each trunk's weights from their mean over the trunks; 0 =
            independent networks.
    """

    name: Literal["soft"] = "soft"
    l2_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3


class SoftSharing(Sharing):
    """A trunk for each stream, all with the same initial weights. The cost is that of one network per task.

    The penalty "l2_distance" is ``l2_weight`` times the sum over the weights of their squared distances to their mean
    over the
    trunks. No feature and no parameter is shared, so a balancer that compares the tasks' gradients has nothing to
    compare.
    """

    Config = SoftSharingConfig

    def __init__(
        self,
        config: SoftSharingConfig,
        backbone: BackboneConfig,
        neck: NeckConfig,
        required_strides: RequiredStrides,
        weights: bool,
    ) -> None:
        super().__init__(config, backbone, neck, required_strides, weights)
        self.l2_weight = config.l2_weight
        trunks = build_identical_trunks(backbone, neck, required_strides, weights)
        self.trunks = nn.ModuleDict(trunks)
        self.channels = {name: dict(trunk.channels) for name, trunk in trunks.items()}

    def forward(self, images: Tensor, required_strides: RequiredStrides, cut: CutFunction = no_cut) -> SharingOutput:
        """Return the pyramids of the requested streams, see `Sharing.forward`."""
        streams = {name: self.trunks[name](images, strides) for name, strides in required_strides.items()}
        return SharingOutput(
            streams,
            (),
            {"l2_distance": self.l2_weight * self._squared_distance()} if self.training and self.l2_weight else {},
        )

    def _squared_distance(self) -> Tensor:
        named: dict[str, list[Tensor]] = {}
        for trunk in self._iterate_trunks():
            for name, parameter in trunk.named_parameters():
                named.setdefault(name, []).append(parameter)
        groups = [torch.stack(group) for group in named.values()]
        return torch.stack([(group - group.mean(0)).square().sum() for group in groups]).sum()

    def backbones(self) -> Iterator[Backbone]:
        """Return the backbones of all trunks."""
        return (trunk.backbone for trunk in self._iterate_trunks())

    def _iterate_trunks(self) -> Iterator[Trunk]:
        each: Any = self.trunks
        yield from each.values()

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return an empty iterator."""
        return iter(())

    def last_shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return an empty iterator."""
        return iter(())

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Remove the trunks of all other tasks, in place."""
        super().keep_tasks(tasks)
        self.trunks = select_modules(self.trunks, tasks)
