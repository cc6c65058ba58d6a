"""Multi-gate mixture of experts (MMoE, Ma et al. 2018): convolutional experts that each stream weighs for itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from itertools import chain
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.blocks import separable_conv
from perception.nn.gradient_cut import CutFunction, no_cut
from perception.nn.necks import NeckConfig
from perception.nn.norm import broadcast_from_first_rank, mean_over_ranks
from perception.nn.sharing.sharing import RequiredStrides, Sharing, SharingOutput, all_strides, select_modules
from perception.nn.trunk import Trunk
from perception.types import ConfigError


@config_dataclass
class MixtureOfExpertsConfig:
    """count: of experts. top_k: how many of them a stream uses.

    routing: "image" = a stream chooses for each image, by what it shows: all experts are run and kept. "task" = once
        for all images: experts that no stream chooses are neither run in evaluation nor kept.
    router_noise: standard deviation of what is added to a stream's preferences before it chooses, in training, so that
    it
        tries others. router_weight: strength of the penalty on experts that are chosen more than others.
    """

    name: Literal["experts"] = "experts"
    num_experts: Annotated[int, Field(gt=0)] = 4
    top_k: Annotated[int, Field(gt=0)] = 2
    routing: Literal["image", "task"] = "image"
    router_noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    router_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01


class MixtureOfExperts(Sharing):
    """One trunk; experts on every level of its pyramid, of which each stream adds a few, weighed for each image.

    A stream's gate looks at the mean of its coarsest level and chooses by noisy top k (Shazeer et al. 2017): for each
    image by its logits, or once by its bias alone (``active_experts``). By image, every expert sees every image and
    weighs
    nothing where it is not chosen: so an image does not depend on its batch and one graph serves all batches, for
    ``count / chosen`` times the work of the chosen ones. Gradients meet at the trunk's pyramid. The penalty
    "load_balance"
    is that of switch transformers (Fedus et al. 2022, eq. 4), where a token is what one stream asks of one image.
    """

    Config = MixtureOfExpertsConfig

    def __init__(
        self,
        config: MixtureOfExpertsConfig,
        backbone: BackboneConfig,
        neck: NeckConfig,
        required_strides: RequiredStrides,
        weights: bool,
    ) -> None:
        super().__init__(config, backbone, neck, required_strides, weights)
        if config.top_k > config.num_experts:
            raise ConfigError(
                f"model.sharing.chosen: {config.top_k} of {config.num_experts} experts cannot be chosen. Give at most "
                f"{config.num_experts}, or more experts with model.sharing.count."
            )
        self.config = config
        self.trunk = Trunk(backbone, neck, all_strides(required_strides), weights)
        widths = self.trunk.channels
        self.channels = {name: {s: widths[s] for s in strides} for name, strides in required_strides.items()}
        self.experts = nn.ModuleDict(
            {str(i): _build_expert(widths, all_strides(required_strides)) for i in range(config.num_experts)}
        )
        self.gates = nn.ModuleDict(
            {name: nn.Linear(widths[max(strides)], config.num_experts) for name, strides in required_strides.items()}
        )
        self.fixed_experts: dict[str, list[int]] = {}

    def forward(self, images: Tensor, required_strides: RequiredStrides, cut: CutFunction = no_cut) -> SharingOutput:
        pyramid = {stride: cut(level) for stride, level in self.trunk(images, all_strides(required_strides)).items()}
        routes = {name: self.active_experts(name) for name in required_strides}
        outputs: dict[int, dict[int, Tensor]] = {}
        for i in sorted({i for route in routes.values() for i in route}):
            strides = all_strides({name: required_strides[name] for name, route in routes.items() if i in route})
            outputs[i] = {s: self.experts[str(i)][str(s)](pyramid[s]) for s in strides}  # type: ignore[index]
        logits = {
            name: self.gates[name](pyramid[max(strides)].mean((2, 3))) for name, strides in required_strides.items()
        }
        chosen = {name: self.select_experts(name, its) for name, its in logits.items()}
        streams = {}
        for name, strides in required_strides.items():
            weights = logits[name].masked_fill(~chosen[name], -torch.inf).softmax(1)[:, :, None, None, None]
            streams[name] = {s: pyramid[s] + sum(weights[:, i] * outputs[i][s] for i in routes[name]) for s in strides}
        penalties = {"load_balance": self._load_balance_loss(logits, chosen)} if self.training else {}
        return SharingOutput(streams, tuple(pyramid.values()), penalties)

    def active_experts(self, task: str) -> list[int]:
        """The experts that are run for a stream. In training all are, so that nothing waits for the choice."""
        if task in self.fixed_experts:
            return self.fixed_experts[task]
        if self.training or self.config.routing == "image":
            return [int(i) for i in self.experts]
        return self._top_experts(task)

    def select_experts(self, task: str, logits: Tensor) -> Tensor:
        """bool [B, experts]: those that a stream adds in each image; in training, those that it tries this time."""
        if task in self.fixed_experts:
            return torch.tensor(
                [i in self.fixed_experts[task] for i in range(self.config.num_experts)], device=logits.device
            )
        gate: Any = self.gates[task]
        preferences = logits.detach() if self.config.routing == "image" else gate.bias.detach()[None]
        if self.training:
            noise = torch.randn_like(preferences)
            preferences = preferences + self.config.router_noise * (
                noise if self.config.routing == "image" else broadcast_from_first_rank(noise)
            )
        best = preferences.topk(self.config.top_k).indices
        experts = torch.arange(self.config.num_experts, device=logits.device)
        return (best[:, :, None] == experts).any(1).expand_as(logits)

    def _top_experts(self, task: str) -> list[int]:
        gate: Any = self.gates[task]
        return sorted(gate.bias.topk(self.config.top_k).indices.tolist())

    def _load_balance_loss(self, logits: Mapping[str, Tensor], selected: Mapping[str, Tensor]) -> Tensor:
        likely = torch.stack([one.softmax(1) for one in logits.values()]).mean((0, 1))
        taken = torch.stack([one.expand_as(logits[name]) for name, one in selected.items()]).to(likely).mean((0, 1))
        taken = mean_over_ranks(taken)  # so that the mean of the ranks' penalties is that of the joint batch
        return self.config.router_weight * len(likely) * (likely * taken).sum() / self.config.top_k

    def backbones(self) -> Iterator[Backbone]:
        yield self.trunk.backbone

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        return chain(self.trunk.parameters(), self.experts.parameters())

    def last_shared_parameters(self) -> Iterator[nn.Parameter]:
        return self.experts.parameters()

    def keep_tasks(self, tasks: Collection[str]) -> None:
        super().keep_tasks(tasks)
        self.gates = select_modules(self.gates, tasks)
        if self.config.routing == "task":
            self.fixed_experts = {name: self.fixed_experts.get(name) or self._top_experts(name) for name in self.gates}
            self.experts = select_modules(
                self.experts, {str(i) for route in self.fixed_experts.values() for i in route}
            )


def _build_expert(channels: Mapping[int, int], strides: Collection[int]) -> nn.ModuleDict:
    return nn.ModuleDict({str(s): separable_conv(channels[s], channels[s], 3) for s in sorted(strides)})
