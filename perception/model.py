"""The network: backbone -> neck -> tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from perception.config import configuration
from perception.nn.backbone import Backbone, BackboneConfig
from perception.nn.necks import FPN, NeckConfig
from perception.tasks import TASKS, Part, Task, join, task_class
from perception.types import Batch, ConfigError, TaskSpec


@configuration
class ModelConfig:
    backbone: BackboneConfig = BackboneConfig()
    neck: NeckConfig = NeckConfig()


class Losses(NamedTuple):
    """What a training step needs of a batch.

    parts:     task -> part -> sum and count, see `perception.tasks.Part`
    shared:    the features that several tasks read, before any fusion: where their gradients meet
    penalties: name -> scalar that the architecture itself asks for (the pull between soft-shared trunks, the load
        balance of experts), independent of any label and the same on all ranks; empty for hard sharing
    """

    parts: dict[str, dict[str, Part]]
    shared: tuple[Tensor, ...]
    penalties: dict[str, Tensor]


class Perception(nn.Module):
    """One network for every task.

    tasks: name -> config of that task. weights: load the backbone's; not needed where a checkpoint follows.
    Pictures are uint8 RGB [B, 3, H, W], height and width multiples of 32. Wherever ``tasks`` can be given, only the
    subgraph that those tasks need is run.
    """

    tasks: nn.ModuleDict

    def __init__(self, config: ModelConfig, tasks: Mapping[str, Any], weights: bool = True) -> None:
        super().__init__()
        if not tasks:
            raise ConfigError("The recipe has no task. Give at least one of: " + ", ".join(TASKS) + ".")
        self.backbone = Backbone(config.backbone, weights)
        strides = {stride for name, task in tasks.items() for stride in _strides(name, task)}
        self.neck = FPN(self.backbone.channels, config.neck, strides)
        self.tasks = nn.ModuleDict(
            {name: task_class(name, task)(name, task, self.neck.channels) for name, task in tasks.items()}
        )
        # The layout that convolutions are fastest in: about twice on CPUs, in training and in evaluation.
        self.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    @property
    def specs(self) -> dict[str, TaskSpec]:
        return {name: task.spec for name, task in self._chosen(None).items()}

    def forward(self, images: Tensor, tasks: Collection[str] | None = None) -> dict[str, NamedTuple]:
        """Raw outputs of the heads of ``tasks`` (all by default)."""
        chosen = self._chosen(tasks)
        pyramid = self.features(images, chosen)
        return {name: task(pyramid) for name, task in chosen.items()}

    def features(self, images: Tensor, tasks: Collection[str] | None = None) -> dict[int, Tensor]:
        """The pyramid {stride: features} that the heads of ``tasks`` read."""
        strides = {stride for task in self._chosen(tasks).values() for stride in task.strides}
        return self.neck(self.backbone(images), strides)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Task -> loss; a zero with its graph where no picture of the batch labels the task."""
        return {name: join(parts) for name, parts in self.loss_parts(batch).parts.items()}

    def loss_parts(self, batch: Batch) -> Losses:
        """The losses as sums that ranks can join, and the features that all tasks share."""
        chosen = self._chosen(None)
        pyramid = self.features(batch.images, chosen)
        parts = {
            name: task.loss(task(pyramid), batch.annotations[name], batch.cameras) for name, task in chosen.items()
        }
        return Losses(parts, tuple(pyramid.values()), {})

    def predict(self, images: Tensor, tasks: Collection[str] | None = None) -> dict[str, Tensor]:
        """Decoded outputs, "<task>.<output>" -> tensor in input pixels. This is the graph that is exported."""
        chosen = self._chosen(tasks)
        outputs: dict[str, Tensor] = {}
        for name, raw in self(images, chosen).items():
            for key, value in chosen[name].decode(raw, images.shape[-2:]).items():
                outputs[f"{name}.{key}"] = value
        return outputs

    def keep(self, tasks: Collection[str]) -> Perception:
        """Drop every head but those of ``tasks``, in place."""
        self.tasks = nn.ModuleDict(dict(self._chosen(tasks)))
        return self

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
