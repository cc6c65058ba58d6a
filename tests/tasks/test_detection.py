"""Detection: what is trained, what is left alone, and what comes out of a perfect network, for every kind of head."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from perception.ops import boxes as geometry
from perception.tasks import sum_loss_terms
from perception.tasks.detection import DetectionConfig, DetectionTask, HeadOutput, Raw
from perception.types import ConfigError, Instances

SIZE = (128, 160)
CLASSES = ("vehicle", "pedestrian")
HEADS: dict[str, dict[str, Any]] = {
    "default": {},
    "distribution": {"bins": 12},
    "one to one": {"one_to_one": True},
    "one to one, distribution": {"one_to_one": True, "bins": 12},
    "fine": {"strides": (4, 8, 16, 32)},
    "fine, one to one, sim_ota": {"strides": (4, 8, 16, 32), "one_to_one": True, "assignment": "sim_ota"},
}


def head(options: dict[str, Any]) -> DetectionTask:
    torch.manual_seed(0)
    config = DetectionConfig(classes=CLASSES, **options)
    return DetectionTask("detection", config, {s: 8 if s == 4 else 16 for s in config.strides}).eval()


@pytest.fixture(params=list(HEADS), ids=list(HEADS))
def task(request) -> DetectionTask:
    return head(HEADS[request.param])


def pyramid_of(task: DetectionTask, pictures: int = 1) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {s: (pictures, 8 if s == 4 else 16, SIZE[0] // s, SIZE[1] // s) for s in task.strides}
    return {s: torch.rand(shape, generator=generator, requires_grad=True) for s, shape in shapes.items()}


def branches(raw: Raw) -> list[HeadOutput]:
    return [*raw.auxiliary_outputs, HeadOutput(raw.logits, raw.box_regression)]


def gradients(task: DetectionTask, raw: Raw, targets: list[Instances | None]) -> list[HeadOutput]:
    """d loss / d logits [B, P, C] and d loss / d sides [B, P, n] of every branch."""
    loss = sum_loss_terms(task.total_loss_terms(raw, targets, [None] * len(targets)))
    tensors = [tensor for branch in branches(raw) for tensor in branch]
    found = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
    return [HeadOutput(*pair) for pair in zip(found[::2], found[1::2], strict=True)]


def within(points: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    return ((points >= box[:2]) & (points <= box[2:])).all(1)


CAR = torch.tensor([[20.0, 30.0, 90.0, 100.0]])
NOTHING = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def test_a_source_that_labels_vehicles_never_pushes_pedestrians_down(task):
    known = torch.tensor([True, False])
    for branch in gradients(task, task(pyramid_of(task)), [Instances(CAR, torch.tensor([0]), labeled_classes=known)]):
        assert branch.logits[..., 0].any()
        assert not branch.logits[..., 1].any()


def test_an_image_of_a_fully_labeled_source_pushes_absent_classes_down(task):
    for branch in gradients(task, task(pyramid_of(task)), [Instances(CAR, torch.tensor([0]))]):
        assert (branch.logits[..., 1] > 0).all()


def test_an_object_of_an_unlabeled_class_is_no_object_of_it_and_background_of_the_others(task):
    """What a source does not promise to label may be there, but it trains nothing of that class."""
    both = Instances(CAR, torch.tensor([1]), labeled_classes=torch.tensor([True, False]))
    raw = task(pyramid_of(task))
    for branch in gradients(task, raw, [both]):
        assert not branch.logits[..., 1].any()
        assert not branch.box_regression.any()
        assert (branch.logits[..., 0] > 0).all()


def test_an_ignore_region_is_neither_object_nor_background(task):
    raw = task(pyramid_of(task))
    inside = within(raw.points, CAR[0])
    for branch in gradients(task, raw, [Instances(CAR, torch.tensor([0]), ignore=torch.tensor([True]))]):
        assert not branch.logits[0, inside].any()
        assert not branch.box_regression.any()
        assert (branch.logits[0, ~inside] > 0).all()


def test_an_object_in_an_ignore_region_is_learned_but_its_neighbourhood_is_not_background(task):
    """A crowd around a labeled person: the person counts, what is beside it may be another."""
    crowd = torch.tensor([[0.0, 0.0, 160.0, 128.0]])
    target = Instances(torch.cat([CAR, crowd]), torch.tensor([0, 0]), ignore=torch.tensor([False, True]))
    raw = task(pyramid_of(task))
    for branch in gradients(task, raw, [target]):
        trained = branch.logits[0, :, 0] != 0
        assert 1 <= trained.sum() <= task.config.assign_topk
        assert within(raw.points[trained], CAR[0]).all()
        assert not branch.logits[..., 1].any()
        assert branch.box_regression.any()


def test_an_empty_image_is_all_background(task):
    for branch in gradients(task, task(pyramid_of(task)), [NOTHING]):
        assert (branch.logits > 0).all()
        assert not branch.box_regression.any()


def test_an_image_of_a_batch_trains_as_if_it_were_alone(task):
    """Unlike counts of objects, regions and labeled classes do not mix; nor does an unlabeled image count."""
    targets = [
        NOTHING,
        Instances(CAR, torch.tensor([1]), labeled_classes=torch.tensor([False, True])),
        None,
        Instances(torch.cat([CAR, CAR / 3]), torch.tensor([0, 1]), ignore=torch.tensor([False, True])),
    ]
    raw = task(pyramid_of(task, len(targets)))
    together = task.compute_loss_terms(raw, targets, [None] * 4)
    rows = [Raw(*(x[i : i + 1] for x in raw[:2]), *raw[2:4], _row(raw.auxiliary_outputs, i)) for i in range(4)]
    alone = [task.compute_loss_terms(row, [t], [None]) for row, t in zip(rows, targets, strict=True) if t is not None]
    for name in task.loss_names:
        torch.testing.assert_close(together[name].total, sum(parts[name].total for parts in alone))
        torch.testing.assert_close(together[name].count, sum(parts[name].count for parts in alone))


def _row(auxiliary: tuple[HeadOutput, ...], i: int) -> tuple[HeadOutput, ...]:
    return tuple(HeadOutput(*(x[i : i + 1] for x in branch)) for branch in auxiliary)


def sides_of(task: DetectionTask, points: torch.Tensor, strides: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """What the head must say at ``points`` for ``boxes`` [..., 4]: the inverse of its decoding."""
    cells = geometry.boxes_to_distances(points, boxes) / strides[..., None] + 1
    if not task.config.bins:
        return cells + torch.log(-torch.expm1(-cells))  # the inverse of softplus
    bins = torch.arange(task.config.bins)
    return (1 - (cells[..., None] - bins).abs()).clamp(min=1e-9).log().flatten(-2)


TRUTH = torch.tensor([[8.0, 8.0, 60.0, 60.0], [64.0, 40.0, 150.0, 120.0], [100.0, 9.0, 103.0, 12.0]])
LABELS = torch.tensor([0, 1, 0])


def perfect(task: DetectionTask, every_cell: bool) -> Raw:
    """Each object said by the cell nearest its center on a level that can say it, or by all cells inside of it."""
    raw = task(pyramid_of(task))
    logits, sides = torch.full_like(raw.logits, -12.0), raw.box_regression.detach().clone()
    for label, box in zip(LABELS, TRUTH, strict=True):
        center = (box[:2] + box[2:]) / 2
        cells = geometry.boxes_to_distances(raw.points, box) / raw.strides[:, None] + 1
        fits = (cells > 0).all(1) & (cells < (task.config.bins or 1e3) - 1).all(1)
        away = torch.where(fits, (raw.points - center).square().sum(1), torch.inf)
        chosen = (away < 100.0).nonzero()[:, 0] if every_cell else away.argmin()[None]
        logits[0, chosen, label] = 8.0
        sides[0, chosen] = sides_of(task, raw.points[chosen], raw.strides[chosen], box.expand(len(chosen), 4))
    return Raw(logits, sides, raw.points, raw.strides, raw.auxiliary_outputs)


def test_perfect_raw_output_decodes_to_the_target(task):
    outputs = task.decode(perfect(task, every_cell=False), SIZE)
    found = outputs["scores"][0] > 0.5
    assert found.sum() == len(TRUTH)
    order = outputs["boxes"][0][found][:, 0].argsort()
    torch.testing.assert_close(outputs["boxes"][0][found][order], TRUTH, atol=1e-3, rtol=1e-4)
    assert outputs["labels"][0][found][order].tolist() == LABELS.tolist()


def test_perfect_raw_output_has_no_loss_to_speak_of(task):
    perfect_raw = perfect(task, every_cell=False)
    target = Instances(TRUTH, LABELS)
    parts = task.total_loss_terms(perfect_raw, [target], [None])
    last = "one_to_one_" if task.config.one_to_one else ""
    worse = task.total_loss_terms(task(pyramid_of(task)), [target], [None])
    for name in ("class", "box"):
        value, other = (float(sum_loss_terms({"": p[last + name]}).detach()) for p in (parts, worse))
        assert value < 0.01 < other


def test_duplicates_are_removed_by_suppression_or_never_asked_for(task):
    raw = perfect(task, every_cell=True)
    scores = task.decode(raw, SIZE)["scores"][0] > 0.5
    if not task.config.one_to_one:
        assert scores.sum() == len(TRUTH)
        return
    assert scores.sum() == (raw.logits > 0).sum() > len(TRUTH), "nothing is suppressed"
    raw = Raw(raw.logits.requires_grad_(), raw.box_regression.requires_grad_(), *raw[2:])
    pushed = gradients(task, raw, [Instances(TRUTH, LABELS)])[-1].logits
    assert ((pushed > 0) & (raw.logits > 0)).sum() == scores.sum() - len(TRUTH), "all but one of each are pushed down"


@pytest.mark.parametrize("candidates", [5, 500])
def test_decoded_shapes_are_fixed_and_boxes_never_inside_out(task, candidates):
    task.config = dataclasses.replace(task.config, pre_nms_topk=candidates, max_detections=40)
    raw = task(pyramid_of(task, 2))
    wild = Raw(raw.logits, torch.randn_like(raw.box_regression) * 20, *raw[2:])
    outputs = task.decode(wild, SIZE)
    assert [tuple(value.shape) for value in outputs.values()] == [(2, 40, 4), (2, 40), (2, 40)]
    assert (outputs["boxes"][..., 2:] >= outputs["boxes"][..., :2]).all()
    assert torch.isfinite(outputs["boxes"]).all()
    assert (outputs["scores"].diff(dim=1) <= 0).all(), "best first"


@pytest.mark.parametrize("bins", [0, 12])
@pytest.mark.parametrize("strides", [(8, 16, 32), (4, 8, 16, 32)])
def test_a_box_smaller_than_a_cell_can_be_said_exactly_wherever_it_lies(strides, bins):
    """By some cell that may answer for it: its center need not lie inside of the box."""
    task = head({"strides": strides, "bins": bins})
    raw = task(pyramid_of(task))
    rng = np.random.default_rng(0)
    for _ in range(30):
        side = rng.uniform(1, 5)
        corner = torch.tensor([rng.uniform(0, SIZE[1] - side), rng.uniform(0, SIZE[0] - side)], dtype=torch.float32)
        box = torch.cat([corner, corner + side])
        cell = (raw.points - corner - side / 2).square().sum(1)[: int((raw.strides == strides[0]).sum())].argmin()
        at = raw.points[cell], raw.strides[cell]
        sides = sides_of(task, *at, box)
        assert torch.isfinite(sides).all()
        torch.testing.assert_close(task.decode_boxes(sides, *at), box, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("strides", "options", "steps"),
    [
        ((8, 16, 32), {}, 100),
        ((8, 16, 32), {"bins": 12}, 100),
        ((4, 8), {}, 100),
        # at first a single cell learns each light, where "task_aligned" has ten
        ((4, 8), {"assignment": "sim_ota"}, 300),
    ],
    ids=str,
)
def test_learns_an_image_of_tiny_boxes_by_heart(strides, options, steps):
    """Lights of 2 to 5 pixels, everywhere between the cells, from features that tell nothing but the place."""
    torch.manual_seed(0)
    task = head({"strides": strides, **options}).train()
    pyramid = {s: torch.rand(f.shape) for s, f in pyramid_of(task).items()}
    rng = np.random.default_rng(3)
    x, y = np.meshgrid(np.arange(16, 150, 40), np.arange(16, 120, 40))
    low = np.stack([x, y], -1).reshape(-1, 2) + rng.uniform(0, 8, (x.size, 2))
    boxes = torch.from_numpy(np.concatenate([low, low + rng.uniform(2, 5, low.shape)], 1).astype(np.float32))
    target = Instances(boxes, torch.zeros(len(boxes), dtype=torch.int64))
    optimizer = torch.optim.Adam(task.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        sum_loss_terms(task.total_loss_terms(task(pyramid), [target], [None])).backward()
        optimizer.step()
    with torch.no_grad():
        outputs = task.decode(task(pyramid), SIZE)
    found = outputs["boxes"][0][: len(boxes)]
    overlap = geometry.iou(boxes[:, None], found[None]).amax(1)
    assert (overlap > 0.5).float().mean() >= 0.95
    assert overlap.mean() > 0.75


def test_the_one_to_one_branch_leaves_the_features_alone_unless_asked():
    for free in (False, True):
        task = head({"one_to_one": True, "one_to_one_gradient": free})
        features = pyramid_of(task)
        parts = task.total_loss_terms(task(features), [Instances(CAR, torch.tensor([0]))], [None])
        own = {name: part for name, part in parts.items() if name.startswith("one_to_one")}
        found = torch.autograd.grad(
            sum_loss_terms(own), list(features.values()), allow_unused=True, materialize_grads=True
        )
        assert all(bool(gradient.any()) is free for gradient in found)


def test_both_branches_agree_where_their_networks_do():
    """A consistent metric: the one cell of an object is the best of its many."""
    task = head({"one_to_one": True})
    task.heads[1].load_state_dict(task.heads[0].state_dict())
    raw = task(pyramid_of(task))
    many, one = gradients(task, raw, [Instances(CAR, torch.tensor([0]))])
    best = one.logits[0, :, 0].argmin()
    assert (one.logits[0, :, 0] < 0).sum() == 1
    assert best == many.logits[0, :, 0].argmin()


def test_scores_do_not_leak_into_the_gradient_through_the_assignment(task):
    """What a target is worth is no way to learn: only the scores' and the sides' own losses are."""
    raw = task(pyramid_of(task))
    parts = task.total_loss_terms(raw, [Instances(CAR, torch.tensor([0]))], [None])
    box = {name: part for name, part in parts.items() if not name.endswith("class")}
    found = torch.autograd.grad(
        sum_loss_terms(box), [b.logits for b in branches(raw)], allow_unused=True, materialize_grads=True
    )
    assert not any(gradient.any() for gradient in found)


@pytest.mark.parametrize(
    "wrong",
    [
        {"bins": 1},
        {"bins": -3},
        {"assign_topk": 0},
        {"strides": ()},
        {"strides": (8, 8)},
        {"classes": ()},
        {"max_detections": 0},
    ],
    ids=str,
)
def test_a_setting_that_cannot_work_is_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DetectionConfig(**{"classes": CLASSES, **wrong})


def test_softplus_is_inverted_as_the_tests_believe():
    values = torch.linspace(0.05, 30, 50)
    torch.testing.assert_close(F.softplus(values + torch.log(-torch.expm1(-values))), values)
