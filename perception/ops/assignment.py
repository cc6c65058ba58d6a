"""Label assignment for anchor-free detectors, batched.

Works on a list of pairs (object, cell inside it). Its length grows with the area of the objects. It does not depend on
objects x cells, nor on the image with the most objects.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from perception.ops import boxes as geometry


class Grid(NamedTuple):
    """The P cells of all levels.

    Attributes:
        points: [P, 2], cell centers in input pixels.
        strides: [P], side lengths of the cells in pixels.
    """

    points: Tensor
    strides: Tensor


class Objects(NamedTuple):
    """The M objects of a batch.

    Attributes:
        boxes: [M, 4], pixels.
        labels: int64 [M], class index.
        image_indices: int64 [M], the image of each object in the batch.
    """

    boxes: Tensor
    labels: Tensor
    image_indices: Tensor


class Assignment(NamedTuple):
    """K positive cells. Each cell of an image occurs at most once.

    Attributes:
        image_indices: int64 [K], image of the cell.
        cell_indices: int64 [K], index of the cell in the grid.
        object_indices: int64 [K], the object assigned to the cell.
        quality: float32 [K], in [0, 1]: target score for the object's class.
        box_weight: float32 [K], in [0, 1]: weight of the cell's box loss, 1 for the best cell of each object.
    """

    image_indices: Tensor
    cell_indices: Tensor
    object_indices: Tensor
    quality: Tensor
    box_weight: Tensor


class _CandidatePairs(NamedTuple):
    """L candidates: object, cell and image int64 [L]; overlap of predicted box and object [L].

    Also the predicted score of the object's class [L], and the distance [L] of the cell from the object's center.
    """

    object_indices: Tensor
    cell_indices: Tensor
    image_indices: Tensor
    overlap: Tensor
    score: Tensor
    closeness: Tensor
    distance: Tensor

    def select(self, indices: Tensor) -> _CandidatePairs:
        return _CandidatePairs(*(values[indices] for values in self))


@torch.no_grad()
def assign_task_aligned(
    grid: Grid,
    scores: Tensor,
    predicted_boxes: Tensor,
    objects: Objects,
    topk: int = 10,
    max_per_object: int = 0,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Assignment:
    """Task-aligned assignment (Feng et al. 2021, TOOD).

    An object takes the ``topk`` cells inside it with the largest ``score ** alpha * overlap ** beta``. If several
    objects take one cell, the cell goes to the object with the largest overlap. Each object then keeps its
    ``max_per_object`` best cells (0 = all; 1 = one-to-one assignment of Wang et al. 2024, YOLOv10).

    Args:
        grid: the cells.
        scores: [B, P, C], probabilities.
        predicted_boxes: [B, P, 4], pixels.
        objects: the targets.
        topk: maximum number of cells per object before conflicts are resolved.
        max_per_object: maximum number of cells per object afterwards.
        alpha: exponent of the score.
        beta: exponent of the overlap.
    """
    pairs = _find_candidates(grid, scores, predicted_boxes, objects)
    # In an untrained network, all overlaps are near zero. The last term then prefers cells near the center.
    alignment = pairs.score.clamp(min=1e-9).pow(alpha) * pairs.overlap.pow(beta) + 1e-9 * pairs.closeness
    kept = topk_per_group(pairs.object_indices, alignment, topk)
    kept = kept[_resolve_conflicts(pairs.select(kept), grid, pairs.overlap[kept] + 1e-6 * pairs.closeness[kept])]
    if max_per_object:
        kept = kept[topk_per_group(pairs.object_indices[kept], alignment[kept], max_per_object)]
    pairs = pairs.select(kept)
    share = _normalize_by_group(pairs.object_indices, alignment[kept], len(objects.boxes))
    reach = max_per_group(pairs.object_indices, pairs.overlap, len(objects.boxes))
    return Assignment(
        pairs.image_indices, pairs.cell_indices, pairs.object_indices, share * reach[pairs.object_indices], share
    )


@torch.no_grad()
def assign_sim_ota(
    grid: Grid, scores: Tensor, predicted_boxes: Tensor, objects: Objects, topk: int = 10, max_per_object: int = 0
) -> Assignment:
    """Simplified optimal transport (SimOTA: Ge et al. 2021, YOLOX) with the soft costs of RTMDet (Lyu et al. 2022).

    The number of cells of an object is the sum of its ``topk`` largest overlaps, at least 1. It takes the cells with
    the lowest cost ``focal(score, overlap) - 3 log(overlap) + 10 ** (distance - 3)``, distance in cells from its
    center. If several objects take one cell, the cell goes to the object with the lowest cost. The quality is the
    overlap.

    Args:
        grid: the cells.
        scores: [B, P, C], probabilities.
        predicted_boxes: [B, P, 4], pixels.
        objects: the targets.
        topk: number of overlaps in the sum.
        max_per_object: maximum number of cells per object; 0 = no limit.
    """
    pairs = _find_candidates(grid, scores, predicted_boxes, objects)
    focal = binary_cross_entropy(pairs.score, pairs.overlap, reduction="none") * (pairs.score - pairs.overlap).square()
    cost = focal - 3 * pairs.overlap.clamp(min=1e-7).log() + 10 ** (pairs.distance.clamp(max=10) - 3)
    largest = topk_per_group(pairs.object_indices, pairs.overlap, topk)
    sums = torch.zeros_like(objects.boxes[:, 0]).index_add_(0, pairs.object_indices[largest], pairs.overlap[largest])
    kept = topk_per_group(pairs.object_indices, -cost, sums.long().clamp(min=1))
    kept = kept[_resolve_conflicts(pairs.select(kept), grid, -cost[kept])]
    if max_per_object:
        kept = kept[topk_per_group(pairs.object_indices[kept], -cost[kept], max_per_object)]
    pairs = pairs.select(kept)
    share = _normalize_by_group(pairs.object_indices, pairs.overlap + 1e-6 * pairs.closeness, len(objects.boxes))
    return Assignment(pairs.image_indices, pairs.cell_indices, pairs.object_indices, pairs.overlap, share)


def _find_candidates(grid: Grid, scores: Tensor, predicted_boxes: Tensor, objects: Objects) -> _CandidatePairs:
    """Return the cells whose center lies in an object.

    Boxes too small to contain a center of the finest level are enlarged to two of its cells, so each has a candidate.
    """
    boxes = objects.boxes
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half = torch.maximum(half, grid.strides.min().expand_as(half))
    offset = grid.points[None] - center[:, None]
    owner, cell = (offset.abs() < half[:, None]).all(-1).nonzero(as_tuple=True)
    offset, picture = offset[owner, cell], objects.image_indices[owner]
    overlap = geometry.iou(predicted_boxes[picture, cell], boxes[owner]).clamp(0, 1)
    closeness = 1 / (1 + (offset / half[owner]).square().sum(-1))
    distance = offset.square().sum(-1).sqrt() / grid.strides[cell]
    score = scores[picture, cell, objects.labels[owner]]
    return _CandidatePairs(owner, cell, picture, overlap, score, closeness, distance)


def _resolve_conflicts(pairs: _CandidatePairs, grid: Grid, preference: Tensor) -> Tensor:
    """Positions of the pairs that remain after each cell goes to the object with the highest preference."""
    return topk_per_group(pairs.image_indices * len(grid.points) + pairs.cell_indices, preference, 1)


def topk_per_group(groups: Tensor, values: Tensor, counts: Tensor | int) -> Tensor:
    """Return the positions of the ``counts[g]`` largest ``values`` of each group g, sorted by group, then by value.

    Args:
        groups: int64 [L], group of each value.
        values: [L]. Of equal values, the first one is preferred.
        counts: int64 [groups], or one number for all groups.
    """
    order = values.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    group = groups[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(group, group)
    return order[rank < (counts[group] if isinstance(counts, Tensor) else counts)]


def _normalize_by_group(groups: Tensor, values: Tensor, count: int) -> Tensor:
    """Divide positive ``values`` [L] by the largest value of their group."""
    return values / max_per_group(groups, values, count)[groups]


def max_per_group(groups: Tensor, values: Tensor, count: int) -> Tensor:
    """Return the largest of ``values`` [L] in each of ``count`` groups; 0 for an empty group."""
    return values.new_zeros(count).scatter_reduce_(0, groups, values, "amax")
