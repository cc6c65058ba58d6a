"""Semantic segmentation: a class for every pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from perception.config import configuration
from perception.metrics.segmentation import SegmentationMetric
from perception.nn.decoder import DenseDecoder
from perception.ops.losses import balanced_weights, dice
from perception.tasks.task import Part, Pyramid, Task
from perception.types import Annotation, Camera, ConfigError, DenseMap, TaskSpec


@configuration
class SegmentationConfig:
    """classes: names, in the order of the ids.

    strides: levels of the pyramid that are fused, the finest first.
    width: channels of the decoder.
    loss_stride: the loss is taken at 1 / loss_stride of the input's size.
    dice_weight: of the Dice term, which counts small classes as much as large ones.
    class_balance: how far the cross-entropy evens out the classes: 0 = every pixel counts the same, 1 = every class.
    """

    classes: tuple[str, ...]
    type: Literal["segmentation"] = "segmentation"
    strides: tuple[int, ...] = (4, 8, 16, 32)
    width: int = 64
    loss_stride: int = 2
    dice_weight: float = 0.5
    class_balance: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < len(self.classes) < 255:
            raise ConfigError(f"A label map has {len(self.classes)} classes. Expected 1 to 254: its ids are bytes.")


class Raw(NamedTuple):
    """logits [B, C, H / s, W / s], s = the finest stride."""

    logits: Tensor


class Segmentation(Task):
    """Cross-entropy and Dice over the labelled pixels."""

    Config = SegmentationConfig
    score = "miou"

    def __init__(self, name: str, config: SegmentationConfig, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.config = config
        self.strides = config.strides
        self.spec = TaskSpec(name, "dense", ("label_map",), classes=config.classes)
        self.parts = ("cross_entropy", "dice") if config.dice_weight else ("cross_entropy",)
        self.decoder = DenseDecoder({s: channels[s] for s in config.strides}, config.width, len(config.classes))

    def forward(self, pyramid: Pyramid) -> Raw:
        return Raw(self.decoder(pyramid).float())

    def losses(
        self, raw: Raw, targets: Sequence[Annotation | None], cameras: Sequence[Camera | None]
    ) -> dict[str, Part]:
        rows = [i for i, target in enumerate(targets) if isinstance(target, DenseMap)]
        maps = [target for target in targets if isinstance(target, DenseMap)]
        stride = self.config.loss_stride
        labels = torch.stack([target.values[::stride, ::stride] for target in maps]).long()
        valid = torch.stack([target.valid[::stride, ::stride] for target in maps]) & (labels < len(self.config.classes))
        labels = torch.where(valid, labels, 0)
        logits = F.interpolate(raw.logits[rows], size=labels.shape[-2:], mode="bilinear", align_corners=False)
        entropy = F.cross_entropy(logits, labels, reduction="none")
        weights = valid * torch.stack(
            [
                balanced_weights(one[known], logits.shape[1], self.config.class_balance)[one]
                for one, known in zip(labels, valid, strict=True)
            ]
        )
        losses = {"cross_entropy": Part((entropy * weights).sum(), weights.sum())}
        if self.config.dice_weight:
            one_hot = F.one_hot(labels, len(self.config.classes)).movedim(-1, 1).to(logits.dtype)
            total, count = dice(logits.softmax(1), one_hot, valid)
            losses["dice"] = Part(self.config.dice_weight * total, count)
        return losses

    def decode(self, raw: Raw, size: Sequence[Any]) -> dict[str, Tensor]:
        logits = F.interpolate(raw.logits, size=tuple(size), mode="bilinear", align_corners=False)
        return {"label_map": logits.argmax(1).to(torch.uint8)}

    def metric(self) -> SegmentationMetric:
        return SegmentationMetric(self.config.classes)
