"""A source says which classes it labels: the others get no gradient, cost no AP, and are learned from other sources."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from shape_images import LOOKS, SHAPES, shapes

from perception import config, recipe, runs
from perception.metrics.detection import DetectionMetric
from perception.ops import boxes as geometry
from perception.tasks import sum_loss_terms
from perception.tasks.detection import DetectionConfig, DetectionTask, Raw
from perception.types import Instances

CLASSES = ("car", "truck", "person", "sign")
SIZE = (64, 96)


@st.composite
def partial_targets(draw) -> Instances:
    """Boxes of labeled classes; ignore regions of any class; at least one class labeled, at least one not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    known = rng.permutation(len(CLASSES)) < draw(st.integers(1, len(CLASSES) - 1))
    count = draw(st.integers(0, 6))
    low = rng.uniform(0, (SIZE[1] - 8, SIZE[0] - 8), (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 50, (count, 2))], 1).astype(np.float32)
    labels = rng.integers(0, len(CLASSES), count)
    ignore = ~known[labels] | (rng.random(count) < 0.2)
    return Instances(*map(torch.from_numpy, (boxes, labels)), None, torch.from_numpy(ignore), torch.from_numpy(known))


def raw_of(seed: int, pictures: int) -> Raw:
    """What an untrained head might say: scores of every height, boxes around their cells."""
    generator = torch.Generator().manual_seed(seed)
    grids = [(s, geometry.grid_points(SIZE[0] // s, SIZE[1] // s, s, torch.zeros(1))) for s in (8, 16, 32)]
    points = torch.cat([grid for _, grid in grids])
    strides = torch.cat([torch.full((len(grid),), float(s)) for s, grid in grids])
    sides = (torch.rand(pictures, len(points), 4, generator=generator) * 3 + 0.5).requires_grad_()
    logits = torch.randn(pictures, len(points), len(CLASSES), generator=generator) * 3
    return Raw(logits.requires_grad_(), sides, points, strides)


def detection(classes: tuple[str, ...] = CLASSES) -> DetectionTask:
    return DetectionTask("detection", DetectionConfig(classes=classes, channels=8), {8: 8, 16: 8, 32: 8})


def gradients(task: DetectionTask, raw: Raw, targets: list[Instances | None]) -> tuple[torch.Tensor, torch.Tensor]:
    """d loss / d logits [B, P, C] and d loss / d sides [B, P, 4]."""
    loss = sum_loss_terms(task.compute_loss_terms(raw, targets, [None] * len(targets)))
    logits, sides = torch.autograd.grad(
        loss, (raw.logits, raw.box_regression), allow_unused=True, materialize_grads=True
    )
    return logits, sides


@settings(max_examples=60, deadline=None)
@given(partial_targets(), st.integers(0, 2**31))
def test_an_unlabeled_class_gets_exactly_no_gradient_at_any_anchor(target, seed):
    """Whatever the network says of it, and whether or not it is seen beside labeled classes and ignore regions."""
    raw = raw_of(seed, 1)
    moved, _ = gradients(detection(), raw, [target])
    assert (moved[0][:, ~target.labeled_classes] == 0).all()
    outside = ~regions(raw.points, target.boxes[target.ignore])
    assert (moved[0][outside][:, target.labeled_classes] != 0).all(), "a labeled class is trained on every other anchor"


def regions(points: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """bool [P]: points in any of the boxes."""
    inside = (points[:, None] >= boxes[None, :, :2]) & (points[:, None] <= boxes[None, :, 2:])
    return inside.all(-1).any(1)


@settings(max_examples=40, deadline=None)
@given(partial_targets(), st.integers(0, 2**31))
def test_a_partial_image_trains_as_in_a_network_of_its_classes_alone(target, seed):
    """The same loss gradient as if the unlabeled classes did not exist in the recipe."""
    raw = raw_of(seed, 1)
    kept = torch.nonzero(target.labeled_classes)[:, 0]
    alone = Raw(raw.logits.detach()[..., kept].requires_grad_(), raw.box_regression, raw.points, raw.strides)
    place = torch.full((len(CLASSES),), 0).scatter_(0, kept, torch.arange(len(kept)))
    smaller = Instances(target.boxes, place[target.labels], None, target.ignore)
    among_all, sides = gradients(detection(), raw, [target])
    by_itself, same_sides = gradients(detection(tuple(CLASSES[k] for k in kept)), alone, [smaller])
    torch.testing.assert_close(among_all[..., kept], by_itself, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(sides, same_sides, rtol=1e-5, atol=1e-7)


@settings(max_examples=20, deadline=None)
@given(st.lists(partial_targets() | st.none(), min_size=2, max_size=4).filter(any), st.integers(0, 2**31))
def test_in_a_batch_every_image_keeps_to_its_own_classes(targets, seed):
    moved, _ = gradients(detection(), raw_of(seed, len(targets)), targets)
    for gradient, target in zip(moved, targets, strict=True):
        assert target is not None or not gradient.any()
        assert target is None or (gradient[:, ~target.labeled_classes] == 0).all()


@settings(max_examples=40, deadline=None)
@given(partial_targets(), st.integers(0, 2**31))
def test_a_class_labeled_in_part_adds_no_negative(target, seed):
    """Its scores are trained only upwards, where an object of it is; there they are as if it were labeled whole."""
    raw, network = raw_of(seed, 1), detection().train()
    raw.logits.data.fill_(-20)  # less than any object wants
    whole, sides = gradients(network, raw, [target])
    moved, same_sides = gradients(
        network, raw, [dataclasses.replace(target, partial_classes=target.labeled_classes.clone())]
    )
    objects = torch.isin(torch.arange(len(CLASSES)), target.labels[~target.ignore])
    outside = ~regions(raw.points, target.boxes[target.ignore])
    assert (whole[0][outside][:, target.labeled_classes & ~objects] > 0).all(), (
        "labeled whole, its scores are pushed down"
    )
    assert not (moved > 0).any()
    assert not moved[0][:, ~objects].any()
    assert torch.equal(moved, torch.where(whole < 0, whole, 0))
    assert torch.equal(sides, same_sides)


def scored(rng: np.random.Generator, target: Instances) -> Instances:
    """What a middling detector would say of an image: boxes moved a little, some missed, some invented, any class."""
    boxes = target.boxes[rng.random(len(target.boxes)) < 0.85]
    boxes = boxes + rng.normal(0, 3, boxes.shape)
    low = rng.uniform(0, 300, (6, 2))
    boxes = np.concatenate([boxes, np.concatenate([low, low + rng.uniform(10, 120, (6, 2))], 1)]).astype(np.float32)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    labels = rng.integers(0, len(CLASSES), len(boxes))
    labels[: len(target.labels)] = np.resize(target.labels, len(labels))[: len(target.labels)]
    return Instances(boxes, labels, rng.random(len(boxes)).astype(np.float32))


def labeled_images(rng: np.random.Generator, count: int) -> list[Instances]:
    """Images whose sources label different classes; every fourth one labels all."""
    pictures = []
    for i in range(count):
        known = np.ones(len(CLASSES), bool) if i % 4 == 0 else rng.permutation(len(CLASSES)) < rng.integers(1, 4)
        labels = rng.choice(np.flatnonzero(known), int(rng.integers(0, 9)))
        low = rng.uniform(0, 300, (len(labels), 2))
        boxes = np.concatenate([low, low + rng.uniform(10, 120, (len(labels), 2))], 1).astype(np.float32)
        pictures.append(Instances(boxes, labels, labeled_classes=None if known.all() else known))
    return pictures


def cocos_ap(pairs: list[tuple[Instances, Instances]], label: int) -> tuple[float, float]:
    """AP and AP50 of one class by pycocotools, which is shown only the images that label it; NaN without truth."""
    shown = [(p, t) for p, t in pairs if t.labeled_classes is None or t.labeled_classes[label]]
    truth, found = [], []
    for image, (prediction, target) in enumerate(shown, start=1):
        for rows, instances in ((truth, target), (found, prediction)):
            for row in np.flatnonzero(instances.labels == label):
                x1, y1, x2, y2 = instances.boxes[row].astype(float)
                box = {"id": len(rows) + 1, "image_id": image, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
                score = {} if instances.scores is None else {"score": float(instances.scores[row])}
                rows.append({**box, "area": (x2 - x1) * (y2 - y1), "iscrowd": 0, **score})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(1, len(shown) + 1)], "annotations": truth, "categories": [{"id": 1}]
        }  # fmt: skip
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return tuple(math.nan if value == -1 else value for value in evaluation.stats[:2])


def measured(pairs: list[tuple[Instances, Instances]]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    metric = DetectionMetric(CLASSES)
    for i, (prediction, target) in enumerate(pairs):
        metric.update(f"{i:03d}", prediction, target)
    return metric.compute(), metric.compute_per_class()


@pytest.mark.parametrize("seed", range(3))
def test_ap_is_pycocotools_ap_of_each_class_on_the_images_that_label_it(seed):
    rng = np.random.default_rng(seed)
    targets = labeled_images(rng, 24)
    pairs = [(scored(rng, target), target) for target in targets]
    numbers, table = measured(pairs)
    expected = [cocos_ap(pairs, label) for label in range(len(CLASSES))]
    for row, (ap, ap50) in zip(table.values(), expected, strict=True):
        assert (row["ap"], row["ap50"]) == pytest.approx((ap, ap50), abs=1e-9)
    assert (numbers["ap"], numbers["ap50"]) == pytest.approx(tuple(np.mean(expected, 0)), abs=1e-9)
    assert 0.02 < numbers["ap"] < 0.9


def test_predictions_of_unlabeled_classes_change_no_number():
    rng = np.random.default_rng(5)
    targets = labeled_images(rng, 16)
    pairs, cleaned = [], []
    for target in targets:
        prediction = scored(rng, target)
        pairs.append((prediction, target))
        known = np.ones(len(CLASSES), bool) if target.labeled_classes is None else target.labeled_classes
        kept = known[prediction.labels]
        cleaned.append((Instances(prediction.boxes[kept], prediction.labels[kept], prediction.scores[kept]), target))
    assert sum(len(p.boxes) for p, _ in cleaned) < sum(len(p.boxes) for p, _ in pairs)
    assert measured(pairs) == measured(cleaned)


def write_source(root: Path, name: str, look: str, count: int, seed: int, declared: list[str], boxed: list[str]) -> Any:
    """Images of one camera and their COCO file. Returns the source's mapping in a recipe.

    declared: classes that the file's categories name; boxed: those of which it holds the boxes
    """
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    (root / name).mkdir()
    for n in range(1, count + 1):
        image, boxes = shapes(rng)
        image = (image * LOOKS[look]).astype(np.uint8)
        cv2.imwrite(str(root / name / f"{n:04d}.png"), image[..., ::-1])
        images.append({"id": n, "file_name": f"{n:04d}.png", "height": image.shape[0], "width": image.shape[1]})
        for label, box in boxes:
            if SHAPES[label] in boxed:
                annotations.append({"id": len(annotations) + 1, "image_id": n, "category_id": label + 1, "bbox": box})
    categories = [{"id": SHAPES.index(shape) + 1, "name": shape} for shape in declared]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / f"{name}.json").write_text(json.dumps(content))
    return {"name": name, "labels": [{"format": "coco", "images": name, "annotations": f"{name}.json"}]}


def trained(folder: Path, labels: str, seed: int = 0, steps: int = 700) -> dict[str, float]:
    """Metrics on fully labeled images of both cameras after a training whose labels are

    full:       both classes on all images
    partial:    discs on the plain images, squares on the warm ones, and the sources say so
    background: the same boxes, but the sources claim to label both classes
    """
    folder.mkdir()
    both = list(SHAPES)
    train = []
    for i, (look, shape) in enumerate(zip(LOOKS, SHAPES, strict=True)):
        boxed = both if labels == "full" else [shape]
        declared = [shape] if labels == "partial" else both
        train.append(write_source(folder, look, look, 300, 10 * seed + i, declared, boxed))
    validation = [
        write_source(folder, f"{look}-held-out", look, 80, 10 * seed + 5 + i, both, both)
        for i, look in enumerate(LOOKS)
    ]
    mapping = {
        "seed": seed,
        "data": {
            "root": str(folder), "size": [96, 128], "workers": 0, "train": train, "validation": validation,
            "augment": {"scale": [1.0, 1.0], "flip": 0.5, "color": 0.0, "degrade": 0.0},
        },
        "tasks": {"detection": {"classes": both}},
        "train": {
            "steps": steps, "batch_size": 4, "lr": 2e-3, "warmup_steps": 40, "ema_decay": 0.99, "tensorboard": False,
            "checkpoint_every": 0,
        },
    }  # fmt: skip
    evaluation = runs.train(
        recipe.parse(config.dump_yaml(config.validate_config(recipe.Recipe, mapping))), folder / "run"
    )
    assert evaluation is not None
    return {key: evaluation.metrics[f"detection/{key}"] for key in ("ap", "ap50")}


@pytest.mark.slow
def test_two_sources_that_label_one_class_each_teach_both(tmp_path):
    """On images of both classes: nearly what full labels teach, and far more than missing labels as background.

    The sources differ in color, as real ones differ in their cameras: then a network can learn of which source a
    image is, and that "background" holds none of the other's class.
    """
    found = {labels: trained(tmp_path / labels, labels) for labels in ("full", "partial", "background")}
    for key in ("ap", "ap50"):
        assert found["partial"][key] >= 0.9 * found["full"][key], found
        assert found["background"][key] <= 0.8 * found["partial"][key], found
