"""Multi-gate mixture of experts (MMoE, Ma et al. 2018): convolutional experts that each stream weighs for itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from perception.config import configuration
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.blocks import separable_conv
from perception.nn.necks import NeckConfig
from perception.nn.norm import alike
from perception.nn.sharing.sharing import Features, Needs, Sharing, levels, only
from perception.nn.trunk import Trunk
from perception.types import ConfigError


@configuration
class ExpertsConfig:
    """count: of experts. chosen: how many of them a stream uses.

    noise: standard deviation of what is added to a stream's preferences before it chooses, in training, so that it
        tries others. balance: strength of the penalty on experts that are chosen more than others.
    """

    name: Literal["experts"] = "experts"
    count: Annotated[int, Field(gt=0)] = 4
    chosen: Annotated[int, Field(gt=0)] = 2
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    balance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01


class Experts(Sharing):
    """One trunk; experts on every level of its pyramid, of which each stream adds a few, weighed for each picture.

    A stream's gate looks at the mean of its coarsest level. Which experts it chooses is up to the gate's bias alone
    (noisy top k, Shazeer et al. 2017), the same for all pictures: so the experts that no kept stream chooses are
    dropped by `keep`, and not run by an evaluation pass. Gradients meet at the trunk's pyramid. The penalty "balance"
    is that of switch transformers (Fedus et al. 2022, eq. 4), with the streams in the role of the tokens.
    """

    Config = ExpertsConfig

    def __init__(
        self, config: ExpertsConfig, backbone: BackboneConfig, neck: NeckConfig, needs: Needs, weights: bool
    ) -> None:
        super().__init__(config, backbone, neck, needs, weights)
        if config.chosen > config.count:
            raise ConfigError(
                f"model.sharing.chosen: {config.chosen} of {config.count} experts cannot be chosen. Give at most "
                f"{config.count}, or more experts with model.sharing.count."
            )
        self.config = config
        self.trunk = Trunk(backbone, neck, levels(needs), weights)
        widths = self.trunk.channels
        self.channels = {name: {s: widths[s] for s in strides} for name, strides in needs.items()}
        self.experts = nn.ModuleDict({str(i): _expert(widths, levels(needs)) for i in range(config.count)})
        self.gates = nn.ModuleDict(
            {name: nn.Linear(widths[max(strides)], config.count) for name, strides in needs.items()}
        )
        self.kept: dict[str, list[int]] = {}

    def forward(self, images: Tensor, needs: Needs) -> Features:
        pyramid = self.trunk(images, levels(needs))
        routes = {name: self.route(name) for name in needs}
        outputs: dict[int, dict[int, Tensor]] = {}
        for i in sorted({i for route in routes.values() for i in route}):
            strides = levels({name: needs[name] for name, route in routes.items() if i in route})
            outputs[i] = {s: self.experts[str(i)][str(s)](pyramid[s]) for s in strides}  # type: ignore[index]
        logits = {name: self.gates[name](pyramid[max(strides)].mean((2, 3))) for name, strides in needs.items()}
        streams = {name: self._mix(pyramid, outputs, logits[name], routes[name], needs[name]) for name in needs}
        penalties = {"balance": self._imbalance(logits, routes)} if self.training else {}
        return Features(streams, tuple(pyramid.values()), penalties)

    def route(self, stream: str) -> list[int]:
        """The experts that a stream uses; in training, those that it tries this time."""
        if stream in self.kept:
            return self.kept[stream]
        return self._prefer(stream, self.config.noise if self.training else 0.0)

    def _prefer(self, stream: str, noise: float) -> list[int]:
        gate: Any = self.gates[stream]
        drawn = torch.randn_like(gate.bias)
        preferences = gate.bias.detach() + noise * (alike(drawn) if noise else drawn)
        return sorted(preferences.topk(self.config.chosen).indices.tolist())

    def _mix(
        self,
        pyramid: Mapping[int, Tensor],
        outputs: Mapping[int, Mapping[int, Tensor]],
        logits: Tensor,
        route: list[int],
        strides: Collection[int],
    ) -> dict[int, Tensor]:
        weights = logits[:, route].softmax(1)[:, :, None, None, None]
        return {s: pyramid[s] + sum(weights[:, n] * outputs[i][s] for n, i in enumerate(route)) for s in strides}

    def _imbalance(self, logits: Mapping[str, Tensor], routes: Mapping[str, list[int]]) -> Tensor:
        likely = torch.stack([one.softmax(1).mean(0) for one in logits.values()]).mean(0)
        taken = torch.bincount(torch.tensor([i for route in routes.values() for i in route]), minlength=len(likely))
        taken = taken.to(likely) / (len(routes) * self.config.chosen)
        idle = torch.stack([parameter.sum() for parameter in self.experts.parameters()]).sum() * 0.0
        return self.config.balance * len(likely) * (likely * taken).sum() + idle  # idle experts stay in the graph

    def backbones(self) -> Iterator[Backbone]:
        yield self.trunk.backbone

    def shared(self) -> Iterator[nn.Parameter]:
        return chain(self.trunk.parameters(), self.experts.parameters())

    def last_shared(self) -> Iterator[nn.Parameter]:
        return self.experts.parameters()

    def keep(self, streams: Collection[str]) -> None:
        super().keep(streams)
        self.gates = only(self.gates, streams)
        self.kept = {name: self.kept.get(name) or self._prefer(name, 0.0) for name in self.gates}
        self.experts = only(self.experts, {str(i) for route in self.kept.values() for i in route})


def _expert(channels: Mapping[int, int], strides: Collection[int]) -> nn.ModuleDict:
    return nn.ModuleDict({str(s): separable_conv(channels[s], channels[s], 3) for s in sorted(strides)})
