"""Distillation: an equal output has no distance, the others the Kullback-Leibler divergence or an L1 distance."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Bernoulli, Categorical, kl_divergence

from perception.tasks import TASKS, classification, depth, detection, segmentation

CHANNELS = dict.fromkeys((4, 8, 16, 32), 8)
CLASSES = ("a", "b", "c")


def build_task(name: str, **settings):
    if name != "depth":
        settings["classes"] = CLASSES
    return TASKS[name]("task", TASKS[name].Config(**settings), CHANNELS)


def make_raw(task, seed: int):
    generator = torch.Generator().manual_seed(seed)
    random = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    match task:
        case segmentation.SegmentationTask():
            return segmentation.Raw(random(2, 3, 4, 5))
        case depth.DepthTask():
            return depth.Raw(random(2, 1, 4, 5), random(2, 1, 4, 5))
        case classification.ClassificationTask():
            return classification.Raw(random(2, 3))
    sides = random(2, 7, 4 * (task.config.bins or 1)) * 2
    return make_detections(random(2, 7, 3), sides)


def make_detections(logits, sides):
    raw = detection.Raw(*[None] * len(detection.Raw._fields))
    return raw._replace(logits=logits, box_regression=sides)


TASK_SETTINGS = [
    ("segmentation", {}),
    ("depth", {}),
    ("classification", {}),
    ("classification", {"multi_label": True}),
    ("detection", {"bins": 0}),
    ("detection", {"bins": 16}),
]


@pytest.mark.parametrize(("name", "settings"), TASK_SETTINGS)
def test_an_equal_output_has_no_distance_and_the_gradient_moves_towards_the_teacher(name, settings):
    task = build_task(name, **settings)
    teacher, student = make_raw(task, 0), make_raw(task, 1)
    assert float(task.distill(teacher, teacher)) == pytest.approx(0, abs=1e-6)
    parts = {field: part.requires_grad_() for field, part in student._asdict().items() if part is not None}
    loss = task.distill(student, teacher)
    loss.backward()
    moved = {field: part.detach() - 1e-3 * part.grad / part.grad.norm() for field, part in parts.items()}
    assert float(task.distill(student._replace(**moved), teacher)) < float(loss.detach())


def test_closed_forms():
    task = build_task("classification")
    mine, theirs = make_raw(task, 0), make_raw(task, 1)
    expected = kl_divergence(Categorical(logits=theirs.logits), Categorical(logits=mine.logits)).mean()
    assert float(task.distill(mine, theirs)) == pytest.approx(float(expected), rel=1e-5)
    task = build_task("classification", multi_label=True)
    expected = kl_divergence(Bernoulli(logits=theirs.logits), Bernoulli(logits=mine.logits)).mean()
    assert float(task.distill(mine, theirs)) == pytest.approx(float(expected), rel=1e-5)
    task = build_task("depth")
    mine, theirs = make_raw(task, 0), make_raw(task, 1)
    expected = sum((one - other).abs().mean() for one, other in zip(mine, theirs, strict=True))
    assert float(task.distill(mine, theirs)) == pytest.approx(float(expected))


def test_a_box_is_weighted_by_the_score_of_the_teacher_and_measured_in_cells():
    task = build_task("detection", bins=0)
    logits = torch.tensor([[[9.0, -20.0, -20.0], [-20.0, -20.0, -20.0]]])
    teacher = make_detections(logits, torch.full((1, 2, 4), 20.0))
    student = make_detections(logits, torch.full((1, 2, 4), 20.5))
    assert float(task.distill(student, teacher)) == pytest.approx(0.5, rel=1e-3)
