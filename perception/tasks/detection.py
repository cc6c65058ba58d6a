"""Anchor-free detection: every pyramid cell predicts class scores and the distances to the four sides of a box."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from perception.config import config_dataclass
from perception.metrics.detection import DetectionMetric
from perception.nn.blocks import conv_norm_act
from perception.nn.necks import check_strides
from perception.nn.towers import ConvTower
from perception.ops import boxes as geometry
from perception.ops.assignment import Grid, Objects, assign_sim_ota, assign_task_aligned
from perception.ops.detection_losses import distribution_focal_loss, expected_bin, quality_focal_loss
from perception.ops.losses import binary_kl_divergence, kl_divergence
from perception.ops.nms import select_detections, stable_topk
from perception.tasks.task import LossTerm, LossWeight, Pyramid, Task, TaskConfig, check_classes, select_rows
from perception.types import Annotation, Camera, ConfigError, Instances, TaskSpec

ASSIGNERS = {"task_aligned": assign_task_aligned, "sim_ota": assign_sim_ota}
IOU_FUNCTIONS = {"giou": geometry.giou, "diou": geometry.diou, "ciou": geometry.ciou}
BOX_SIDE_OFFSET = 1.0
"""How far, in cells, a box side can lie on the opposite side of a cell's center.

A box smaller than one cell may contain no cell center. It is assigned to up to four nearby centers, each of which can
regress it."""


@config_dataclass
class DetectionConfig(TaskConfig):
    """Config of `DetectionTask`.

    Attributes:
        classes: names, in the order of the labels.
        strides: pyramid levels; add 4 for very small objects.
        channels: channels of the towers; 0 = those of the neck.
        num_convs: layers of the towers.
        bins: bins of the distribution over each side's distance, one bin per cell (Li et al. 2020, GFL); 0 = direct
            regression. A side is at most ``bins - 2`` cells of the coarsest level from a cell's center: 16 bins reach
            448 pixels in each direction with stride 32.
        one_to_one: add a second head that predicts each object once, and decode it without non-maximum suppression
            (Wang et al. 2024, YOLOv10). The first head then only trains the features and is not exported.
        one_to_one_gradient: whether the second head also trains the features.
        pre_nms_topk: number of boxes before non-maximum suppression.
        max_detections: number of boxes after it.
        iou_threshold: a box with a higher IoU with a better box of its class is a duplicate.
        score_threshold: minimum score of a displayed or written box (metrics use all boxes).
        assignment: label assignment: "task_aligned" (Feng et al. 2021) or "sim_ota" (Ge et al. 2021).
        assign_topk: maximum number of cells per object.
        box_loss: the box loss is 1 minus this IoU.
        class_weight: weight of the classification loss.
        box_weight: weight of the box loss.
        dfl_weight: weight of the distribution focal loss.
    """

    classes: tuple[str, ...]
    type: Literal["detection"] = "detection"
    strides: tuple[int, ...] = (8, 16, 32)
    channels: Annotated[int, Field(ge=0)] = 0
    num_convs: int = 2
    bins: int = 0
    one_to_one: bool = False
    one_to_one_gradient: bool = False
    pre_nms_topk: int = 500
    max_detections: int = 100
    iou_threshold: float = 0.5
    score_threshold: float = 0.3
    assignment: Literal["task_aligned", "sim_ota"] = "task_aligned"
    assign_topk: int = 10
    box_loss: Literal["giou", "diou", "ciou"] = "ciou"
    class_weight: LossWeight = 1.0
    box_weight: LossWeight = 2.0
    dfl_weight: LossWeight = 0.5

    def __post_init__(self) -> None:
        check_classes(self.classes)
        check_strides(self.strides)
        if self.bins < 0 or self.bins in (1, 2):
            raise ConfigError(f"bins is {self.bins}. Expected 0 (direct regression) or at least 3.")
        for name in ("num_convs", "pre_nms_topk", "max_detections", "assign_topk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}. Expected at least 1.")
        for name in ("iou_threshold", "score_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}. Expected 0 to 1.")


class HeadOutput(NamedTuple):
    """Output of a head for P cells.

    Attributes:
        logits: [B, P, C].
        box_regression: distances before softplus [B, P, 4], or distribution logits [B, P, 4 * bins].
    """

    logits: Tensor
    box_regression: Tensor


class Raw(NamedTuple):
    """Raw output for P cells: those of all levels, from the finest to the coarsest, row by row.

    Attributes:
        logits: scores of the decoded head, see `HeadOutput`.
        box_regression: sides of the decoded head.
        points: centers of the cells [P, 2], input pixels.
        strides: [P].
        auxiliary_outputs: outputs of heads that are used in training only.
    """

    logits: Tensor
    box_regression: Tensor
    points: Tensor
    strides: Tensor
    auxiliary_outputs: tuple[HeadOutput, ...] = ()


class DetectionHead(nn.Module):
    """Predicts the scores and box sides of every level, with towers that all levels share."""

    def __init__(self, channels: int, config: DetectionConfig) -> None:
        super().__init__()
        levels = len(config.strides)
        self.class_tower = ConvTower(channels, config.num_convs, levels)
        self.box_tower = ConvTower(channels, config.num_convs, levels)
        self.class_output = nn.Conv2d(channels, len(config.classes), 1)
        self.box_output = nn.Conv2d(channels, 4 * max(1, config.bins), 1)
        self.scales = nn.Parameter(torch.ones(levels))
        # A prior of 0.01; boxes four cells wide (softplus(3) - BOX_SIDE_OFFSET = 2 to each side), or of all widths.
        for layer, bias in ((self.class_output, -4.6), (self.box_output, 0.0 if config.bins else 3.0)):
            nn.init.normal_(layer.weight, std=0.01)
            layer.bias.data.fill_(bias)  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, features: Tensor, level: int) -> HeadOutput:
        """Return the output for the features [B, C, H, W] of the level with this index."""
        logits = self.class_output(self.class_tower(features, level)).float()
        sides = self.box_output(self.box_tower(features, level)).float() * self.scales[level]
        return HeadOutput(*(maps.flatten(2).transpose(1, 2) for maps in (logits, sides)))


class DetectionTask(Task):
    """Boxes with quality focal loss for the scores, an IoU loss for the boxes, and dynamic label assignment."""

    Config = DetectionConfig
    main_metric = "ap"

    def __init__(self, name: str, config: DetectionConfig, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.config = config
        self.strides = config.strides
        self.spec = TaskSpec(
            name,
            "instances",
            ("boxes", "scores", "labels"),
            classes=config.classes,
            score_threshold=config.score_threshold,
        )
        loss_names = ("class", "box", "distribution") if config.bins else ("class", "box")
        self.loss_names = (
            (*loss_names, *(f"one_to_one_{part}" for part in loss_names)) if config.one_to_one else loss_names
        )
        width = config.channels or channels[config.strides[-1]]
        self.lateral = nn.ModuleList(
            nn.Identity() if channels[s] == width else conv_norm_act(channels[s], width) for s in config.strides
        )
        self.heads = nn.ModuleList(DetectionHead(width, config) for _ in range(1 + config.one_to_one))

    def forward(self, pyramid: Pyramid) -> Raw:
        """Return the raw output for the cells of all levels."""
        found: list[list[HeadOutput]] = [[] for _ in self.heads]
        points, strides = [], []
        for level, stride in enumerate(self.strides):
            features = self.lateral[level](pyramid[stride])
            height, width = features.shape[-2:]
            points.append(geometry.grid_points(height, width, stride, features))
            strides.append(torch.full_like(points[-1][:, 0], stride))
            for i, predictor in enumerate(self.heads):
                teaches = i == 0 or self.config.one_to_one_gradient
                found[i].append(predictor(features if teaches else features.detach(), level))
        *auxiliary, last = (HeadOutput(*(torch.cat(x, 1) for x in zip(*levels, strict=True))) for levels in found)
        return Raw(*last, torch.cat(points), torch.cat(strides), tuple(auxiliary))

    def compute_loss_terms(
        self, raw: Raw, targets: Sequence[Annotation | None], cameras: Sequence[Camera | None]
    ) -> dict[str, LossTerm]:
        """Return the terms "class", "box" and with bins "distribution", see `Task.compute_loss_terms`."""
        instances = {i: target for i, target in enumerate(targets) if isinstance(target, Instances)}
        rows, grid = list(instances), Grid(raw.points, raw.strides)
        objects = collect_objects(list(instances.values()))
        counted = torch.stack([self._trained_scores_mask(raw.points, target) for target in instances.values()])
        parts: dict[str, LossTerm] = {}
        for i, branch in enumerate((*raw.auxiliary_outputs, HeadOutput(raw.logits, raw.box_regression))):
            prefix = "one_to_one_" if i else ""
            mine = HeadOutput(*(select_rows(x, rows) for x in branch))
            found = self._head_loss_terms(mine, grid, objects, counted, one_to_one=i > 0)
            parts |= {prefix + name: part for name, part in found.items()}
        return parts

    def _head_loss_terms(
        self, output: HeadOutput, grid: Grid, objects: Objects, trained_scores: Tensor, one_to_one: bool
    ) -> dict[str, LossTerm]:
        config, predicted = self.config, self.decode_boxes(output.box_regression, *grid)
        found = ASSIGNERS[config.assignment](
            grid, output.logits.detach().sigmoid(), predicted.detach(), objects, config.assign_topk, int(one_to_one)
        )
        place, truth = (found.image_indices, found.cell_indices), objects.boxes[found.object_indices]
        mass = found.box_weight.sum()
        wanted = torch.zeros_like(output.logits)
        wanted[(*place, objects.labels[found.object_indices])] = found.quality
        class_loss = quality_focal_loss(output.logits, wanted) * (trained_scores | (wanted > 0))
        box_loss = (1 - IOU_FUNCTIONS[config.box_loss](predicted[place], truth)) * found.box_weight
        parts = {
            "class": LossTerm(config.class_weight * class_loss.sum(), found.quality.sum()),
            "box": LossTerm(config.box_weight * box_loss.sum(), mass),
        }
        if config.bins:
            cells = (
                geometry.boxes_to_distances(grid.points[found.cell_indices], truth)
                / grid.strides[found.cell_indices, None]
            )
            logits = output.box_regression[place].unflatten(-1, (4, config.bins))
            loss = distribution_focal_loss(logits, cells + BOX_SIDE_OFFSET).mean(-1) * found.box_weight
            parts["distribution"] = LossTerm(config.dfl_weight * loss.sum(), mass)
        return parts

    def _trained_scores_mask(self, points: Tensor, target: Instances) -> Tensor:
        """Return which scores are trained, bool [P, C].

        Excluded are cells in ignore regions, and classes that are labeled partially or not at all.
        """
        counted = torch.ones(len(points), len(self.config.classes), dtype=torch.bool, device=points.device)
        if target.labeled_classes is not None:
            counted &= target.labeled_classes
        if target.partial_classes is not None:
            counted &= ~target.partial_classes
        if target.ignore is not None:
            boxes = target.boxes
            inside = (points[:, None] >= boxes[None, :, :2]) & (points[:, None] <= boxes[None, :, 2:])
            counted &= ~(inside.all(-1) & target.ignore).any(1, keepdim=True)
        return counted

    def decode_boxes(self, sides: Tensor, points: Tensor, strides: Tensor) -> Tensor:
        """Return boxes [..., 4] in input pixels.

        Args:
            sides: head output [..., 4 or 4 * bins].
            points: centers of the cells [..., 2], input pixels.
            strides: strides of the cells [...].
        """
        bins = self.config.bins
        cells = expected_bin(sides.unflatten(-1, (4, bins))) if bins else F.softplus(sides)
        return geometry.distances_to_boxes(points, (cells - BOX_SIDE_OFFSET) * strides[..., None])

    def decode(self, raw: Raw, size: Sequence[Any]) -> dict[str, Tensor]:
        """Return boxes, scores and labels, best first, see `Task.decode`."""
        config = self.config
        scores, labels = raw.logits.sigmoid().max(-1)
        # Padding: a small image can have fewer cells than candidates, and an export fixes their number.
        count = config.max_detections if config.one_to_one else config.pre_nms_topk
        room = (0, count)
        scores, labels = F.pad(scores, room), F.pad(labels, room)
        order = stable_topk(scores, count)
        # Decode all boxes before the selection: indexing the points would fix their number in an export.
        boxes = F.pad(self.decode_boxes(raw.box_regression, raw.points, raw.strides), (0, 0, *room))
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        boxes = torch.cat([boxes[..., :2], torch.maximum(boxes[..., :2], boxes[..., 2:])], -1)
        boxes, scores, labels = select_detections(
            boxes,
            scores.gather(1, order),
            labels.gather(1, order),
            None if config.one_to_one else config.iou_threshold,
            config.max_detections,
        )
        return {"boxes": boxes, "scores": scores, "labels": labels}

    def distill(self, student: Raw, teacher: Raw) -> Tensor:
        """Return the distance of two outputs, normalized by the sum of the teacher's scores, see `Task.distill`.

        It is the binary divergence of the class scores, plus the L1 distance of the boxes' sides in cells (with bins,
        the divergence of their distributions). Nearly all cells are background in both outputs. So a cell is weighted
        by the difference of the two scores (quality focal loss, Li et al. 2020), and its box by the teacher's score.
        """
        mine, theirs = student.logits.float(), teacher.logits.float()
        scores = theirs.sigmoid()
        weights = scores.amax(2)
        classes = ((mine.sigmoid().detach() - scores).abs() * binary_kl_divergence(mine, theirs)).sum()
        sides = [one.box_regression.float() for one in (student, teacher)]
        if self.config.bins:
            bins = [one.unflatten(-1, (4, -1)).movedim(-1, 1) for one in sides]
            distance = kl_divergence(*bins).mean(2)
        else:
            distance = (F.softplus(sides[0]) - F.softplus(sides[1])).abs().mean(2)
        return (classes + (distance * weights).sum()) / weights.sum().clamp(min=1)

    def create_metric(self) -> DetectionMetric:
        """Return a new metric."""
        return DetectionMetric(self.config.classes, self.config.score_threshold)


def collect_objects(targets: Sequence[Instances]) -> Objects:
    """Return the objects to detect.

    Ignore regions and classes that the image's source does not label are excluded.
    """
    wanted = [torch.ones_like(target.labels, dtype=torch.bool) for target in targets]
    for mine, target in zip(wanted, targets, strict=True):
        if target.ignore is not None:
            mine &= ~target.ignore
        if target.labeled_classes is not None:
            mine &= target.labeled_classes[target.labels]
    pictures = [torch.full_like(target.labels, i) for i, target in enumerate(targets)]
    everything = Objects(
        torch.cat([target.boxes for target in targets]), torch.cat([x.labels for x in targets]), torch.cat(pictures)
    )
    if all(target.ignore is None and target.labeled_classes is None for target in targets):
        return everything
    kept = torch.cat(wanted).nonzero()[:, 0]  # a single call, because nonzero synchronizes with the GPU
    return Objects(*(values[kept] for values in everything))
