"""Which point of a detector's grid answers for which object."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from perception.ops import boxes as geometry


class Assignment(NamedTuple):
    """Of P points: the object that each answers for, and how well.

    matched: int64 [P], index of the object, -1 = background
    quality: float32 [P], in [0, 1]: the target score of the matched class
    """

    matched: Tensor
    quality: Tensor


@torch.no_grad()
def task_aligned(
    points: Tensor,
    strides: Tensor,
    scores: Tensor,
    predicted: Tensor,
    boxes: Tensor,
    labels: Tensor,
    top: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Assignment:
    """Task-aligned assignment of one picture (Feng et al. 2021, TOOD).

    An object takes the ``top`` points inside of it whose ``score ** alpha * iou ** beta`` is largest. An object too
    small to hold a cell centre of the finest level is widened to two of its cells, so that nothing goes unseen.

    points [P, 2], strides [P], scores [P, C] probabilities, predicted [P, 4], boxes [N, 4], labels [N].
    """
    count = len(points)
    if len(boxes) == 0:
        return Assignment(points.new_full((count,), -1, dtype=torch.int64), points.new_zeros(count))
    overlap = geometry.iou(boxes[:, None], predicted[None]).clamp(min=0)
    alignment = scores[:, labels].T.clamp(min=1e-9).pow(alpha) * overlap.pow(beta)

    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half = torch.maximum(half, strides.min().expand_as(half))
    inside = ((points[None] - center[:, None]).abs() < half[:, None]).all(-1)
    # Before a network has learned anything all overlaps are near zero: prefer the cells near the centre, then.
    closeness = 1 / (1 + ((points[None] - center[:, None]) / half[:, None]).square().sum(-1))
    ranking = torch.where(inside, alignment + 1e-9 * closeness, -1.0)

    best = ranking.topk(min(top, count), dim=1)
    chosen = torch.zeros_like(inside).scatter_(1, best.indices, best.values > 0)
    contested = chosen.sum(0) > 1
    winner = torch.where(chosen, overlap + 1e-6 * closeness, -1.0).argmax(0)
    matched = torch.where(contested | chosen.any(0), winner, -1)
    chosen &= matched[None] == torch.arange(len(boxes), device=boxes.device)[:, None]

    own = torch.where(chosen, alignment, 0.0)
    peak = own.amax(1, keepdim=True).clamp(min=1e-9)
    reach = torch.where(chosen, overlap, 0.0).amax(1, keepdim=True)
    quality = (own / peak * reach).amax(0)
    return Assignment(matched, quality)
