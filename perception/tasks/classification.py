"""Labels of the whole picture: one of several classes, or any of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from perception.config import configuration
from perception.metrics.classification import ClassificationMetric
from perception.nn.blocks import Width, conv_norm_act
from perception.nn.necks import check_strides
from perception.tasks.task import Part, Pyramid, Task, TaskConfig, check_classes, of_rows
from perception.types import Annotation, Camera, ConfigError, ImageLabel, TaskSpec


@configuration
class ClassificationConfig(TaskConfig):
    """classes: names. multi_label: a picture may carry several. threshold: of a multi-label score that is shown.

    label_smoothing: share of a label that is spread over all classes (or, of several labels, between yes and no).
    strides: levels of the pyramid that are pooled, up to 32. Finer ones than that tell of light, weather and ground by
        their textures, which the coarsest need not carry, then.
    """

    classes: tuple[str, ...]
    type: Literal["classification"] = "classification"
    multi_label: bool = False
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    width: Width = 256
    strides: tuple[int, ...] = (32,)
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5

    def __post_init__(self) -> None:
        check_classes(self.classes)
        check_strides(self.strides)
        if self.strides[-1] != 32:
            raise ConfigError(f"strides is {list(self.strides)}. Expected 32 among them: it says what there is.")


class Raw(NamedTuple):
    """logits [B, C]."""

    logits: Tensor


class Texture(nn.Module):
    """Mean and standard deviation of each of ``width`` channels over the picture: [B, C, H, W] -> [B, 2 * width].

    Every second cell of every second row tells as much, for a quarter of the work.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.mix = conv_norm_act(channels, width, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        features = self.mix(features).float()
        mean = features.mean((2, 3), keepdim=True)
        spread = ((features - mean).square().mean((2, 3)) + 1e-5).sqrt()
        return torch.cat([mean.flatten(1), spread], 1)


class Classification(Task):
    """Global pooling; cross-entropy, or binary cross-entropy over the labelled classes.

    Logits are divided by ``temperature`` before they become probabilities (Guo et al. 2017). It is no parameter:
    `calibrate` fits it to held-out pictures, and it travels with the weights and into exports.
    """

    Config = ClassificationConfig
    score = "top1"

    temperature: Tensor

    def __init__(self, name: str, config: ClassificationConfig, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.config = config
        self.score = "map" if config.multi_label else "top1"  # type: ignore[misc]
        self.spec = TaskSpec(
            name,
            "label",
            ("probabilities",),
            classes=config.classes,
            multi_label=config.multi_label,
            threshold=config.threshold,
        )
        self.parts = ("cross_entropy",)
        self.strides = config.strides
        self.widen = conv_norm_act(channels[32], config.width)
        finer, width = config.strides[:-1], config.width // 4
        self.textures = nn.ModuleDict({str(s): Texture(channels[s], width) for s in finer})
        self.output = nn.Linear(config.width + 2 * width * len(finer), len(config.classes))
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, pyramid: Pyramid) -> Raw:
        pooled = [self.widen(pyramid[32]).mean((2, 3))]
        pooled += [texture(pyramid[int(stride)]) for stride, texture in self.textures.items()]
        return Raw(self.output(torch.cat(pooled, 1)).float())

    def losses(
        self, raw: Raw, targets: Sequence[Annotation | None], cameras: Sequence[Camera | None]
    ) -> dict[str, Part]:
        rows = [i for i, target in enumerate(targets) if isinstance(target, ImageLabel)]
        labels = [target for target in targets if isinstance(target, ImageLabel)]
        logits, values = of_rows(raw.logits, rows), torch.stack([label.values for label in labels])
        if not self.config.multi_label:
            entropy = F.cross_entropy(logits, values, reduction="none", label_smoothing=self.config.label_smoothing)
            return {"cross_entropy": Part(entropy.sum(), torch.full_like(entropy[0].detach(), len(rows)))}
        everything = torch.ones_like(values[0], dtype=torch.bool)
        known = torch.stack([everything if label.classes is None else label.classes for label in labels])
        smooth = values * (1 - self.config.label_smoothing) + 0.5 * self.config.label_smoothing
        entropy = F.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        return {"cross_entropy": Part((entropy * known).sum(), known.sum().to(entropy.dtype))}

    def decode(self, raw: Raw, size: Sequence[Any]) -> dict[str, Tensor]:
        logits = raw.logits / self.temperature
        return {"probabilities": logits.sigmoid() if self.config.multi_label else logits.softmax(-1)}

    def metric(self) -> ClassificationMetric:
        return ClassificationMetric(self.config.classes, self.config.multi_label)

    def calibrate(self, metric: ClassificationMetric) -> None:
        self.temperature.mul_(metric.temper())
