"""Box operations on tensors x1 y1 x2 y2 in pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def area(boxes: Tensor) -> Tensor:
    """Area of boxes, [..., 4] to [...]; 0 if a side is negative."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """Intersection area of boxes with broadcastable shapes, [..., 4] x [..., 4] to [...]."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    return (high - low).clamp(min=0).prod(-1)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes with broadcastable shapes."""
    overlap = intersection(first, second)
    return overlap / (area(first) + area(second) - overlap).clamp(min=1e-9)


def enclosing_size(first: Tensor, second: Tensor) -> Tensor:
    """Width and height [..., 2] of the smallest box that contains both boxes."""
    low = torch.minimum(first[..., :2], second[..., :2])
    return torch.maximum(first[..., 2:], second[..., 2:]) - low


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalized IoU of boxes with broadcastable shapes, in (-1, 1] (Rezatofighi et al. 2019)."""
    common = intersection(first, second)
    union = area(first) + area(second) - common
    around = enclosing_size(first, second).prod(-1)
    return common / union.clamp(min=1e-9) - (around - union) / around.clamp(min=1e-9)


def diou(first: Tensor, second: Tensor) -> Tensor:
    """Distance IoU of boxes with broadcastable shapes, in (-1, 1] (Zheng et al. 2020)."""
    diagonal = enclosing_size(first, second).square().sum(-1).clamp(min=1e-9)
    centers = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]).square().sum(-1) / 4
    return iou(first, second) - centers / diagonal


def ciou(first: Tensor, second: Tensor) -> Tensor:
    """Complete IoU of boxes with broadcastable shapes, in (-2, 1] (Zheng et al. 2020)."""
    first_size = (first[..., 2:] - first[..., :2]).clamp(min=1e-6)
    second_size = (second[..., 2:] - second[..., :2]).clamp(min=1e-6)
    angle = torch.atan(first_size[..., 0] / first_size[..., 1]) - torch.atan(second_size[..., 0] / second_size[..., 1])
    aspect = angle.square() * (4 / torch.pi**2)
    with torch.no_grad():
        weight = aspect / (1 - iou(first, second) + aspect).clamp(min=1e-9)
    return diou(first, second) - weight * aspect


def distances_to_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """Convert points [..., 2] and distances to left, top, right, bottom [..., 4] to boxes [..., 4]."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def boxes_to_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Inverse of `distances_to_boxes`; a distance is negative if the point is outside that side."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], -1)


def grid_points(height: int, width: int, stride: int, like: Tensor) -> Tensor:
    """Cell centers of a level in input pixels, [height * width, 2] as x, y, row by row."""
    y = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) * stride
    x = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) * stride
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).reshape(-1, 2)
