"""The network: sharing -> fusion -> tasks."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.fusion import AttentionMaps, FusionConfig, NoFusion, NoFusionConfig, build_fusion
from perception.nn.gradient_cut import CutFunction, GraphCuts, no_cut
from perception.nn.necks import AutoNeckConfig, NeckConfig
from perception.nn.norm import (
    BatchNormConfig,
    FrozenBatchNormConfig,
    NormConfig,
    PerSourceBatchNormConfig,
    convert_norm,
    with_source_statistics,
)
from perception.nn.sharing import HardSharingConfig, SharingConfig, SharingOutput, TaskPyramids, build_sharing
from perception.tasks import TASKS, LossTerm, Task, find_task_class, sum_loss_terms
from perception.types import Batch, ConfigError, LabelSpace, TaskSpec

LATE_FRACTION = 0.2
"""The part of a backbone's parameters, counted from its end, that balance.space "late" compares gradients in: as much
as a step of 1.25 times the time of the summed loss can pay for (docs/balancers.md has what more would show)."""


@config_dataclass
class ModelConfig:
    backbone: BackboneConfig = BackboneConfig()
    neck: NeckConfig = AutoNeckConfig()
    sharing: SharingConfig = dataclasses.field(default_factory=HardSharingConfig)
    fusion: FusionConfig = dataclasses.field(default_factory=NoFusionConfig)
    norm: NormConfig = dataclasses.field(default_factory=BatchNormConfig)

    def __post_init__(self) -> None:
        frozen = isinstance(self.norm, FrozenBatchNormConfig) or getattr(self.norm, "backbone", "") == "frozen"
        if frozen and self.backbone.weights == "none":
            raise ConfigError(
                f"model.norm.name is '{self.norm.name}' with the statistics of the backbone's weights frozen, but "
                "model.backbone.weights is 'none'. Give weights, or another norm."
            )


class LossOutput(NamedTuple):
    """What a training step needs of a batch.

    terms:     task -> part -> sum and count, see `perception.tasks.LossTerm`
    shared_features:    the features that several tasks read, before any fusion: where their gradients meet
    penalties: name -> scalar that the architecture itself asks for in training (the pull between soft-shared trunks,
        the load balance of experts), with its strength; independent of any label; empty for hard sharing
    graph_cuts:      where the graph is divided; None = it is whole
    """

    terms: dict[str, dict[str, LossTerm]]
    shared_features: tuple[Tensor, ...]
    penalties: dict[str, Tensor]
    graph_cuts: GraphCuts | None = None


class MultiTaskModel(nn.Module):
    """One network for every task.

    tasks: name -> config of that task. weights: load the backbone's; not needed where a checkpoint follows.
    sources: names of the training sources, which ``model.norm: {name: per_source}`` asks for.
    Images are uint8 RGB [B, 3, H, W], height and width multiples of 32. Wherever ``tasks`` can be given, only the
    subgraph that those tasks need is run.
    """

    tasks: nn.ModuleDict

    def __init__(
        self, config: ModelConfig, tasks: Mapping[str, Any], weights: bool = True, sources: Sequence[str] = ()
    ) -> None:
        super().__init__()
        if not tasks:
            raise ConfigError("The recipe has no task. Give at least one of: " + ", ".join(TASKS) + ".")
        needs = {name: _required_strides(name, task) for name, task in tasks.items()}
        self.sharing = build_sharing(config.sharing, config.backbone, config.neck, needs, weights)
        self.tasks = nn.ModuleDict(
            {name: find_task_class(name, task)(name, task, self.sharing.channels[name]) for name, task in tasks.items()}
        )
        # Last, so that a recipe with and without it starts from the same weights elsewhere.
        self.fusion = build_fusion(config.fusion, self.sharing.channels)
        self.sources = tuple(sources) if isinstance(config.norm, PerSourceBatchNormConfig) else ()
        convert_norm(self, config.norm, self.sources)
        # The layout that convolutions are fastest in: about twice on CPUs, in training and in evaluation.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def specs(self) -> dict[str, TaskSpec]:
        return {name: task.spec for name, task in self._select_tasks(None).items()}

    def forward(self, images: Tensor, tasks: Collection[str] | None = None) -> dict[str, NamedTuple]:
        """Raw outputs of the heads of ``tasks`` (all by default)."""
        task_pyramids = self.streams(images, tasks)
        return {name: task(task_pyramids[name]) for name, task in self._select_tasks(tasks).items()}

    def streams(self, images: Tensor, tasks: Collection[str] | None = None) -> TaskPyramids:
        """Task -> the pyramid {stride: features} that its head reads, after sharing and fusion."""
        return self.fusion(self._run_sharing(images, tasks).pyramids)

    def compute_attention(self, images: Tensor, tasks: Collection[str] | None = None) -> dict[int, AttentionMaps]:
        """Stride -> which task attended to which, and where; empty where the recipe has no fusion."""
        return self.fusion.compute_attention(self._run_sharing(images, tasks).pyramids)

    def _run_sharing(self, images: Tensor, tasks: Collection[str] | None, cut: CutFunction = no_cut) -> SharingOutput:
        return self.sharing(images, {name: task.strides for name, task in self._select_tasks(tasks).items()}, cut)

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Task -> loss; a zero with its graph where no image of the batch labels the task."""
        return {name: sum_loss_terms(parts) for name, parts in self.compute_loss_terms(batch).terms.items()}

    @with_source_statistics
    def compute_loss_terms(
        self, batch: Batch, tasks: Collection[str] | None = None, cut_graph: bool = False
    ) -> LossOutput:
        """The losses as sums that ranks can join, the features that tasks share, and what the architecture asks for.

        cut_graph: cut the graph, for `perception.engine.backward.compute_gradients`; else one `backward` reaches
        everything
        """
        cuts = GraphCuts() if cut_graph else None
        features = self._run_sharing(batch.images, tasks, cuts.cut_trunk if cuts else no_cut)
        early = self.fusion.adapt(features.pyramids)
        streams = self.fusion.exchange(early)
        if cuts:
            early, streams = cuts.cut_pyramids(early), cuts.cut_pyramids(streams)
            cuts = dataclasses.replace(cuts, trunk_penalties=frozenset(features.penalties))
        parts = {
            name: task.total_loss_terms(
                task(streams[name]), batch.annotations[name], batch.cameras, task.forward_auxiliary(early[name])
            )
            for name, task in self._select_tasks(tasks).items()
        }
        return LossOutput(parts, features.shared_features, features.penalties, cuts)

    def predict(
        self,
        images: Tensor,
        tasks: Collection[str] | None = None,
        label_spaces: Mapping[str, Sequence[LabelSpace | None]] = MappingProxyType({}),
    ) -> dict[str, Tensor]:
        """Decoded outputs, "<task>.<output>" -> tensor in input pixels. This is the graph that is exported.

        label_spaces: task -> the label space that each image is to be read in, see `Task.decode_in_label_spaces`; for
        evaluation
        """
        raws = self(images, tasks)
        outputs = self.decode(raws, images.shape[-2:])
        for name, own in label_spaces.items():
            found = self._select_tasks(None)[name].decode_in_label_spaces(raws[name], own)
            outputs |= {f"{name}.{key}": value for key, value in found.items()}
        return outputs

    def decode(self, raw_outputs: Mapping[str, NamedTuple], size: Sequence[Any]) -> dict[str, Tensor]:
        """As `predict`, from the raw outputs of heads, for images of ``size`` (height, width)."""
        chosen = self._select_tasks(raw_outputs.keys())
        outputs: dict[str, Tensor] = {}
        for name, raw in raw_outputs.items():
            for key, value in chosen[name].decode(raw, size).items():
                outputs[f"{name}.{key}"] = value
        return outputs

    def keep_tasks(self, tasks: Collection[str]) -> MultiTaskModel:
        """Drop, in place, every head but those of ``tasks``, what only the others need of the rest, and initial
        predictions, which only training needs."""
        self.tasks = nn.ModuleDict(dict(self._select_tasks(tasks)))
        for task in self._select_tasks(None).values():
            task.auxiliary_head = None
        self.sharing.keep_tasks(self.tasks.keys())
        self.fusion.keep_tasks(self.tasks.keys())
        return self

    @property
    def backbone(self) -> Backbone:
        """The backbone, the first one where each task has its own. All normalize images alike."""
        return next(self.sharing.backbones())

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that several tasks depend on: with fusion, all below the heads."""
        if isinstance(self.fusion, NoFusion):
            return self.sharing.shared_parameters()
        return chain(self.sharing.parameters(), self.fusion.parameters())

    def task_specific_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters below the heads that one task alone depends on, such as its own neck or gate."""
        shared = {id(parameter) for parameter in self.shared_parameters()}
        return (parameter for parameter in self.sharing.parameters() if id(parameter) not in shared)

    def last_shared_parameters(self) -> Iterator[nn.Parameter]:
        """Those of the last layers that several tasks depend on (of the neck, for hard sharing), where balancers that
        compare the tasks' gradients (GradNorm, Chen et al. 2018) may take them; none where nothing is shared."""
        return self.sharing.last_shared_parameters()

    def late_shared_parameters(self) -> Iterator[nn.Parameter]:
        """The shared parameters without the first of each backbone's: those, from the images on, that hold up to
        ``1 - LATE`` of its numbers. In convolutional networks the late layers hold most parameters and work on small
        maps, so that gradients there are cheap and close to those over all parameters."""
        early: set[int] = set()
        for backbone in self.sharing.backbones():
            parameters = list(backbone.parameters())
            ends = accumulate(parameter.numel() for parameter in parameters)
            most = (1 - LATE_FRACTION) * sum(parameter.numel() for parameter in parameters)
            early |= {id(parameter) for parameter, end in zip(parameters, ends, strict=True) if end <= most}
        return (parameter for parameter in self.shared_parameters() if id(parameter) not in early)

    def _select_tasks(self, tasks: Collection[str] | None) -> dict[str, Task]:
        mine: dict[str, Any] = dict(self.tasks.items())
        if tasks is None:
            return mine
        unknown = sorted(set(tasks) - set(mine))
        if unknown or not tasks:
            raise ConfigError(
                f"This network has no task {', '.join(unknown) or '(none given)'}. It has: {', '.join(mine)}."
            )
        return {name: task for name, task in mine.items() if name in tasks}


def _required_strides(name: str, config: Any) -> tuple[int, ...]:
    return getattr(config, "strides", None) or find_task_class(name, config).strides
