"""The assignment of cells to objects, against loops in numpy that follow the papers word by word."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from perception.ops import boxes as geometry
from perception.ops.assignment import (
    Assignment,
    Grid,
    Objects,
    assign_sim_ota,
    assign_task_aligned,
    max_per_group,
    topk_per_group,
)

SIZE = (64, 96)
CLASSES = 3


def grid_of(strides: tuple[int, ...] = (8, 16, 32)) -> Grid:
    levels = [geometry.grid_points(SIZE[0] // s, SIZE[1] // s, s, torch.zeros(1)) for s in strides]
    sides = [torch.full((len(level),), float(s)) for level, s in zip(levels, strides, strict=True)]
    return Grid(torch.cat(levels), torch.cat(sides))


def scene(
    seed: int, pictures: int, most: int, learned: float, grid: Grid
) -> tuple[torch.Tensor, torch.Tensor, Objects]:
    """Objects of every size, and what a network that has ``learned`` so much (0 to 1) says: scores, boxes, objects."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, most + 1, pictures)
    total = int(counts.sum())
    low = rng.uniform(0, (SIZE[1] - 4, SIZE[0] - 4), (total, 2))
    boxes = np.concatenate([low, low + np.exp(rng.uniform(np.log(1), np.log(60), (total, 2)))], 1)
    objects = Objects(
        torch.from_numpy(boxes.astype(np.float32)),
        torch.from_numpy(rng.integers(0, CLASSES, total)),
        torch.from_numpy(np.repeat(np.arange(pictures), counts)),
    )
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(pictures, len(grid.points), CLASSES, generator=generator)
    sides = torch.rand(pictures, len(grid.points), 4, generator=generator) * 3 * grid.strides[:, None]
    predicted = geometry.distances_to_boxes(grid.points, sides)
    for box, picture in zip(objects.boxes, objects.image_indices, strict=True):
        near = (grid.points - (box[:2] + box[2:]) / 2).abs().amax(1) < 20
        predicted[picture, near] += learned * (box - predicted[picture, near])
    return scores, predicted, objects


def candidates(grid: Grid, boxes: np.ndarray) -> list[list[int]]:
    """For each box the cells whose center it holds, when widened to at least two of the finest cells."""
    finest = float(grid.strides.min())
    found = []
    for x1, y1, x2, y2 in boxes:
        wide, tall = max(x2 - x1, 2 * finest) / 2, max(y2 - y1, 2 * finest) / 2
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        points = grid.points.tolist()
        found.append([p for p, (px, py) in enumerate(points) if abs(px - x) < wide and abs(py - y) < tall])
    return found


def by_loops(grid, scores, predicted, objects, rank, how_many, prefer, final) -> dict[tuple[int, int], int]:
    """{(image, cell): object}: the ``how_many`` best-ranked candidates of each object, conflicts by ``prefer``."""
    wanted: dict[tuple[int, int], list[int]] = {}
    ranks = {}
    for m, cells in enumerate(candidates(grid, objects.boxes.double().numpy())):
        picture = int(objects.image_indices[m])
        for p in cells:
            ranks[m, p] = rank(m, p)
        for p in sorted(cells, key=lambda p: -ranks[m, p])[: how_many(m, cells)]:
            wanted.setdefault((picture, p), []).append(m)
    matched = {place: max(owners, key=lambda m: prefer(m, place[1])) for place, owners in wanted.items()}
    if not final:
        return matched
    kept = {}
    for m in set(matched.values()):
        mine = sorted((p for p, owner in matched.items() if owner == m), key=lambda place: -ranks[m, place[1]])
        kept |= dict.fromkeys(mine[:final], m)
    return kept


def as_dict(found: Assignment) -> dict[tuple[int, int], int]:
    places = zip(found.image_indices.tolist(), found.cell_indices.tolist(), strict=True)
    return dict(zip(places, found.object_indices.tolist(), strict=True))


scenes = st.tuples(st.integers(0, 2**31), st.integers(1, 3), st.integers(0, 8), st.sampled_from([0.0, 0.5, 0.9]))
LEVELS = st.sampled_from([(8, 16, 32), (4, 8, 16, 32), (16,)])


@settings(max_examples=25, deadline=None)
@given(scenes, LEVELS, st.sampled_from([(10, 0), (3, 0), (7, 1), (1, 1)]))
def test_task_aligned_is_what_loops_find(setup, strides, limits):
    grid = grid_of(strides)
    scores, predicted, objects = scene(*setup, grid)
    top, final = limits
    found = assign_task_aligned(grid, scores, predicted, objects, top, final)

    def overlap(m, p):
        return float(box_iou(objects.boxes[m][None], predicted[objects.image_indices[m], p][None]))

    def closeness(m, p):
        box = objects.boxes[m].double()
        half = ((box[2:] - box[:2]) / 2).clamp(min=float(grid.strides.min()))
        return 1 / (1 + float(((grid.points[p] - (box[:2] + box[2:]) / 2) / half).square().sum()))

    def alignment(m, p):
        score = float(scores[objects.image_indices[m], p, objects.labels[m]])
        return score**0.5 * overlap(m, p) ** 6 + 1e-9 * closeness(m, p)

    matched = by_loops(
        grid, scores, predicted, objects, alignment, lambda m, cells: top,
        lambda m, p: overlap(m, p) + 1e-6 * closeness(m, p), final,
    )  # fmt: skip
    assert as_dict(found) == matched
    for (_, p), m, quality, share in zip(
        as_dict(found), found.object_indices.tolist(), found.quality.tolist(), found.box_weight.tolist(), strict=True
    ):
        mine = [cell for (_, cell), owner in matched.items() if owner == m]
        peak, reach = max(alignment(m, c) for c in mine), max(overlap(m, c) for c in mine)
        assert share == pytest.approx(alignment(m, p) / peak, rel=1e-3, abs=1e-5)
        assert quality == pytest.approx(alignment(m, p) / peak * reach, rel=1e-3, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(scenes, LEVELS, st.sampled_from([0, 1]))
def test_sim_ota_is_what_loops_find(setup, strides, final):
    grid = grid_of(strides)
    scores, predicted, objects = scene(*setup, grid)
    found = assign_sim_ota(grid, scores, predicted, objects, 10, final)

    def overlap(m, p):
        return float(box_iou(objects.boxes[m][None], predicted[objects.image_indices[m], p][None]))

    def merit(m, p):
        score, iou = float(scores[objects.image_indices[m], p, objects.labels[m]]), overlap(m, p)
        cross_entropy = -iou * math.log(score) - (1 - iou) * math.log(1 - score)
        center = (objects.boxes[m][:2] + objects.boxes[m][2:]) / 2
        away = float((grid.points[p] - center).square().sum()) ** 0.5 / float(grid.strides[p])
        return -(cross_entropy * (score - iou) ** 2 - 3 * math.log(max(iou, 1e-7)) + 10 ** (min(away, 10) - 3))

    def how_many(m, cells):
        return max(1, int(sum(sorted((overlap(m, p) for p in cells), reverse=True)[:10])))

    matched = by_loops(grid, scores, predicted, objects, merit, how_many, merit, final)
    assert as_dict(found) == matched
    qualities = dict(zip(as_dict(found), found.quality.tolist(), strict=True))
    assert qualities == pytest.approx({(b, p): overlap(m, p) for (b, p), m in matched.items()}, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(scenes, LEVELS, st.sampled_from([assign_task_aligned, assign_sim_ota]), st.sampled_from([0, 1]))
def test_every_assignment_is_sound(setup, strides, assign, final):
    grid = grid_of(strides)
    scores, predicted, objects = scene(*setup, grid)
    found = assign(grid, scores, predicted, objects, 10, final)
    places = list(zip(found.image_indices.tolist(), found.cell_indices.tolist(), strict=True))
    assert len(set(places)) == len(places), "a cell answers for one object"
    assert torch.equal(found.image_indices, objects.image_indices[found.object_indices]), "of its own image"
    assert ((found.quality >= 0) & (found.quality <= 1)).all()
    assert (found.box_weight > 0).all()
    assert (
        max_per_group(found.object_indices, found.box_weight, len(objects.boxes))[found.object_indices.unique()]
        .eq(1)
        .all()
    )
    if final:
        assert len(found.object_indices.unique()) == len(found.object_indices)
    for b in range(len(scores)):
        mine = objects.image_indices == b
        alone = Objects(objects.boxes[mine], objects.labels[mine], torch.zeros_like(objects.labels[mine]))
        one = assign(grid, scores[b : b + 1], predicted[b : b + 1], alone, 10, final)
        assert torch.equal(one.cell_indices, found.cell_indices[found.image_indices == b]), (
            "an image does not see its batch"
        )
        torch.testing.assert_close(one.quality, found.quality[found.image_indices == b])


@pytest.mark.parametrize("assign", [assign_task_aligned, assign_sim_ota])
@pytest.mark.parametrize("strides", [(8, 16, 32), (4, 8, 16, 32)])
def test_an_object_alone_is_always_found_even_the_smallest(assign, strides):
    grid = grid_of(strides)
    rng = np.random.default_rng(0)
    scores = torch.full((1, len(grid.points), 1), 0.01)
    predicted = geometry.distances_to_boxes(grid.points, 2 * grid.strides[:, None].expand(-1, 4))[None]
    for _ in range(50):
        side = rng.uniform(0.5, 6)
        x, y = rng.uniform(0, SIZE[1] - side), rng.uniform(0, SIZE[0] - side)
        box = torch.tensor([[x, y, x + side, y + side]], dtype=torch.float32)
        found = assign(grid, scores, predicted, Objects(box, torch.tensor([0]), torch.tensor([0])))
        assert len(found.cell_indices)
        near = (grid.points[found.cell_indices] - (box[0, :2] + box[0, 2:]) / 2).abs()
        assert (near < min(strides)).all(), "by the cells around it"


def test_a_cell_answers_for_the_object_that_it_overlaps_most():
    grid = Grid(torch.tensor([[16.0, 16.0]]), torch.tensor([8.0]))
    objects = Objects(torch.tensor([[0.0, 0.0, 32.0, 32.0], [8.0, 8.0, 24.0, 24.0]]), *torch.zeros(2, 2).long())
    predicted = torch.tensor([[[9.0, 9.0, 23.0, 23.0]]])
    found = assign_task_aligned(grid, torch.tensor([[[0.5]]]), predicted, objects)
    assert found.object_indices.tolist() == [1]
    assert found.quality.item() == pytest.approx(geometry.iou(predicted[0, 0], objects.boxes[1]).item())


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=30),
    st.lists(st.integers(0, 4), min_size=5, max_size=5),
)
def test_best_of_each_group(items, counts):
    groups = torch.tensor([group for group, _ in items], dtype=torch.int64)
    values = torch.tensor([float(value) for _, value in items])
    found = topk_per_group(groups, values, torch.tensor(counts)).tolist()
    expected = []
    for group in range(5):
        members = [i for i, item in enumerate(items) if item[0] == group]
        expected += sorted(members, key=lambda i: -items[i][1])[: counts[group]]
    assert found == expected
    peaks = [max((value for other, value in items if other == group), default=0) for group in range(5)]
    assert max_per_group(groups, values, 5).tolist() == peaks
