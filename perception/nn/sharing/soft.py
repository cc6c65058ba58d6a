"""Soft parameter sharing (Duong et al. 2015): a trunk for each stream, and a pull that keeps their weights alike."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from perception.config import configuration
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.gradient_cut import Divide, undivided
from perception.nn.necks import NeckConfig
from perception.nn.sharing.sharing import Features, Needs, Sharing, only
from perception.nn.trunk import Trunk, trunks_alike


@configuration
class SoftConfig:
    """pull: strength of the pull of each trunk's weights to their mean over the trunks; 0 = independent networks."""

    name: Literal["soft"] = "soft"
    pull: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3


class Soft(Sharing):
    """A trunk for each stream, all starting from the same weights; as costly as a network for each task.

    The penalty "pull" is ``pull`` times the sum over the weights of their squared distances to their mean over the
    trunks. No feature and no parameter is shared, so a balancer that compares the tasks' gradients finds none.
    """

    Config = SoftConfig

    def __init__(
        self, config: SoftConfig, backbone: BackboneConfig, neck: NeckConfig, needs: Needs, weights: bool
    ) -> None:
        super().__init__(config, backbone, neck, needs, weights)
        self.pull = config.pull
        trunks = trunks_alike(backbone, neck, needs, weights)
        self.each = nn.ModuleDict(trunks)
        self.channels = {name: dict(trunk.channels) for name, trunk in trunks.items()}

    def forward(self, images: Tensor, needs: Needs, divide: Divide = undivided) -> Features:
        streams = {name: self.each[name](images, strides) for name, strides in needs.items()}
        return Features(streams, (), {"pull": self.pull * self._distance()} if self.training and self.pull else {})

    def _distance(self) -> Tensor:
        named: dict[str, list[Tensor]] = {}
        for trunk in self._trunks():
            for name, parameter in trunk.named_parameters():
                named.setdefault(name, []).append(parameter)
        groups = [torch.stack(group) for group in named.values()]
        return torch.stack([(group - group.mean(0)).square().sum() for group in groups]).sum()

    def backbones(self) -> Iterator[Backbone]:
        return (trunk.backbone for trunk in self._trunks())

    def _trunks(self) -> Iterator[Trunk]:
        each: Any = self.each
        yield from each.values()

    def shared(self) -> Iterator[nn.Parameter]:
        return iter(())

    def last_shared(self) -> Iterator[nn.Parameter]:
        return iter(())

    def keep(self, streams: Collection[str]) -> None:
        super().keep(streams)
        self.each = only(self.each, streams)
