"""What every task is: a head, a loss, a decoder and a metric over one annotation shape."""

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
from perception.types import Annotation, Camera, ConfigError, LabelSpace, TaskSpec

Pyramid = Mapping[int, Tensor]
"""Stride -> features [B, C, H / stride, W / stride]."""


LossWeight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Of a part of a loss."""


@config_dataclass
class TaskConfig:
    """What every task's config has.

    auxiliary: the task is trained and measured, and teaches what tasks share, but picks no checkpoint, has no control
        in a comparison, and is left out of exports and of all that uses the network, unless it is asked for by name.
    """

    auxiliary: bool = False


def check_classes(classes: Sequence[str]) -> None:
    """Raises ConfigError where they cannot be the classes of a task."""
    if not classes or len(set(classes)) < len(classes):
        raise ConfigError(f"classes is {list(classes)}. Expected at least one name, each once.")


class LossTerm(NamedTuple):
    """A part of a task's loss as a sum over what it counts: the part is ``total / max(count, 1)``.

    Sums, not means, because the means of unlike shares of a batch (several ranks) cannot be joined, and sums can.

    total: scalar with its graph, weighted. count: scalar without one: images, pixels, objects...
    """

    total: Tensor
    count: Tensor


def sum_loss_terms(terms: Mapping[str, LossTerm]) -> Tensor:
    """The loss that its parts make: a scalar."""
    return torch.stack([part.total / part.count.clamp(min=1) for part in terms.values()]).sum()


class Task(nn.Module, ABC):
    """One file of ``perception.tasks``: its config, head, loss, decoding and metric.

    A new task subclasses this, implements the abstract methods, and is named in ``perception.tasks.TASKS``.
    """

    Config: ClassVar[type]
    strides: tuple[int, ...]
    """Levels of the pyramid that the head reads; only those are computed where no other task wants more."""
    main_metric: ClassVar[str]
    """The metric that picks checkpoints, higher is better unless `score_sign` is -1."""
    main_metric_sign: ClassVar[int] = 1
    spec: TaskSpec
    config: Any
    loss_names: tuple[str, ...]
    """Names of what `losses` returns, always all of them: ranks join their sums by name."""
    running_statistics: tuple[str, ...] = ()
    """Names of the buffers that `losses` estimates in training: ranks set them to their mean."""
    auxiliary_loss_names: tuple[str, ...] = ()
    """Those of the parts that the initial prediction has a share in, see `add_auxiliary`."""
    auxiliary_head: AuxiliaryHead | None

    def __init__(self, *_: Any) -> None:
        """Subclasses are built from name, config and {stride: channels}."""
        super().__init__()
        self.auxiliary_head = None

    @property
    def is_auxiliary(self) -> bool:
        return self.config.auxiliary

    @abstractmethod
    def forward(self, pyramid: Pyramid) -> NamedTuple:
        """Raw output of the head. Traceable, and the same in training and evaluation."""

    @abstractmethod
    def compute_loss_terms(
        self, raw: Any, targets: Sequence[Annotation | None], cameras: Sequence[Camera | None]
    ) -> dict[str, LossTerm]:
        """The `parts` of the loss over the labeled images and classes; called with at least one labeled image.

        Each is a sum over images: what one image adds to ``total`` and ``count`` does not depend on the others.

        targets: tensors, input pixels. cameras: intrinsics in input pixels.
        """

    @abstractmethod
    def decode(self, raw: Any, size: Sequence[Any]) -> dict[str, Tensor]:
        """`spec.outputs` of images of ``size`` (height, width; ints, or symbolic in an export). Traceable.

        shape "instances": boxes [B, K, 4] input pixels, scores [B, K] (0 = padding), labels [B, K], best first.
        shape "dense": one map [B, H, W] at input size. shape "label": probabilities [B, C].
        """

    def decode_in_label_spaces(self, raw: Any, label_spaces: Sequence[LabelSpace | None]) -> dict[str, Tensor]:
        """The outputs that are others where an image is judged in the label space of its source; by default none."""
        return {}

    @abstractmethod
    def create_metric(self) -> Metric:
        """A fresh accumulator."""

    def calibrate(self, metric: Any) -> None:
        """Make scores honest by what they were on held-out images: fit buffers to the metric that holds these.

        The metric's own predictions are changed alike, so that it tells what the calibrated task reaches. By default
        nothing is calibrated.
        """

    def forward_auxiliary(self, pyramid: Pyramid) -> Any | None:
        """The raw output of the initial prediction, for `loss` alone; None where there is none.

        pyramid: the levels that the head reads, as they are before any fusion
        """
        return None

    def add_auxiliary_head(self, channels: Mapping[int, int], out_channels: int, loss_names: Sequence[str]) -> None:
        """Give a dense head an initial prediction, where ``auxiliary_weight`` a > 0: its ``loss_names`` of the loss
        become
        ``(head + a * initial) / (1 + a)``, so that the task weighs the same with and without it."""
        if self.config.auxiliary_weight:
            with torch.random.fork_rng(devices=()):  # with and without it, all else starts from the same weights
                self.auxiliary_head = AuxiliaryHead(channels, out_channels)
            self.auxiliary_loss_names = tuple(loss_names)
            self.loss_names = (*self.loss_names, *(f"auxiliary_{name}" for name in loss_names))

    def total_loss_terms(
        self,
        raw: Any,
        targets: Sequence[Annotation | None],
        cameras: Sequence[Camera | None],
        auxiliary_raw: Any | None = None,
    ) -> dict[str, LossTerm]:
        """`losses` of the head and of its initial prediction, or zeros that keep the graph where no image is labeled
        (DDP needs every parameter in it)."""
        if not any(target is not None for target in targets):
            tensors = _flatten_tensors(raw if auxiliary_raw is None else (raw, auxiliary_raw))
            zero = torch.stack([tensor.sum() * 0.0 for tensor in tensors]).sum()
            return {name: LossTerm(zero, torch.zeros_like(zero.detach())) for name in self.loss_names}
        if auxiliary_raw is None:
            return self.compute_loss_terms(raw, targets, cameras)
        before = {name: getattr(self, name).clone() for name in self.running_statistics}
        auxiliary = self.compute_loss_terms(auxiliary_raw, targets, cameras)
        for name, value in before.items():  # the head's call estimates them
            getattr(self, name).copy_(value)
        share = self.config.auxiliary_weight / (1 + self.config.auxiliary_weight)
        parts = self.compute_loss_terms(raw, targets, cameras)
        for name in self.auxiliary_loss_names:
            parts[name] = parts[name]._replace(total=parts[name].total * (1 - share))
            parts[f"auxiliary_{name}"] = auxiliary[name]._replace(total=auxiliary[name].total * share)
        return parts


def select_rows(values: Tensor, rows: Sequence[int]) -> Tensor:
    """``values[rows]`` of [B, ...], but a GPU does not wait for a list of indices."""
    if len(rows) == len(values):
        return values
    each = values.unbind()
    return torch.stack([each[i] for i in rows])


def _flatten_tensors(raw: Any) -> list[Tensor]:
    if isinstance(raw, Tensor):
        return [raw]
    return [tensor for item in raw for tensor in _flatten_tensors(item)]
