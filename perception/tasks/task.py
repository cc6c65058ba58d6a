"""The base class of the tasks: a head, a loss, a decoder and a metric for one annotation type."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.metrics.metric import Metric
from perception.nn.auxiliary_head import AuxiliaryHead
from perception.ops.losses import binary_kl_divergence, kl_divergence
from perception.types import Annotation, Camera, ConfigError, LabelSpace, TaskSpec

Pyramid = Mapping[int, Tensor]
"""Stride -> features [B, C, H / stride, W / stride]."""


LossWeight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Weight of a part of a loss."""


@config_dataclass
class TaskConfig:
    """Settings of every task.

    Attributes:
        auxiliary: the task is trained, evaluated and shapes the shared features, but it does not select checkpoints,
            has no control in a comparison, and is excluded from exports and other uses of the network unless requested
            by name.
    """

    auxiliary: bool = False


def check_classes(classes: Sequence[str]) -> None:
    """Check that the names can be the classes of a task.

    Raises:
        ConfigError: they are empty or contain duplicates.
    """
    if not classes or len(set(classes)) < len(classes):
        raise ConfigError(f"classes is {list(classes)}. Expected at least one name, without duplicates.")


class LossTerm(NamedTuple):
    """A part of a task's loss as a sum and a count: the loss is ``total / max(count, 1)``.

    Sums of several ranks can be combined. Means over shares of different sizes cannot.

    Attributes:
        total: weighted scalar with its graph.
        count: scalar without a graph: number of images, pixels, objects...
    """

    total: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride] - a tuple's method, which nothing needs


def sum_loss_terms(terms: Mapping[str, LossTerm]) -> Tensor:
    """Return the total loss of the terms, a scalar."""
    return torch.stack([part.total / part.count.clamp(min=1) for part in terms.values()]).sum()


class Task(nn.Module, ABC):
    """Config, head, loss, decoding and metric of one task. Each task has its own file in ``perception.tasks``.

    A new task subclasses this, implements the abstract methods, and is listed in ``perception.tasks.TASKS``.
    """

    Config: ClassVar[type]
    strides: tuple[int, ...]
    """Pyramid levels that the head reads. Other levels are computed only if another task needs them."""
    main_metric: ClassVar[str]
    """The metric that selects checkpoints, higher is better unless `main_metric_sign` is -1."""
    main_metric_sign: ClassVar[int] = 1
    spec: TaskSpec
    config: Any
    loss_names: tuple[str, ...]
    """Names of the terms that `total_loss_terms` returns, always all of them: ranks sum them by name."""
    running_statistics: tuple[str, ...] = ()
    """Names of the buffers that `compute_loss_terms` updates in training. Ranks average them."""
    auxiliary_loss_names: tuple[str, ...] = ()
    """The loss terms to which the auxiliary prediction contributes, see `add_auxiliary_head`."""
    auxiliary_head: AuxiliaryHead | None

    def __init__(self, *_: Any) -> None:
        """Subclasses are built from name, config and {stride: channels}."""
        super().__init__()
        self.auxiliary_head = None

    @property
    def is_auxiliary(self) -> bool:
        """Whether the task is auxiliary, see `TaskConfig`."""
        return self.config.auxiliary

    @abstractmethod
    def forward(self, pyramid: Pyramid) -> NamedTuple:
        """Return the raw output of the head. Traceable, and the same in training and evaluation."""

    @abstractmethod
    def compute_loss_terms(
        self, raw: Any, targets: Sequence[Annotation | None], cameras: Sequence[Camera | None]
    ) -> dict[str, LossTerm]:
        """Return the loss terms over the labeled images and classes; called with at least one labeled image.

        Each term is a sum over images: the contribution of an image to ``total`` and ``count`` does not depend on the
        others.

        Args:
            raw: output of `forward`.
            targets: one annotation per image, as tensors in input pixels; None = not labeled.
            cameras: intrinsics in input pixels; None where unknown.
        """

    @abstractmethod
    def decode(self, raw: Any, size: Sequence[Any]) -> dict[str, Tensor]:
        """Return `spec.outputs`. Traceable.

        Type "instances": boxes [B, K, 4] input pixels, scores [B, K] (0 = padding), labels [B, K], best first. Type
        "dense": one map [B, H, W] at input size. Type "label": probabilities [B, C].

        Args:
            raw: output of `forward`.
            size: height and width of the images; ints, or symbolic in an export.
        """

    def decode_in_label_spaces(self, raw: Any, label_spaces: Sequence[LabelSpace | None]) -> dict[str, Tensor]:
        """Return the outputs that change when an image is evaluated in the label space of its source.

        By default there are none.
        """
        return {}

    @abstractmethod
    def create_metric(self) -> Metric[Any]:
        """Return a new metric."""

    def calibrate(self, metric: Any) -> None:
        """Calibrate the scores: fit buffers to the held-out predictions that the metric holds.

        The metric's own predictions are changed in the same way, so it then measures the calibrated task. By default
        nothing is calibrated.
        """

    def distill(self, student: Any, teacher: Any) -> Tensor:
        """Return the distance of the raw output ``student`` from that of another network; 0 if they are equal.

        Knowledge distillation (Hinton et al. 2015), which keeps old tasks while a new one is learned (Li and Hoiem
        2016). By default the Kullback-Leibler divergence of ``logits`` [B, C, ...], averaged over images and pixels;
        of each class by itself if there is only one or the task is multi-label.
        """
        mine, theirs = student.logits.float(), teacher.logits.float()
        binary = self.spec.multi_label or mine.shape[1] == 1
        return (binary_kl_divergence if binary else kl_divergence)(mine, theirs).mean()

    def forward_auxiliary(self, pyramid: Pyramid) -> Any | None:
        """Return the raw output of the auxiliary prediction, for the loss only; None without an auxiliary head.

        Args:
            pyramid: the levels that the head reads, before any fusion.
        """
        return None

    def add_auxiliary_head(self, channels: Mapping[int, int], out_channels: int, loss_names: Sequence[str]) -> None:
        """Add an auxiliary prediction to a dense head, if ``auxiliary_weight`` a > 0.

        The terms ``loss_names`` become ``(head + a * auxiliary) / (1 + a)``, so the scale of the loss does not change.

        Args:
            channels: {stride: channels} of the levels that the head reads.
            out_channels: number of output channels.
            loss_names: the terms to which the auxiliary prediction contributes.
        """
        if self.config.auxiliary_weight:
            with torch.random.fork_rng(devices=()):  # all other initial weights are the same with and without it
                self.auxiliary_head = AuxiliaryHead(channels, out_channels)
            self.auxiliary_loss_names = tuple(loss_names)
            self.loss_names = (*self.loss_names, *(f"auxiliary_{name}" for name in loss_names))

    def total_loss_terms(
        self,
        raw: object,
        targets: Sequence[Annotation | None],
        cameras: Sequence[Camera | None],
        auxiliary_raw: Any | None = None,
    ) -> dict[str, LossTerm]:
        """Return the loss terms of the head and of its auxiliary prediction.

        If no image is labeled, the terms are zeros that keep the graph, because DDP needs every parameter in it.

        Args:
            raw: output of `forward`.
            targets: one annotation per image; None = not labeled.
            cameras: intrinsics in input pixels; None where unknown.
            auxiliary_raw: output of `forward_auxiliary`.
        """
        if not any(target is not None for target in targets):
            tensors = _flatten_tensors(raw if auxiliary_raw is None else (raw, auxiliary_raw))
            zero = torch.stack([tensor.sum() * 0.0 for tensor in tensors]).sum()
            return {name: LossTerm(zero, torch.zeros_like(zero.detach())) for name in self.loss_names}
        if auxiliary_raw is None:
            return self.compute_loss_terms(raw, targets, cameras)
        before = {name: getattr(self, name).clone() for name in self.running_statistics}
        auxiliary = self.compute_loss_terms(auxiliary_raw, targets, cameras)
        for name, value in before.items():  # only the call for the head updates them
            getattr(self, name).copy_(value)
        share = self.config.auxiliary_weight / (1 + self.config.auxiliary_weight)
        parts = self.compute_loss_terms(raw, targets, cameras)
        for name in self.auxiliary_loss_names:
            parts[name] = parts[name]._replace(total=parts[name].total * (1 - share))
            parts[f"auxiliary_{name}"] = auxiliary[name]._replace(total=auxiliary[name].total * share)
        return parts


def select_rows(values: Tensor, rows: Sequence[int]) -> Tensor:
    """Return ``values[rows]`` of [B, ...] without a GPU synchronization for the index list."""
    if len(rows) == len(values):
        return values
    each = values.unbind()
    return torch.stack([each[i] for i in rows])


def _flatten_tensors(raw: Any) -> list[Tensor]:
    if isinstance(raw, Tensor):
        return [raw]
    return [tensor for item in raw for tensor in _flatten_tensors(item)]
