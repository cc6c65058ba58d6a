"""The network: sharing -> fusion -> tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perception.config import configuration
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.fusion import Attention, FusionConfig, NoFusion, NoFusionConfig, build_fusion
from perception.nn.gradient_cut import Cuts, Divide, undivided
from perception.nn.necks import AutoNeckConfig, NeckConfig
from perception.nn.norm import BatchConfig, FrozenConfig, NormConfig, PerSourceConfig, by_source, convert
from perception.nn.sharing import Features, HardConfig, Pyramids, SharingConfig, build_sharing
from perception.tasks import TASKS, Part, Task, join, task_class
from perception.types import Batch, ConfigError, LabelSpace, TaskSpec

LATE = 0.2
"""The part of a backbone's parameters, counted from its end, that balance.space "late" compares gradients in: as much
as a step of 1.25 times the time of the summed loss can pay for (docs/balancers.md has what more would show)."""


@configuration
class ModelConfig:
    backbone: BackboneConfig = BackboneConfig()
    neck: NeckConfig = AutoNeckConfig()
    sharing: SharingConfig = dataclasses.field(default_factory=HardConfig)
    fusion: FusionConfig = dataclasses.field(default_factory=NoFusionConfig)
    norm: NormConfig = dataclasses.field(default_factory=BatchConfig)

    def __post_init__(self) -> None:
        frozen = isinstance(self.norm, FrozenConfig) or getattr(self.norm, "backbone", "") == "frozen"
        if frozen and self.backbone.weights == "none":
            raise ConfigError(
                f"model.norm.name is '{self.norm.name}' with the statistics of the backbone's weights frozen, but "
                "model.backbone.weights is 'none'. Give weights, or another norm."
            )


class Losses(NamedTuple):
    """What a training step needs of a batch.

    parts:     task -> part -> sum and count, see `perception.tasks.Part`
    shared:    the features that several tasks read, before any fusion: where their gradients meet
    penalties: name -> scalar that the architecture itself asks for in training (the pull between soft-shared trunks,
        the load balance of experts), with its strength; independent of any label; empty for hard sharing
    cuts:      where the graph is divided; None = it is whole
    """

    parts: dict[str, dict[str, Part]]
    shared: tuple[Tensor, ...]
    penalties: dict[str, Tensor]
    cuts: Cuts | None = None


class Perception(nn.Module):
    """One network for every task.

    tasks: name -> config of that task. weights: load the backbone's; not needed where a checkpoint follows.
    sources: names of the training sources, which ``model.norm: {name: per_source}`` asks for.
    Pictures are uint8 RGB [B, 3, H, W], height and width multiples of 32. Wherever ``tasks`` can be given, only the
    subgraph that those tasks need is run.
    """

    tasks: nn.ModuleDict

    def __init__(
        self, config: ModelConfig, tasks: Mapping[str, Any], weights: bool = True, sources: Sequence[str] = ()
    ) -> None:
        super().__init__()
        if not tasks:
            raise ConfigError("The recipe has no task. Give at least one of: " + ", ".join(TASKS) + ".")
        needs = {name: _strides(name, task) for name, task in tasks.items()}
        self.sharing = build_sharing(config.sharing, config.backbone, config.neck, needs, weights)
        self.tasks = nn.ModuleDict(
            {name: task_class(name, task)(name, task, self.sharing.channels[name]) for name, task in tasks.items()}
        )
        # Last, so that a recipe with and without it starts from the same weights elsewhere.
        self.fusion = build_fusion(config.fusion, self.sharing.channels)
        self.sources = tuple(sources) if isinstance(config.norm, PerSourceConfig) else ()
        convert(self, config.norm, self.sources)
        # The layout that convolutions are fastest in: about twice on CPUs, in training and in evaluation.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def specs(self) -> dict[str, TaskSpec]:
        return {name: task.spec for name, task in self._chosen(None).items()}

    def forward(self, images: Tensor, tasks: Collection[str] | None = None) -> dict[str, NamedTuple]:
        """Raw outputs of the heads of ``tasks`` (all by default)."""
        streams = self.streams(images, tasks)
        return {name: task(streams[name]) for name, task in self._chosen(tasks).items()}

    def streams(self, images: Tensor, tasks: Collection[str] | None = None) -> Pyramids:
        """Task -> the pyramid {stride: features} that its head reads, after sharing and fusion."""
        return self.fusion(self._share(images, tasks).streams)

    def attention(self, images: Tensor, tasks: Collection[str] | None = None) -> dict[int, Attention]:
        """Stride -> which task attended to which, and where; empty where the recipe has no fusion."""
        return self.fusion.attention(self._share(images, tasks).streams)

    def _share(self, images: Tensor, tasks: Collection[str] | None, divide: Divide = undivided) -> Features:
        return self.sharing(images, {name: task.strides for name, task in self._chosen(tasks).items()}, divide)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Task -> loss; a zero with its graph where no picture of the batch labels the task."""
        return {name: join(parts) for name, parts in self.loss_parts(batch).parts.items()}

    @by_source
    def loss_parts(self, batch: Batch, tasks: Collection[str] | None = None, divided: bool = False) -> Losses:
        """The losses as sums that ranks can join, the features that tasks share, and what the architecture asks for.

        divided: cut the graph, for `perception.engine.backward.differentiate`; else one `backward` reaches everything
        """
        cuts = Cuts() if divided else None
        features = self._share(batch.images, tasks, cuts.divide if cuts else undivided)
        early = self.fusion.own(features.streams)
        streams = self.fusion.exchange(early)
        if cuts:
            early, streams = cuts.streams(early), cuts.streams(streams)
            cuts = dataclasses.replace(cuts, between=frozenset(features.penalties))
        parts = {
            name: task.loss(task(streams[name]), batch.annotations[name], batch.cameras, task.initial(early[name]))
            for name, task in self._chosen(tasks).items()
        }
        return Losses(parts, features.shared, features.penalties, cuts)

    def predict(
        self,
        images: Tensor,
        tasks: Collection[str] | None = None,
        spaces: Mapping[str, Sequence[LabelSpace | None]] = MappingProxyType({}),
    ) -> dict[str, Tensor]:
        """Decoded outputs, "<task>.<output>" -> tensor in input pixels. This is the graph that is exported.

        spaces: task -> the label space that each picture is to be read in, see `Task.decode_within`; for evaluation
        """
        raws = self(images, tasks)
        outputs = self.decode(raws, images.shape[-2:])
        for name, own in spaces.items():
            found = self._chosen(None)[name].decode_within(raws[name], own)
            outputs |= {f"{name}.{key}": value for key, value in found.items()}
        return outputs

    def decode(self, raws: Mapping[str, NamedTuple], size: Sequence[Any]) -> dict[str, Tensor]:
        """As `predict`, from the raw outputs of heads, for pictures of ``size`` (height, width)."""
        chosen = self._chosen(raws.keys())
        outputs: dict[str, Tensor] = {}
        for name, raw in raws.items():
            for key, value in chosen[name].decode(raw, size).items():
                outputs[f"{name}.{key}"] = value
        return outputs

    def keep(self, tasks: Collection[str]) -> Perception:
        """Drop, in place, every head but those of ``tasks``, what only the others need of the rest, and initial
        predictions, which only training needs."""
        self.tasks = nn.ModuleDict(dict(self._chosen(tasks)))
        for task in self._chosen(None).values():
            task.initial_prediction = None
        self.sharing.keep(self.tasks.keys())
        self.fusion.keep(self.tasks.keys())
        return self

    @property
    def backbone(self) -> Backbone:
        """The backbone, the first one where each task has its own. All normalise pictures alike."""
        return next(self.sharing.backbones())

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that several tasks depend on: with fusion, all below the heads."""
        if isinstance(self.fusion, NoFusion):
            return self.sharing.shared()
        return chain(self.sharing.parameters(), self.fusion.parameters())

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters below the heads that one task alone depends on, such as its own neck or gate."""
        shared = {id(parameter) for parameter in self.shared_parameters()}
        return (parameter for parameter in self.sharing.parameters() if id(parameter) not in shared)

    def last_shared_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the last layers that several tasks depend on (of the neck, for hard sharing), where balancers that
        compare the tasks' gradients (GradNorm, Chen et al. 2018) may take them; none where nothing is shared."""
        return self.sharing.last_shared()

    def late_parameters(self) -> Iterator[nn.Parameter]:
        """The shared parameters without the first of each backbone's: those, from the images on, that hold up to
        ``1 - LATE`` of its numbers. In convolutional networks the late layers hold most parameters and work on small
        maps, so that gradients there are cheap and close to those over all parameters."""
        early: set[int] = set()
        for backbone in self.sharing.backbones():
            parameters = list(backbone.parameters())
            ends = accumulate(parameter.numel() for parameter in parameters)
            most = (1 - LATE) * sum(parameter.numel() for parameter in parameters)
            early |= {id(parameter) for parameter, end in zip(parameters, ends, strict=True) if end <= most}
        return (parameter for parameter in self.shared_parameters() if id(parameter) not in early)

    def _chosen(self, tasks: Collection[str] | None) -> dict[str, Task]:
        mine: dict[str, Any] = dict(self.tasks.items())
        if tasks is None:
            return mine
        unknown = sorted(set(tasks) - set(mine))
        if unknown or not tasks:
            raise ConfigError(
                f"This network has no task {', '.join(unknown) or '(none given)'}. It has: {', '.join(mine)}."
            )
        return {name: task for name, task in mine.items() if name in tasks}


def _strides(name: str, config: Any) -> tuple[int, ...]:
    return getattr(config, "strides", None) or task_class(name, config).strides
