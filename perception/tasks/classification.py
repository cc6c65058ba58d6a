"""Image classification: one of several classes, or several labels per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.metrics.classification import ClassificationMetric
from perception.nn.blocks import ChannelCount, conv_norm_act
from perception.nn.necks import check_strides
from perception.tasks.task import LossTerm, Pyramid, Task, TaskConfig, check_classes, select_rows
from perception.types import Annotation, Camera, ConfigError, ImageLabel, TaskSpec


@config_dataclass
class ClassificationConfig(TaskConfig):
    """Config of `ClassificationTask`.

    Attributes:
        classes: names, in the order of the labels.
        multi_label: whether an image can have several labels.
        label_smoothing: share of a label that is spread over all classes (multi-label: between positive and negative).
        channels: channels of the pooled stride-32 features.
        strides: pyramid levels that are pooled; they must include 32. Finer levels add texture statistics, which
            describe light, weather and ground, so the coarsest level need not encode these.
        score_threshold: minimum score of a displayed label (multi-label).
    """

    classes: tuple[str, ...]
    type: Literal["classification"] = "classification"
    multi_label: bool = False
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    channels: ChannelCount = 256
    strides: tuple[int, ...] = (32,)
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5

    def __post_init__(self) -> None:
        check_classes(self.classes)
        check_strides(self.strides)
        if self.strides[-1] != 32:
            raise ConfigError(
                f"strides is {list(self.strides)}. Expected strides that include 32: classification pools the "
                "stride-32 features."
            )


class Raw(NamedTuple):
    """Raw output: logits [B, C]."""

    logits: Tensor


class StatsPooling(nn.Module):
    """Mean and standard deviation over the image after a projection to ``channels``: [B, C, H, W] -> [B, 2 * channels].

    The projection has stride 2: a quarter of the cells is enough for these statistics, at a quarter of the cost.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = conv_norm_act(in_channels, channels, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        """Return mean and standard deviation per channel, [B, 2 * channels]."""
        features = self.conv(features).float()
        mean = features.mean((2, 3), keepdim=True)
        spread = ((features - mean).square().mean((2, 3)) + 1e-5).sqrt()
        return torch.cat([mean.flatten(1), spread], 1)


class ClassificationTask(Task):
    """Global pooling; cross-entropy, or binary cross-entropy over the labeled classes.

    Logits are divided by ``temperature`` before they become probabilities (Guo et al. 2017). It is not a trained
    parameter: `calibrate` fits it to held-out images. It is saved with the weights and included in exports.
    """

    Config = ClassificationConfig
    main_metric = "top1"

    temperature: Tensor

    def __init__(self, name: str, config: ClassificationConfig, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.config = config
        self.main_metric = "map" if config.multi_label else "top1"  # type: ignore[misc]
        self.spec = TaskSpec(
            name,
            "label",
            ("probabilities",),
            classes=config.classes,
            multi_label=config.multi_label,
            score_threshold=config.score_threshold,
        )
        self.loss_names = ("cross_entropy",)
        self.strides = config.strides
        self.project = conv_norm_act(channels[32], config.channels)
        finer, width = config.strides[:-1], config.channels // 4
        self.stats_pooling = nn.ModuleDict({str(s): StatsPooling(channels[s], width) for s in finer})
        self.classifier = nn.Linear(config.channels + 2 * width * len(finer), len(config.classes))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, pyramid: Pyramid) -> Raw:
        """Return the logits [B, C]."""
        pooled = [self.project(pyramid[32]).mean((2, 3))]
        pooled += [texture(pyramid[int(stride)]) for stride, texture in self.stats_pooling.items()]
        return Raw(self.classifier(torch.cat(pooled, 1)).float())

    def compute_loss_terms(
        self, raw: Raw, targets: Sequence[Annotation | None], cameras: Sequence[Camera | None]
    ) -> dict[str, LossTerm]:
        """Return the loss term "cross_entropy", see `Task.compute_loss_terms`."""
        rows = [i for i, target in enumerate(targets) if isinstance(target, ImageLabel)]
        labels = [target for target in targets if isinstance(target, ImageLabel)]
        logits, values = select_rows(raw.logits, rows), torch.stack([label.values for label in labels])
        if not self.config.multi_label:
            entropy = F.cross_entropy(logits, values, reduction="none", label_smoothing=self.config.label_smoothing)
            return {"cross_entropy": LossTerm(entropy.sum(), torch.full_like(entropy[0].detach(), len(rows)))}
        everything = torch.ones_like(values[0], dtype=torch.bool)
        known = torch.stack(
            [everything if label.labeled_classes is None else label.labeled_classes for label in labels]
        )
        smooth = values * (1 - self.config.label_smoothing) + 0.5 * self.config.label_smoothing
        entropy = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        return {"cross_entropy": LossTerm((entropy * known).sum(), known.sum().to(entropy.dtype))}

    def decode(self, raw: Raw, size: Sequence[Any]) -> dict[str, Tensor]:
        """Return the calibrated probabilities [B, C]."""
        logits = raw.logits / self.temperature
        return {"probabilities": logits.sigmoid() if self.config.multi_label else logits.softmax(-1)}

    def create_metric(self) -> ClassificationMetric:
        """Return a new metric."""
        return ClassificationMetric(self.config.classes, self.config.multi_label)

    def calibrate(self, metric: ClassificationMetric) -> None:
        """Fit the temperature to the predictions that the metric holds."""
        self.temperature.mul_(metric.fit_temperature())
