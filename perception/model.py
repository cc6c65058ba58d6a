"""The multi-task network: shared features, feature exchange between tasks (fusion), then task heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, ItemsView, Iterator, Mapping, Sequence, ValuesView
from itertools import accumulate, chain
from types import MappingProxyType
from typing import Any, NamedTuple, cast

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
"""Fraction of a backbone's parameters, counted from its end, in which balance.space "late" compares gradients. It keeps
the step within 1.25 times the time of the summed loss (docs/balancers.md compares larger fractions)."""


@config_dataclass
class ModelConfig:
    """Settings of the network.

    Attributes:
        backbone: feature extractor.
        neck: combines the backbone's features into a pyramid.
        sharing: which layers the tasks share.
        fusion: feature exchange between the tasks, before the heads.
        norm: normalization layers.
    """

    backbone: BackboneConfig = BackboneConfig()
    neck: NeckConfig = AutoNeckConfig()
    sharing: SharingConfig = dataclasses.field(default_factory=HardSharingConfig)
    fusion: FusionConfig = dataclasses.field(default_factory=NoFusionConfig)
    norm: NormConfig = dataclasses.field(default_factory=BatchNormConfig)

    def __post_init__(self) -> None:
        frozen = isinstance(self.norm, FrozenBatchNormConfig) or getattr(self.norm, "backbone", "") == "frozen"
        if frozen and self.backbone.weights == "none":
            raise ConfigError(
                f"model.norm.name is '{self.norm.name}', which freezes the backbone's normalization statistics, but "
                "model.backbone.weights is 'none'. Set model.backbone.weights, or choose another norm."
            )


class LossOutput(NamedTuple):
    """Losses of a batch, for one training step.

    Attributes:
        terms: task -> term -> sum and count, see `perception.tasks.LossTerm`.
        shared_features: the features that several tasks read, before fusion. The tasks' gradients meet there.
        penalties: name -> scalar, already weighted. Losses of the architecture, independent of labels: the distance
            between soft-shared trunks, the load balance of experts. Empty for hard sharing.
        graph_cuts: where the autograd graph is cut; None = not cut.
    """

    terms: dict[str, dict[str, LossTerm]]
    shared_features: tuple[Tensor, ...]
    penalties: dict[str, Tensor]
    graph_cuts: GraphCuts | None = None


class TaskDict(nn.ModuleDict):
    """Name -> task."""

    def __getitem__(self, key: str) -> Task:
        """Return the task."""
        return cast(Task, super().__getitem__(key))

    def values(self) -> ValuesView[Task]:
        """Return the tasks, in the recipe's order."""
        return cast("ValuesView[Task]", super().values())

    def items(self) -> ItemsView[str, Task]:
        """Return the names and the tasks, in the recipe's order."""
        return cast("ItemsView[str, Task]", super().items())


class MultiTaskModel(nn.Module):
    """One network for all tasks.

    Images are uint8 RGB [B, 3, H, W]. Height and width are multiples of 32. Methods with an argument ``tasks`` run only
    the part of the network that these tasks need.

    Args:
        config: the architecture.
        tasks: name -> config of that task.
        weights: load pretrained weights of the backbone. Not needed if a checkpoint is loaded afterwards.
        sources: names of the training sources, needed for ``model.norm: {name: per_source}``.
    """

    tasks: TaskDict

    def __init__(
        self, config: ModelConfig, tasks: Mapping[str, Any], weights: bool = True, sources: Sequence[str] = ()
    ) -> None:
        super().__init__()
        if not tasks:
            raise ConfigError("The recipe has no task. Give at least one of: " + ", ".join(TASKS) + ".")
        needs = {name: _required_strides(name, task) for name, task in tasks.items()}
        self.sharing = build_sharing(config.sharing, config.backbone, config.neck, needs, weights)
        self.tasks = TaskDict(
            {name: find_task_class(name, task)(name, task, self.sharing.channels[name]) for name, task in tasks.items()}
        )
        # Built last: the other layers then get the same initial weights with and without fusion.
        self.fusion = build_fusion(config.fusion, self.sharing.channels)
        self.sources = tuple(sources) if isinstance(config.norm, PerSourceBatchNormConfig) else ()
        convert_norm(self, config.norm, self.sources)
        # Convolutions are fastest in this layout: about 2x on CPUs, in training and in evaluation.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def specs(self) -> dict[str, TaskSpec]:
        """Task -> its specification for metrics, drawing, JSON and export."""
        return {name: task.spec for name, task in self.tasks.items()}

    def forward(self, images: Tensor, tasks: Collection[str] | None = None) -> dict[str, NamedTuple]:
        """Return the raw head outputs of ``tasks`` (default: all)."""
        task_pyramids = self.streams(images, tasks)
        return {name: task(task_pyramids[name]) for name, task in self._select_tasks(tasks).items()}

    def streams(self, images: Tensor, tasks: Collection[str] | None = None) -> TaskPyramids:
        """Return task -> the pyramid {stride: features} that its head reads, after sharing and fusion."""
        return self.fusion(self._run_sharing(images, tasks).pyramids)

    def compute_attention(self, images: Tensor, tasks: Collection[str] | None = None) -> dict[int, AttentionMaps]:
        """Return stride -> attention maps between the tasks; empty without fusion."""
        return self.fusion.compute_attention(self._run_sharing(images, tasks).pyramids)

    def _run_sharing(self, images: Tensor, tasks: Collection[str] | None, cut: CutFunction = no_cut) -> SharingOutput:
        return self.sharing(images, {name: task.strides for name, task in self._select_tasks(tasks).items()}, cut)

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return task -> loss. It is 0, with a graph, if no image of the batch is labeled for the task."""
        return {name: sum_loss_terms(parts) for name, parts in self.compute_loss_terms(batch).terms.items()}

    @with_source_statistics
    def compute_loss_terms(
        self, batch: Batch, tasks: Collection[str] | None = None, cut_graph: bool = False
    ) -> LossOutput:
        """Compute the losses as sums and counts, which ranks can add up, and the features that the tasks share.

        Args:
            batch: training batch, annotations in input pixels.
            tasks: the tasks to run; None = all.
            cut_graph: cut the autograd graph for `perception.engine.backward.compute_gradients`. Otherwise one
                `backward` reaches all parameters.
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
        """Return decoded outputs, "<task>.<output>" -> tensor in input pixels. This is the exported graph.

        Args:
            images: uint8 RGB [B, 3, H, W].
            tasks: the tasks to run; None = all.
            label_spaces: task -> label space of each image, for evaluation. See `Task.decode_in_label_spaces`.
        """
        raws = self(images, tasks)
        outputs = self.decode(raws, images.shape[-2:])
        for name, own in label_spaces.items():
            found = self.tasks[name].decode_in_label_spaces(raws[name], own)
            outputs |= {f"{name}.{key}": value for key, value in found.items()}
        return outputs

    def decode(self, raw_outputs: Mapping[str, NamedTuple], size: Sequence[Any]) -> dict[str, Tensor]:
        """Decode the raw outputs of the heads, as `predict` does, for images of ``size`` (height, width)."""
        chosen = self._select_tasks(raw_outputs.keys())
        outputs: dict[str, Tensor] = {}
        for name, raw in raw_outputs.items():
            for key, value in chosen[name].decode(raw, size).items():
                outputs[f"{name}.{key}"] = value
        return outputs

    def keep_tasks(self, tasks: Collection[str]) -> MultiTaskModel:
        """Remove, in place, all other heads and the layers that only they need.

        Auxiliary heads for initial predictions are removed too: only training needs them.
        """
        self.tasks = TaskDict(self._select_tasks(tasks))
        for task in self.tasks.values():
            task.auxiliary_head = None
        self.sharing.keep_tasks(self.tasks.keys())
        self.fusion.keep_tasks(self.tasks.keys())
        return self

    @property
    def backbone(self) -> Backbone:
        """The backbone; the first one if each task has its own. All normalize images in the same way."""
        return next(self.sharing.backbones())

    def shared_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that several tasks depend on. With fusion, these are all below the heads."""
        if isinstance(self.fusion, NoFusion):
            return self.sharing.shared_parameters()
        return chain(self.sharing.parameters(), self.fusion.parameters())

    def task_specific_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters below the heads that only one task depends on, such as its own neck or gate."""
        shared = {id(parameter) for parameter in self.shared_parameters()}
        return (parameter for parameter in self.sharing.parameters() if id(parameter) not in shared)

    def last_shared_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the last shared layers (of the neck, for hard sharing); none if nothing is shared.

        Balancers can compare the tasks' gradients there (GradNorm, Chen et al. 2018).
        """
        return self.sharing.last_shared_parameters()

    def late_shared_parameters(self) -> Iterator[nn.Parameter]:
        """The shared parameters without the first ``1 - LATE_FRACTION`` of each backbone's parameters.

        In convolutional networks, the late layers have most of the parameters and small feature maps. Gradients there
        are cheap to compute and close to the gradients over all parameters.
        """
        early: set[int] = set()
        for backbone in self.sharing.backbones():
            parameters = list(backbone.parameters())
            ends = accumulate(parameter.numel() for parameter in parameters)
            most = (1 - LATE_FRACTION) * sum(parameter.numel() for parameter in parameters)
            early |= {id(parameter) for parameter, end in zip(parameters, ends, strict=True) if end <= most}
        return (parameter for parameter in self.shared_parameters() if id(parameter) not in early)

    def _select_tasks(self, tasks: Collection[str] | None) -> dict[str, Task]:
        mine = dict(self.tasks.items())
        if tasks is None:
            return mine
        unknown = sorted(set(tasks) - set(mine))
        if unknown or not tasks:
            raise ConfigError(
                f"This network has no task {', '.join(unknown) or '(none given)'}. It has: {', '.join(mine)}."
            )
        return {name: task for name, task in mine.items() if name in tasks}


def _required_strides(name: str, config: object) -> tuple[int, ...]:
    return getattr(config, "strides", None) or find_task_class(name, config).strides
