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
from perception.nn.gradient_cut import Divide, undivided
from perception.nn.necks import NeckConfig
from perception.nn.norm import alike, mean_over_ranks
from perception.nn.sharing.sharing import Features, Needs, Sharing, levels, only
from perception.nn.trunk import Trunk
from perception.types import ConfigError


@configuration
class ExpertsConfig:
    """count: of experts. chosen: how many of them a stream uses.

    route: "image" = a stream chooses for each picture, by what it shows: all experts are run and kept. "task" = once
        for all pictures: experts that no stream chooses are neither run in evaluation nor kept.
    noise: standard deviation of what is added to a stream's preferences before it chooses, in training, so that it
        tries others. balance: strength of the penalty on experts that are chosen more than others.
    """

    name: Literal["experts"] = "experts"
    count: Annotated[int, Field(gt=0)] = 4
    chosen: Annotated[int, Field(gt=0)] = 2
    route: Literal["image", "task"] = "image"
    noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    balance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01


class Experts(Sharing):
    """One trunk; experts on every level of its pyramid, of which each stream adds a few, weighed for each picture.

    A stream's gate looks at the mean of its coarsest level and chooses by noisy top k (Shazeer et al. 2017): for each
    picture by its logits, or once by its bias alone (``route``). By picture, every expert sees every picture and weighs
    nothing where it is not chosen: so a picture does not depend on its batch and one graph serves all batches, for
    ``count / chosen`` times the work of the chosen ones. Gradients meet at the trunk's pyramid. The penalty "balance"
    is that of switch transformers (Fedus et al. 2022, eq. 4), where a token is what one stream asks of one picture.
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

    def forward(self, images: Tensor, needs: Needs, divide: Divide = undivided) -> Features:
        pyramid = {stride: divide(level) for stride, level in self.trunk(images, levels(needs)).items()}
        routes = {name: self.route(name) for name in needs}
        outputs: dict[int, dict[int, Tensor]] = {}
        for i in sorted({i for route in routes.values() for i in route}):
            strides = levels({name: needs[name] for name, route in routes.items() if i in route})
            outputs[i] = {s: self.experts[str(i)][str(s)](pyramid[s]) for s in strides}  # type: ignore[index]
        logits = {name: self.gates[name](pyramid[max(strides)].mean((2, 3))) for name, strides in needs.items()}
        chosen = {name: self.choose(name, its) for name, its in logits.items()}
        streams = {}
        for name, strides in needs.items():
            weights = logits[name].masked_fill(~chosen[name], -torch.inf).softmax(1)[:, :, None, None, None]
            streams[name] = {s: pyramid[s] + sum(weights[:, i] * outputs[i][s] for i in routes[name]) for s in strides}
        penalties = {"balance": self._imbalance(logits, chosen)} if self.training else {}
        return Features(streams, tuple(pyramid.values()), penalties)

    def route(self, stream: str) -> list[int]:
        """The experts that are run for a stream. In training all are, so that nothing waits for the choice."""
        if stream in self.kept:
            return self.kept[stream]
        if self.training or self.config.route == "image":
            return [int(i) for i in self.experts]
        return self._fixed(stream)

    def choose(self, stream: str, logits: Tensor) -> Tensor:
        """bool [B, experts]: those that a stream adds in each picture; in training, those that it tries this time."""
        if stream in self.kept:
            return torch.tensor([i in self.kept[stream] for i in range(self.config.count)], device=logits.device)
        gate: Any = self.gates[stream]
        preferences = logits.detach() if self.config.route == "image" else gate.bias.detach()[None]
        if self.training:
            noise = torch.randn_like(preferences)
            preferences = preferences + self.config.noise * (noise if self.config.route == "image" else alike(noise))
        best = preferences.topk(self.config.chosen).indices
        experts = torch.arange(self.config.count, device=logits.device)
        return (best[:, :, None] == experts).any(1).expand_as(logits)

    def _fixed(self, stream: str) -> list[int]:
        gate: Any = self.gates[stream]
        return sorted(gate.bias.topk(self.config.chosen).indices.tolist())

    def _imbalance(self, logits: Mapping[str, Tensor], chosen: Mapping[str, Tensor]) -> Tensor:
        likely = torch.stack([one.softmax(1) for one in logits.values()]).mean((0, 1))
        taken = torch.stack([one.expand_as(logits[name]) for name, one in chosen.items()]).to(likely).mean((0, 1))
        taken = mean_over_ranks(taken)  # so that the mean of the ranks' penalties is that of the joint batch
        return self.config.balance * len(likely) * (likely * taken).sum() / self.config.chosen

    def backbones(self) -> Iterator[Backbone]:
        yield self.trunk.backbone

    def shared(self) -> Iterator[nn.Parameter]:
        return chain(self.trunk.parameters(), self.experts.parameters())

    def last_shared(self) -> Iterator[nn.Parameter]:
        return self.experts.parameters()

    def keep(self, streams: Collection[str]) -> None:
        super().keep(streams)
        self.gates = only(self.gates, streams)
        if self.config.route == "task":
            self.kept = {name: self.kept.get(name) or self._fixed(name) for name in self.gates}
            self.experts = only(self.experts, {str(i) for route in self.kept.values() for i in route})


def _expert(channels: Mapping[int, int], strides: Collection[int]) -> nn.ModuleDict:
    return nn.ModuleDict({str(s): separable_conv(channels[s], channels[s], 3) for s in sorted(strides)})
