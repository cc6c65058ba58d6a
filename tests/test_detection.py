"""Detection: what is trained, what is left alone, and what comes out of a perfect network."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_iou, complete_box_iou_loss

from perception.ops import boxes as geometry
from perception.ops.assignment import task_aligned
from perception.tasks import join
from perception.tasks.detection import Detection, DetectionConfig, Raw
from perception.types import Instances

SIZE = (128, 160)


@pytest.fixture
def task() -> Detection:
    torch.manual_seed(0)
    return Detection("detection", DetectionConfig(classes=("vehicle", "pedestrian")), {8: 16, 16: 16, 32: 16}).eval()


@pytest.fixture
def pyramid() -> dict[int, torch.Tensor]:
    torch.manual_seed(1)
    return {s: torch.rand(1, 16, SIZE[0] // s, SIZE[1] // s, requires_grad=True) for s in (8, 16, 32)}


def score_gradient(task: Detection, pyramid: dict[int, torch.Tensor], target: Instances) -> torch.Tensor:
    """d loss / d class scores [P, C]."""
    raw = task(pyramid)
    raw.logits.retain_grad()
    join(task.loss(raw, [target], [None])).backward()
    return raw.logits.grad[0]


CAR = torch.tensor([[20.0, 30.0, 90.0, 100.0]])


def test_a_source_that_labels_vehicles_never_pushes_pedestrians_down(task, pyramid):
    known = torch.tensor([True, False])
    gradient = score_gradient(task, pyramid, Instances(CAR, torch.tensor([0]), classes=known))
    assert gradient[:, 0].any()
    assert not gradient[:, 1].any()


def test_a_picture_of_a_fully_labelled_source_pushes_absent_classes_down(task, pyramid):
    gradient = score_gradient(task, pyramid, Instances(CAR, torch.tensor([0])))
    assert (gradient[:, 1] > 0).all()


def test_an_ignore_region_is_neither_object_nor_background(task, pyramid):
    target = Instances(CAR, torch.tensor([0]), ignore=torch.tensor([True]))
    gradient = score_gradient(task, pyramid, target)
    points = task(pyramid).points
    inside = ((points >= CAR[0, :2]) & (points <= CAR[0, 2:])).all(1)
    assert not gradient[inside].any()
    assert (gradient[~inside] > 0).all()


def test_an_empty_picture_is_all_background(task, pyramid):
    gradient = score_gradient(task, pyramid, Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))
    assert (gradient > 0).all()


def test_perfect_raw_output_decodes_to_the_target(task, pyramid):
    raw = task(pyramid)
    truth = torch.tensor([[8.0, 8.0, 60.0, 60.0], [64.0, 40.0, 150.0, 120.0]])
    logits = torch.full_like(raw.logits, -12.0)
    boxes = raw.boxes.detach().clone()
    for label, box in enumerate(truth):
        cell = ((raw.points - (box[:2] + box[2:]) / 2).square().sum(1)).argmin()
        logits[0, cell, label], boxes[0, cell] = 8.0, box
    outputs = task.decode(Raw(logits, boxes, raw.points, raw.strides), SIZE)
    found = outputs["scores"][0] > 0.5
    assert found.sum() == 2
    order = outputs["labels"][0][found].argsort()
    torch.testing.assert_close(outputs["boxes"][0][found][order], truth)


def test_every_object_is_assigned_even_the_smallest():
    points = torch.cat(
        [geometry.grid_points(16, 20, 8, torch.zeros(1)), geometry.grid_points(8, 10, 16, torch.zeros(1))]
    )
    strides = torch.cat([torch.full((320,), 8.0), torch.full((80,), 16.0)])
    objects = torch.tensor([[70.0, 70.0, 72.0, 71.0], [0.0, 0.0, 158.0, 126.0]])
    predicted = torch.rand(400, 4) * 10
    result = task_aligned(points, strides, torch.full((400, 2), 0.01), predicted, objects, torch.tensor([0, 1]))
    assert {0, 1} <= set(result.matched.tolist())
    assert (result.quality[result.matched < 0] == 0).all()
    assert (result.quality <= 1).all()


def test_a_point_answers_for_the_object_that_it_overlaps_most():
    points = torch.tensor([[16.0, 16.0]])
    objects = torch.tensor([[0.0, 0.0, 32.0, 32.0], [8.0, 8.0, 24.0, 24.0]])
    predicted = torch.tensor([[9.0, 9.0, 23.0, 23.0]])
    result = task_aligned(points, torch.tensor([8.0]), torch.tensor([[0.5]]), predicted, objects, torch.tensor([0, 0]))
    assert result.matched.tolist() == [1]
    assert result.quality.item() == pytest.approx(geometry.iou(predicted[0], objects[1]).item())


def test_overlaps_equal_torchvision():
    torch.manual_seed(0)
    low = torch.rand(50, 2) * 80
    first = torch.cat([low, low + torch.rand(50, 2) * 40 + 0.5], 1)
    second = first.roll(1, 0)
    torch.testing.assert_close(geometry.iou(first[:, None], second[None]), box_iou(first, second))
    torch.testing.assert_close(
        1 - geometry.ciou(first, second), complete_box_iou_loss(first, second), atol=1e-5, rtol=1e-5
    )
