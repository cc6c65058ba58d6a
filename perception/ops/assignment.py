"""Which cells of a detector's grid answer for which objects, for a whole batch at once.

Everything is done on pairs (object, cell inside of it), a list that grows with the area of the objects and not with
their number times the number of cells, nor with the fullest image of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from perception.ops import boxes as geometry


class Grid(NamedTuple):
    """The P cells of all levels. points [P, 2]: their centers in input pixels. strides [P]: their sides in pixels."""

    points: Tensor
    strides: Tensor


class Objects(NamedTuple):
    """The M objects of a batch. boxes [M, 4] pixels, labels int64 [M], images int64 [M]: where each one is."""

    boxes: Tensor
    labels: Tensor
    image_indices: Tensor


class Assignment(NamedTuple):
    """K positive cells; a cell of an image is there at most once.

    image_indices, cell_indices, object_indices: int64 [K], where the cell is and the object that it answers for
    quality: float32 [K], in [0, 1]: the target score of the object's class
    box_weight: float32 [K], in [0, 1]: how much the cell's box is trained, 1 in the best cell of each object
    """

    image_indices: Tensor
    cell_indices: Tensor
    object_indices: Tensor
    quality: Tensor
    box_weight: Tensor


class _CandidatePairs(NamedTuple):
    """L candidates: object, cell and image int64 [L]; overlap of the cell's box with the object's, and the score
    that the cell gives to the object's class [L]; distance [L] of the cell from the object's center."""

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

    An object takes the ``topk`` cells inside of it whose ``score ** alpha * overlap ** beta`` is largest; a cell that
    several objects want goes to the one that it overlaps most; of the cells that are left to it an object keeps the
    ``max_per_object`` best (0 = all; 1 = the one-to-one assignment of Wang et al. 2024, YOLOv10).

    scores [B, P, C] probabilities, predicted [B, P, 4] pixels.
    """
    pairs = _find_candidates(grid, scores, predicted_boxes, objects)
    # Before a network has learned anything all overlaps are near zero: prefer the cells near the center, then.
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

    An object takes as many cells as its ``topk`` overlaps sum up to, at least one: those of the lowest cost
    ``focal(score, overlap) - 3 log(overlap) + 10 ** (distance - 3)``, distance in cells from its center. A cell that
    several objects want goes to the one that it costs least. The quality is the overlap.
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
    """The cells whose center lies in an object.

    One too small to hold a center of the finest level is widened to two of its cells, so that nothing goes unseen.
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
    """Positions of the pairs that are left when every cell of an image is given to the object it prefers."""
    return topk_per_group(pairs.image_indices * len(grid.points) + pairs.cell_indices, preference, 1)


def topk_per_group(groups: Tensor, values: Tensor, counts: Tensor | int) -> Tensor:
    """Positions of the ``counts[g]`` largest ``values`` of each group g: sorted by group, then by value.

    groups int64 [L], values [L], counts int64 [groups], or one for all. Of equal values the first counts as the larger.
    """
    order = values.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    group = groups[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(group, group)
    return order[rank < (counts[group] if isinstance(counts, Tensor) else counts)]


def _normalize_by_group(groups: Tensor, values: Tensor, count: int) -> Tensor:
    """Positive ``values`` [L] as parts of the largest in their group."""
    return values / max_per_group(groups, values, count)[groups]


def max_per_group(groups: Tensor, values: Tensor, count: int) -> Tensor:
    """The largest of ``values`` [L] in each of ``count`` groups, 0 where a group is empty."""
    return values.new_zeros(count).scatter_reduce_(0, groups, values, "amax")
