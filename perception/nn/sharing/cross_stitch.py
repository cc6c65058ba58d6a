"""Cross-stitch networks (Misra et al. 2016): a backbone for each stream, with feature mixing after every stage."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from itertools import chain
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.gradient_cut import CutFunction, no_cut
from perception.nn.necks import NeckConfig
from perception.nn.sharing.sharing import RequiredStrides, Sharing, SharingOutput, select_modules
from perception.nn.sharing.stages import run_in_stages
from perception.nn.trunk import build_identical_trunks


@config_dataclass
class CrossStitchConfig:
    """Config of `CrossStitch`.

    Attributes:
        self_weight: initial weight of a stream's own features. The other streams share the rest evenly.
    """

    name: Literal["cross_stitch"] = "cross_stitch"
    self_weight: Annotated[float, Field(gt=0, le=1)] = 0.9


class CrossStitch(Sharing):
    """A trunk for each stream, with cross-stitch units after each stage of the backbones.

    All trunks start from the same weights. A unit gives every stream a learned mixture, channel by channel, of the
    features of all streams. Every stream depends on all backbones, so `keep_tasks` removes only necks. Gradients meet
    at the backbones' features before they are mixed. The features of a stage depend on those of the stage before, so
    the graph cannot be cut there.
    """

    Config = CrossStitchConfig

    def __init__(
        self,
        config: CrossStitchConfig,
        backbone: BackboneConfig,
        neck: NeckConfig,
        required_strides: RequiredStrides,
        weights: bool,
    ) -> None:
        super().__init__(config, backbone, neck, required_strides, weights)
        trunks = build_identical_trunks(backbone, neck, required_strides, weights)
        self.backbone = nn.ModuleDict({name: trunk.backbone for name, trunk in trunks.items()})
        self.neck = nn.ModuleDict({name: trunk.neck for name, trunk in trunks.items()})
        self.channels = {name: dict(trunk.channels) for name, trunk in trunks.items()}
        widths, count = next(self.backbones()).channels, len(required_strides)
        start = torch.full((count, count), (1 - config.self_weight) / max(1, count - 1)).fill_diagonal_(
            config.self_weight
        )
        start = (start / start.sum(1)).unsqueeze(2)
        self.units = nn.ParameterDict({str(stride): start.repeat(1, 1, width) for stride, width in widths.items()})

    def forward(self, images: Tensor, required_strides: RequiredStrides, cut: CutFunction = no_cut) -> SharingOutput:
        """Return the pyramids of the requested streams, see `Sharing.forward`."""
        mixed: dict[str, dict[int, Tensor]] = {name: {} for name in self.backbone}
        before: list[Tensor] = []
        running = [run_in_stages(backbone, images) for backbone in self.backbones()]
        stage = [next(features) for features in running]
        while stage:
            stride, own = stage[0][0], [features for _, features in stage]
            before += own
            stage = []
            for features, unit, mine in zip(running, self.units[str(stride)], mixed.values(), strict=True):
                mine[stride] = torch.stack([x * w[:, None, None] for x, w in zip(own, unit, strict=True)]).sum(0)
                with suppress(StopIteration):
                    stage.append(features.send(mine[stride]))
        streams = {name: self.neck[name](mixed[name], strides) for name, strides in required_strides.items()}
        return SharingOutput(streams, tuple(before), {})

    def backbones(self) -> Iterator[Backbone]:
        """Return the backbones of all streams."""
        each: Any = self.backbone
        yield from each.values()

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of all backbones and units."""
        return chain(self.backbone.parameters(), self.units.parameters())

    def last_shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the units."""
        return self.units.parameters()

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Remove the necks of all other tasks, in place."""
        super().keep_tasks(tasks)
        self.neck = select_modules(self.neck, tasks)
