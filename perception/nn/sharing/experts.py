"""Multi-gate mixture of experts (MMoE, Ma et al. 2018): convolutional experts with a gate per stream."""

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
    """Config of `MixtureOfExperts`.

    Attributes:
        num_experts: number of experts.
        top_k: number of experts that a stream uses.
        routing: "image" = a stream selects experts for each image by its content; all experts are run and kept. "task"
            = one selection for all images; experts that no stream selects are neither run in evaluation nor kept.
        router_noise: standard deviation of the noise on the gate logits before the selection, in training, for
            exploration.
        router_weight: weight of the load-balancing penalty.
    """

    name: Literal["experts"] = "experts"
    num_experts: Annotated[int, Field(gt=0)] = 4
    top_k: Annotated[int, Field(gt=0)] = 2
    routing: Literal["image", "task"] = "image"
    router_noise: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.5
    router_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01


class MixtureOfExperts(Sharing):
    """One trunk, with experts on every pyramid level. Each stream adds a weighted sum of a few of them for each image.

    The gate of a stream reads the mean of its coarsest level and selects by noisy top k (Shazeer et al. 2017): for each
    image by its logits, or once by its bias alone (``active_experts``). With routing by image, every expert runs on
    every image and has weight zero where it is not selected. So the output for an image does not depend on its batch,
    and one graph serves all batches, at ``num_experts / top_k`` times the cost of the selected experts. Gradients meet
    at the trunk's pyramid. The penalty "load_balance" is that of switch transformers (Fedus et al. 2022, eq. 4). A
    token is
    one pair of stream and image.
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
                f"model.sharing.top_k is {config.top_k}, but there are {config.num_experts} experts. Expected at most "
                f"{config.num_experts}, or a larger model.sharing.num_experts."
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
        """Return the pyramids of the requested streams, see `Sharing.forward`."""
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
        """Return the experts that run for a stream. In training all run, so nothing waits for the selection."""
        if task in self.fixed_experts:
            return self.fixed_experts[task]
        if self.training or self.config.routing == "image":
            return [int(i) for i in self.experts]
        return self._top_experts(task)

    def select_experts(self, task: str, logits: Tensor) -> Tensor:
        """Return the experts selected for a stream, bool [B, num_experts]; in training with exploration noise."""
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
        taken = mean_over_ranks(taken)  # the mean penalty over the ranks then equals that of the joint batch
        return self.config.router_weight * len(likely) * (likely * taken).sum() / self.config.top_k

    def backbones(self) -> Iterator[Backbone]:
        """Return the trunk's backbone."""
        yield self.trunk.backbone

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the trunk and the experts."""
        return chain(self.trunk.parameters(), self.experts.parameters())

    def last_shared_parameters(self) -> Iterator[nn.Parameter]:
        """Return the parameters of the experts."""
        return self.experts.parameters()

    def keep_tasks(self, tasks: Collection[str]) -> None:
        """Remove the gates of all other tasks, in place, and with routing by task their experts."""
        super().keep_tasks(tasks)
        self.gates = select_modules(self.gates, tasks)
        if self.config.routing == "task":
            self.fixed_experts = {name: self.fixed_experts.get(name) or self._top_experts(name) for name in self.gates}
            self.experts = select_modules(
                self.experts, {str(i) for route in self.fixed_experts.values() for i in route}
            )


def _build_expert(channels: Mapping[int, int], strides: Collection[int]) -> nn.ModuleDict:
    return nn.ModuleDict({str(s): separable_conv(channels[s], channels[s], 3) for s in sorted(strides)})
