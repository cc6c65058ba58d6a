"""Arithmetic on boxes: x1 y1 x2 y2 tensors in pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def area(boxes: Tensor) -> Tensor:
    """[..., 4] to [...]; a box with a negative side has no area."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def intersection(first: Tensor, second: Tensor) -> Tensor:
    """Area of overlap of boxes whose shapes broadcast, [..., 4] x [..., 4] to [...]."""
    low = torch.maximum(first[..., :2], second[..., :2])
    high = torch.minimum(first[..., 2:], second[..., 2:])
    return (high - low).clamp(min=0).prod(-1)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes whose shapes broadcast."""
    overlap = intersection(first, second)
    return overlap / (area(first) + area(second) - overlap).clamp(min=1e-9)


def ciou(first: Tensor, second: Tensor) -> Tensor:
    """Complete IoU of boxes whose shapes broadcast, in (-2, 1] (Zheng et al. 2020)."""
    overlap = iou(first, second)
    low = torch.minimum(first[..., :2], second[..., :2])
    high = torch.maximum(first[..., 2:], second[..., 2:])
    diagonal = (high - low).square().sum(-1).clamp(min=1e-9)
    centers = (first[..., :2] + first[..., 2:] - second[..., :2] - second[..., 2:]).square().sum(-1) / 4
    first_size = (first[..., 2:] - first[..., :2]).clamp(min=1e-6)
    second_size = (second[..., 2:] - second[..., :2]).clamp(min=1e-6)
    angle = torch.atan(first_size[..., 0] / first_size[..., 1]) - torch.atan(second_size[..., 0] / second_size[..., 1])
    aspect = angle.square() * (4 / torch.pi**2)
    with torch.no_grad():
        weight = aspect / (1 - overlap + aspect).clamp(min=1e-9)
    return overlap - centers / diagonal - weight * aspect


def from_distances(points: Tensor, distances: Tensor) -> Tensor:
    """Points [..., 2] and distances to left, top, right, bottom [..., 4] to boxes [..., 4]."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], -1)


def grid_points(height: int, width: int, stride: int, like: Tensor) -> Tensor:
    """Centres of a level's cells in input pixels, [height * width, 2] as x, y, row by row."""
    y = (torch.arange(height, device=like.device, dtype=torch.float32) + 0.5) * stride
    x = (torch.arange(width, device=like.device, dtype=torch.float32) + 0.5) * stride
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1).reshape(-1, 2)
