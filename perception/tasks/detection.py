"""Anchor-free detection: every cell of the pyramid predicts class scores and the distances to a box's four sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perception.config import configuration
from perception.metrics.detection import DetectionMetric
from perception.nn.blocks import conv_norm_act
from perception.ops import boxes as geometry
from perception.ops.assignment import task_aligned
from perception.ops.losses import quality_focal
from perception.ops.nms import select
from perception.tasks.task import Part, Pyramid, Task
from perception.types import Annotation, Camera, Instances, TaskSpec


@configuration
class DetectionConfig:
    """classes: names, in the order of the labels.

    strides: levels of the pyramid; add 4 for very small objects.
    width, depth: channels and layers of the towers (width 0 = the neck's).
    candidates: boxes that enter non-maximum suppression. limit: boxes that leave it.
    threshold: score under which a box is not shown or written (metrics see all).
    """

    classes: tuple[str, ...]
    type: Literal["detection"] = "detection"
    strides: tuple[int, ...] = (8, 16, 32)
    width: int = 0
    depth: int = 2
    candidates: int = 500
    limit: int = 100
    iou_threshold: float = 0.5
    threshold: float = 0.3
    class_weight: float = 1.0
    box_weight: float = 2.0
    assigned: int = 10


class Raw(NamedTuple):
    """P = the cells of all levels.

    logits [B, P, C], boxes [B, P, 4] input pixels, points [P, 2] centres of the cells, strides [P].
    """

    logits: Tensor
    boxes: Tensor
    points: Tensor
    strides: Tensor


class Tower(nn.Module):
    """Depthwise-separable layers whose convolutions all levels share, with each level's own BatchNorm.

    Levels differ in statistics, so a shared BatchNorm would normalise in evaluation otherwise than in training.
    """

    def __init__(self, width: int, depth: int, levels: int) -> None:
        super().__init__()
        self.depthwise = nn.ModuleList(
            nn.Conv2d(width, width, 5, padding=2, groups=width, bias=False) for _ in range(depth)
        )
        self.pointwise = nn.ModuleList(nn.Conv2d(width, width, 1, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(width) for _ in range(2 * depth)) for _ in range(levels)
        )

    def forward(self, features: Tensor, level: int) -> Tensor:
        norms: Any = self.norms[level]
        for i, (depthwise, pointwise) in enumerate(zip(self.depthwise, self.pointwise, strict=True)):
            features = F.relu6(norms[2 * i](depthwise(features)))
            features = F.relu6(norms[2 * i + 1](pointwise(features)))
        return features


class Detection(Task):
    """Boxes by task-aligned learning: quality focal loss for the scores, complete IoU for the boxes."""

    Config = DetectionConfig
    score = "ap"

    def __init__(self, name: str, config: DetectionConfig, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.config = config
        self.strides = config.strides
        self.spec = TaskSpec(
            name, "instances", ("boxes", "scores", "labels"), classes=config.classes, threshold=config.threshold
        )
        self.parts = ("class", "box")
        width = config.width or channels[config.strides[-1]]
        self.narrow = nn.ModuleList(
            nn.Identity() if channels[s] == width else conv_norm_act(channels[s], width) for s in config.strides
        )
        self.class_tower = Tower(width, config.depth, len(config.strides))
        self.box_tower = Tower(width, config.depth, len(config.strides))
        self.class_output = nn.Conv2d(width, len(config.classes), 1)
        self.box_output = nn.Conv2d(width, 4, 1)
        for layer, bias in ((self.class_output, -4.6), (self.box_output, 2.0)):  # a prior of 0.01; boxes 4 cells wide
            nn.init.normal_(layer.weight, std=0.01)
            layer.bias.data.fill_(bias)  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, pyramid: Pyramid) -> Raw:
        logits, boxes, points, strides = [], [], [], []
        for level, stride in enumerate(self.strides):
            features = self.narrow[level](pyramid[stride])
            height, width = features.shape[-2:]
            centers = geometry.grid_points(height, width, stride, features)
            scores = self.class_output(self.class_tower(features, level)).float()
            sides = self.box_output(self.box_tower(features, level)).float()
            distances = F.softplus(sides.flatten(2).transpose(1, 2)) * stride
            logits.append(scores.flatten(2).transpose(1, 2))
            boxes.append(geometry.from_distances(centers, distances))
            points.append(centers)
            strides.append(torch.full_like(centers[:, 0], stride))
        return Raw(torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(points), torch.cat(strides))

    def losses(
        self, raw: Raw, targets: Sequence[Annotation | None], cameras: Sequence[Camera | None]
    ) -> dict[str, Part]:
        class_sum, box_sum, mass = raw.logits.new_zeros(()), raw.logits.new_zeros(()), raw.logits.new_zeros(())
        for i, target in enumerate(targets):
            if isinstance(target, Instances):
                parts = self._one_picture(raw, i, target)
                class_sum, box_sum, mass = class_sum + parts[0], box_sum + parts[1], mass + parts[2]
        return {
            "class": Part(self.config.class_weight * class_sum, mass),
            "box": Part(self.config.box_weight * box_sum, mass),
        }

    def _one_picture(self, raw: Raw, i: int, target: Instances) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of class loss, of quality-weighted box loss, and of quality, over the cells of picture ``i``."""
        logits, predicted = raw.logits[i], raw.boxes[i]
        ignore = torch.zeros_like(target.labels, dtype=torch.bool) if target.ignore is None else target.ignore
        objects, labels = target.boxes[~ignore], target.labels[~ignore]
        matched, quality = task_aligned(
            raw.points,
            raw.strides,
            logits.detach().sigmoid(),
            predicted.detach(),
            objects,
            labels,
            self.config.assigned,
        )
        wanted = torch.zeros_like(logits)
        positive = matched >= 0
        wanted[positive, labels[matched[positive]]] = quality[positive]
        counted = self._counted(raw.points, target, ignore) | (wanted > 0)
        class_loss = (quality_focal(logits, wanted) * counted).sum()
        box_loss = (1 - geometry.ciou(predicted[positive], objects[matched[positive]])) * quality[positive]
        return class_loss, box_loss.sum(), quality.sum()

    @staticmethod
    def _counted(points: Tensor, target: Instances, ignore: Tensor) -> Tensor:
        """bool [P, C or 1]: which scores are trained: not those in ignore regions, nor of unlabelled classes."""
        regions = target.boxes[ignore]
        inside = (points[:, None] >= regions[None, :, :2]) & (points[:, None] <= regions[None, :, 2:])
        counted = ~inside.all(-1).any(1)[:, None]
        return counted if target.classes is None else counted & target.classes[None]

    def decode(self, raw: Raw, size: Sequence[Any]) -> dict[str, Tensor]:
        scores, labels = raw.logits.sigmoid().max(-1)
        # Sorting, not top-k: a small picture has fewer cells than candidates, and ties fall alike in torch and ONNX.
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, : self.config.candidates]
        boxes, best, labels = select(
            raw.boxes.gather(1, order[..., None].expand(-1, -1, 4)),
            scores.gather(1, order),
            labels.gather(1, order),
            self.config.iou_threshold,
            self.config.limit,
        )
        return {"boxes": boxes, "scores": best, "labels": labels}

    def metric(self) -> DetectionMetric:
        return DetectionMetric(self.config.classes, self.config.threshold)
