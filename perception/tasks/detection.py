"""Anchor-free detection: every cell of the pyramid predicts class scores and the distances to a box's four sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from perception.config import configuration
from perception.metrics.detection import DetectionMetric
from perception.nn.blocks import conv_norm_act
from perception.nn.necks import check_strides
from perception.nn.towers import Tower
from perception.ops import boxes as geometry
from perception.ops.assignment import Grid, Objects, sim_ota, task_aligned
from perception.ops.detection_losses import distribution_focal, expected_bin, quality_focal
from perception.ops.nms import best, select
from perception.tasks.task import Part, Pyramid, Task, TaskConfig, Weight, check_classes, of_rows
from perception.types import Annotation, Camera, ConfigError, Instances, TaskSpec

ASSIGNMENTS = {"task_aligned": task_aligned, "sim_ota": sim_ota}
OVERLAPS = {"giou": geometry.giou, "diou": geometry.diou, "ciou": geometry.ciou}
REACH = 1.0
"""How many cells beyond a cell's centre, on the far side, a side of its box may lie.

An object smaller than a cell need hold no centre, and is then assigned to the up to four centres within a cell of its
own: all of them can say its box.
"""


@configuration
class DetectionConfig(TaskConfig):
    """classes: names, in the order of the labels.

    strides: levels of the pyramid; add 4 for very small objects.
    width, depth: channels and layers of the towers (width 0 = the neck's).
    bins: of the distribution over each side's distance, one bin a cell (Li et al. 2020, GFL); 0 = one number. A box
        then reaches at most ``bins - 2`` cells of the coarsest level from a cell's centre: 16 bins suffice to 448
        pixels each way with stride 32.
    one_to_one: train a second branch that says each object once, beside the first one (Wang et al. 2024, YOLOv10), and
        decode it: no non-maximum suppression. The first branch only teaches the features; no export has it.
    one_to_one_gradient: let the second branch train the features too.

    candidates: boxes that enter non-maximum suppression. limit: boxes that leave it.
    iou_threshold: a box that overlaps a better one of its class more is a duplicate.
    threshold: score under which a box is not shown or written (metrics see all).

    assignment: which cells answer for an object: "task_aligned" (Feng et al. 2021) or "sim_ota" (Ge et al. 2021).
    assigned: how many cells, at most.
    box_loss: 1 - the overlap of this kind.
    class_weight, box_weight, distribution_weight: of the parts of the loss.
    """

    classes: tuple[str, ...]
    type: Literal["detection"] = "detection"
    strides: tuple[int, ...] = (8, 16, 32)
    width: Annotated[int, Field(ge=0)] = 0
    depth: int = 2
    bins: int = 0
    one_to_one: bool = False
    one_to_one_gradient: bool = False
    candidates: int = 500
    limit: int = 100
    iou_threshold: float = 0.5
    threshold: float = 0.3
    assignment: Literal["task_aligned", "sim_ota"] = "task_aligned"
    assigned: int = 10
    box_loss: Literal["giou", "diou", "ciou"] = "ciou"
    class_weight: Weight = 1.0
    box_weight: Weight = 2.0
    distribution_weight: Weight = 0.5

    def __post_init__(self) -> None:
        check_classes(self.classes)
        check_strides(self.strides)
        if self.bins < 0 or self.bins in (1, 2):
            raise ConfigError(f"bins is {self.bins}. Expected 0 (one number for each side) or at least 3.")
        for name in ("depth", "candidates", "limit", "assigned"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}. Expected at least 1.")
        for name in ("iou_threshold", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}. Expected 0 to 1.")


class Branch(NamedTuple):
    """What every one of P cells says. logits [B, P, C]; sides [B, P, 4] or, of distributions, [B, P, 4 * bins]."""

    logits: Tensor
    sides: Tensor


class Raw(NamedTuple):
    """P = the cells of all levels, from the finest to the coarsest, row by row.

    logits, sides: the `Branch` that is decoded. points [P, 2]: centres of the cells, input pixels. strides [P].
    auxiliary: branches that only train.
    """

    logits: Tensor
    sides: Tensor
    points: Tensor
    strides: Tensor
    auxiliary: tuple[Branch, ...] = ()


class Predictor(nn.Module):
    """The scores and sides of every level, by towers that all levels share."""

    def __init__(self, width: int, config: DetectionConfig) -> None:
        super().__init__()
        levels = len(config.strides)
        self.class_tower = Tower(width, config.depth, levels)
        self.box_tower = Tower(width, config.depth, levels)
        self.class_output = nn.Conv2d(width, len(config.classes), 1)
        self.box_output = nn.Conv2d(width, 4 * max(1, config.bins), 1)
        self.scales = nn.Parameter(torch.ones(levels))
        # A prior of 0.01; boxes four cells wide (softplus(3) - REACH = 2 to each side), or of all widths.
        for layer, bias in ((self.class_output, -4.6), (self.box_output, 0.0 if config.bins else 3.0)):
            nn.init.normal_(layer.weight, std=0.01)
            layer.bias.data.fill_(bias)  # pyright: ignore[reportOptionalMemberAccess]

    def forward(self, features: Tensor, level: int) -> Branch:
        logits = self.class_output(self.class_tower(features, level)).float()
        sides = self.box_output(self.box_tower(features, level)).float() * self.scales[level]
        return Branch(*(maps.flatten(2).transpose(1, 2) for maps in (logits, sides)))


class Detection(Task):
    """Boxes by quality focal loss for the scores, an IoU loss for the boxes, and dynamic assignment."""

    Config = DetectionConfig
    score = "ap"

    def __init__(self, name: str, config: DetectionConfig, channels: Mapping[int, int]) -> None:
        super().__init__()
        self.config = config
        self.strides = config.strides
        self.spec = TaskSpec(
            name, "instances", ("boxes", "scores", "labels"), classes=config.classes, threshold=config.threshold
        )
        parts = ("class", "box", "distribution") if config.bins else ("class", "box")
        self.parts = (*parts, *(f"one_to_one_{part}" for part in parts)) if config.one_to_one else parts
        width = config.width or channels[config.strides[-1]]
        self.narrow = nn.ModuleList(
            nn.Identity() if channels[s] == width else conv_norm_act(channels[s], width) for s in config.strides
        )
        self.predictors = nn.ModuleList(Predictor(width, config) for _ in range(1 + config.one_to_one))

    def forward(self, pyramid: Pyramid) -> Raw:
        found: list[list[Branch]] = [[] for _ in self.predictors]
        points, strides = [], []
        for level, stride in enumerate(self.strides):
            features = self.narrow[level](pyramid[stride])
            height, width = features.shape[-2:]
            points.append(geometry.grid_points(height, width, stride, features))
            strides.append(torch.full_like(points[-1][:, 0], stride))
            for i, predictor in enumerate(self.predictors):
                teaches = i == 0 or self.config.one_to_one_gradient
                found[i].append(predictor(features if teaches else features.detach(), level))
        *auxiliary, last = (Branch(*(torch.cat(x, 1) for x in zip(*levels, strict=True))) for levels in found)
        return Raw(*last, torch.cat(points), torch.cat(strides), tuple(auxiliary))

    def losses(
        self, raw: Raw, targets: Sequence[Annotation | None], cameras: Sequence[Camera | None]
    ) -> dict[str, Part]:
        instances = {i: target for i, target in enumerate(targets) if isinstance(target, Instances)}
        rows, grid = list(instances), Grid(raw.points, raw.strides)
        objects = objects_of(list(instances.values()))
        counted = torch.stack([self._counted(raw.points, target) for target in instances.values()])
        parts: dict[str, Part] = {}
        for i, branch in enumerate((*raw.auxiliary, Branch(raw.logits, raw.sides))):
            prefix = "one_to_one_" if i else ""
            mine = Branch(*(of_rows(x, rows) for x in branch))
            found = self._branch_losses(mine, grid, objects, counted, single=i > 0)
            parts |= {prefix + name: part for name, part in found.items()}
        return parts

    def _branch_losses(
        self, branch: Branch, grid: Grid, objects: Objects, counted: Tensor, single: bool
    ) -> dict[str, Part]:
        config, predicted = self.config, self.boxes(branch.sides, *grid)
        found = ASSIGNMENTS[config.assignment](
            grid, branch.logits.detach().sigmoid(), predicted.detach(), objects, config.assigned, int(single)
        )
        place, truth, mass = (found.pictures, found.cells), objects.boxes[found.objects], found.share.sum()
        wanted = torch.zeros_like(branch.logits)
        wanted[(*place, objects.labels[found.objects])] = found.quality
        class_loss = quality_focal(branch.logits, wanted) * (counted | (wanted > 0))
        box_loss = (1 - OVERLAPS[config.box_loss](predicted[place], truth)) * found.share
        parts = {
            "class": Part(config.class_weight * class_loss.sum(), found.quality.sum()),
            "box": Part(config.box_weight * box_loss.sum(), mass),
        }
        if config.bins:
            cells = geometry.to_distances(grid.points[found.cells], truth) / grid.strides[found.cells, None]
            logits = branch.sides[place].unflatten(-1, (4, config.bins))
            loss = distribution_focal(logits, cells + REACH).mean(-1) * found.share
            parts["distribution"] = Part(config.distribution_weight * loss.sum(), mass)
        return parts

    def _counted(self, points: Tensor, target: Instances) -> Tensor:
        """bool [P, C]: which scores are trained: not in ignore regions, nor of classes labelled in part or not."""
        counted = torch.ones(len(points), len(self.config.classes), dtype=torch.bool, device=points.device)
        if target.classes is not None:
            counted &= target.classes
        if target.partial is not None:
            counted &= ~target.partial
        if target.ignore is not None:
            boxes = target.boxes
            inside = (points[:, None] >= boxes[None, :, :2]) & (points[:, None] <= boxes[None, :, 2:])
            counted &= ~(inside.all(-1) & target.ignore).any(1, keepdim=True)
        return counted

    def boxes(self, sides: Tensor, points: Tensor, strides: Tensor) -> Tensor:
        """Boxes [..., 4] in input pixels from what cells say: sides [..., 4 or 4 * bins], points [..., 2], strides."""
        bins = self.config.bins
        cells = expected_bin(sides.unflatten(-1, (4, bins))) if bins else F.softplus(sides)
        return geometry.from_distances(points, (cells - REACH) * strides[..., None])

    def decode(self, raw: Raw, size: Sequence[Any]) -> dict[str, Tensor]:
        config = self.config
        scores, labels = raw.logits.sigmoid().max(-1)
        # Empty cells fill up: a small picture has fewer cells than candidates, and an export fixes their number.
        count = config.limit if config.one_to_one else config.candidates
        room = (0, count)
        scores, labels = F.pad(scores, room), F.pad(labels, room)
        order = best(scores, count)
        # All boxes, then the candidates': indexing points by them would fix their number in an export.
        boxes = F.pad(self.boxes(raw.sides, raw.points, raw.strides), (0, 0, *room))
        boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
        boxes = torch.cat([boxes[..., :2], torch.maximum(boxes[..., :2], boxes[..., 2:])], -1)
        boxes, scores, labels = select(
            boxes,
            scores.gather(1, order),
            labels.gather(1, order),
            None if config.one_to_one else config.iou_threshold,
            config.limit,
        )
        return {"boxes": boxes, "scores": scores, "labels": labels}

    def metric(self) -> DetectionMetric:
        return DetectionMetric(self.config.classes, self.config.threshold)


def objects_of(targets: Sequence[Instances]) -> Objects:
    """What is to be found: not the ignore regions, nor what is of a class that its picture's source does not label."""
    wanted = [torch.ones_like(target.labels, dtype=torch.bool) for target in targets]
    for mine, target in zip(wanted, targets, strict=True):
        if target.ignore is not None:
            mine &= ~target.ignore
        if target.classes is not None:
            mine &= target.classes[target.labels]
    pictures = [torch.full_like(target.labels, i) for i, target in enumerate(targets)]
    everything = Objects(
        torch.cat([target.boxes for target in targets]), torch.cat([x.labels for x in targets]), torch.cat(pictures)
    )
    if all(target.ignore is None and target.classes is None for target in targets):
        return everything
    kept = torch.cat(wanted).nonzero()[:, 0]  # once for all: the host waits for what it finds
    return Objects(*(values[kept] for values in everything))
