"""Which cells of a detector's grid answer for which objects, for a whole batch at once.

Everything is done on pairs (object, cell inside of it), a list that grows with the area of the objects and not with
their number times the number of cells, nor with the fullest picture of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from perception.ops import boxes as geometry


class Grid(NamedTuple):
    """The P cells of all levels. points [P, 2]: their centres in input pixels. strides [P]: their sides in pixels."""

    points: Tensor
    strides: Tensor


class Objects(NamedTuple):
    """The M objects of a batch. boxes [M, 4] pixels, labels int64 [M], pictures int64 [M]: where each one is."""

    boxes: Tensor
    labels: Tensor
    pictures: Tensor


class Assignment(NamedTuple):
    """K positive cells; a cell of a picture is there at most once.

    pictures, cells, objects: int64 [K], where the cell is and the object that it answers for
    quality: float32 [K], in [0, 1]: the target score of the object's class
    share: float32 [K], in [0, 1]: how much the cell's box is trained, 1 in the best cell of each object
    """

    pictures: Tensor
    cells: Tensor
    objects: Tensor
    quality: Tensor
    share: Tensor


class _Pairs(NamedTuple):
    """L candidates: object, cell and picture int64 [L]; overlap of the cell's box with the object's, and the score
    that the cell gives to the object's class [L]; distance [L] of the cell from the object's centre."""

    objects: Tensor
    cells: Tensor
    pictures: Tensor
    overlap: Tensor
    score: Tensor
    closeness: Tensor
    distance: Tensor

    def at(self, kept: Tensor) -> _Pairs:
        return _Pairs(*(values[kept] for values in self))


@torch.no_grad()
def task_aligned(
    grid: Grid,
    scores: Tensor,
    predicted: Tensor,
    objects: Objects,
    top: int = 10,
    final: int = 0,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> Assignment:
    """Task-aligned assignment (Feng et al. 2021, TOOD).

    An object takes the ``top`` cells inside of it whose ``score ** alpha * overlap ** beta`` is largest; a cell that
    several objects want goes to the one that it overlaps most; of the cells that are left to it an object keeps the
    ``final`` best (0 = all; 1 = the one-to-one assignment of Wang et al. 2024, YOLOv10).

    scores [B, P, C] probabilities, predicted [B, P, 4] pixels.
    """
    pairs = _candidates(grid, scores, predicted, objects)
    # Before a network has learned anything all overlaps are near zero: prefer the cells near the centre, then.
    alignment = pairs.score.clamp(min=1e-9).pow(alpha) * pairs.overlap.pow(beta) + 1e-9 * pairs.closeness
    kept = best_of_each(pairs.objects, alignment, top)
    kept = kept[_uncontested(pairs.at(kept), grid, pairs.overlap[kept] + 1e-6 * pairs.closeness[kept])]
    if final:
        kept = kept[best_of_each(pairs.objects[kept], alignment[kept], final)]
    pairs = pairs.at(kept)
    share = _relative(pairs.objects, alignment[kept], len(objects.boxes))
    reach = largest_of_each(pairs.objects, pairs.overlap, len(objects.boxes))
    return Assignment(pairs.pictures, pairs.cells, pairs.objects, share * reach[pairs.objects], share)


@torch.no_grad()
def sim_ota(
    grid: Grid, scores: Tensor, predicted: Tensor, objects: Objects, top: int = 10, final: int = 0
) -> Assignment:
    """Simplified optimal transport (SimOTA: Ge et al. 2021, YOLOX) with the soft costs of RTMDet (Lyu et al. 2022).

    An object takes as many cells as its ``top`` overlaps sum up to, at least one: those of the lowest cost
    ``focal(score, overlap) - 3 log(overlap) + 10 ** (distance - 3)``, distance in cells from its centre. A cell that
    several objects want goes to the one that it costs least. The quality is the overlap.
    """
    pairs = _candidates(grid, scores, predicted, objects)
    focal = binary_cross_entropy(pairs.score, pairs.overlap, reduction="none") * (pairs.score - pairs.overlap).square()
    cost = focal - 3 * pairs.overlap.clamp(min=1e-7).log() + 10 ** (pairs.distance.clamp(max=10) - 3)
    largest = best_of_each(pairs.objects, pairs.overlap, top)
    sums = torch.zeros_like(objects.boxes[:, 0]).index_add_(0, pairs.objects[largest], pairs.overlap[largest])
    kept = best_of_each(pairs.objects, -cost, sums.long().clamp(min=1))
    kept = kept[_uncontested(pairs.at(kept), grid, -cost[kept])]
    if final:
        kept = kept[best_of_each(pairs.objects[kept], -cost[kept], final)]
    pairs = pairs.at(kept)
    share = _relative(pairs.objects, pairs.overlap + 1e-6 * pairs.closeness, len(objects.boxes))
    return Assignment(pairs.pictures, pairs.cells, pairs.objects, pairs.overlap, share)


def _candidates(grid: Grid, scores: Tensor, predicted: Tensor, objects: Objects) -> _Pairs:
    """The cells whose centre lies in an object.

    One too small to hold a centre of the finest level is widened to two of its cells, so that nothing goes unseen.
    """
    boxes = objects.boxes
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    half = torch.maximum(half, grid.strides.min().expand_as(half))
    offset = grid.points[None] - center[:, None]
    owner, cell = (offset.abs() < half[:, None]).all(-1).nonzero(as_tuple=True)
    offset, picture = offset[owner, cell], objects.pictures[owner]
    overlap = geometry.iou(predicted[picture, cell], boxes[owner]).clamp(0, 1)
    closeness = 1 / (1 + (offset / half[owner]).square().sum(-1))
    distance = offset.square().sum(-1).sqrt() / grid.strides[cell]
    score = scores[picture, cell, objects.labels[owner]]
    return _Pairs(owner, cell, picture, overlap, score, closeness, distance)


def _uncontested(pairs: _Pairs, grid: Grid, preference: Tensor) -> Tensor:
    """Positions of the pairs that are left when every cell of a picture is given to the object it prefers."""
    return best_of_each(pairs.pictures * len(grid.points) + pairs.cells, preference, 1)


def best_of_each(groups: Tensor, values: Tensor, counts: Tensor | int) -> Tensor:
    """Positions of the ``counts[g]`` largest ``values`` of each group g: sorted by group, then by value.

    groups int64 [L], values [L], counts int64 [groups], or one for all. Of equal values the first counts as the larger.
    """
    order = values.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    group = groups[order]
    rank = torch.arange(len(order), device=order.device) - torch.searchsorted(group, group)
    return order[rank < (counts[group] if isinstance(counts, Tensor) else counts)]


def _relative(groups: Tensor, values: Tensor, count: int) -> Tensor:
    """Positive ``values`` [L] as parts of the largest in their group."""
    return values / largest_of_each(groups, values, count)[groups]


def largest_of_each(groups: Tensor, values: Tensor, count: int) -> Tensor:
    """The largest of ``values`` [L] in each of ``count`` groups, 0 where a group is empty."""
    return values.new_zeros(count).scatter_reduce_(0, groups, values, "amax")
