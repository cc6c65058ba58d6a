"""DetectionMetric against pycocotools."""

import contextlib
import io
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from perception.metrics.detection import DetectionMetric
from perception.types import Instances

NAMES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")
DATA = os.environ.get("PERCEPTION_TEST_DATA")


def pycocotools(pairs, classes):
    """The 12 numbers of COCO's own evaluator, NaN for its -1."""
    images, truth, found = [], [], []
    for i, (prediction, target) in enumerate(pairs, start=10):
        images.append({"id": i})
        ignore = np.zeros(len(target.boxes), bool) if target.ignore is None else target.ignore
        for (x1, y1, x2, y2), label, crowd in zip(target.boxes.astype(float), target.labels, ignore, strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            truth.append(
                {"id": len(truth) + 1, "image_id": i, "category_id": int(label) + 5, "bbox": box, "iscrowd": int(crowd)}
                | {"area": box[2] * box[3]}
            )
        for (x1, y1, x2, y2), label, score in zip(
            prediction.boxes.astype(float), prediction.labels, prediction.scores, strict=True
        ):
            box = [x1, y1, x2 - x1, y2 - y1]
            found.append({"image_id": i, "category_id": int(label) + 5, "bbox": box, "score": float(score)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": images,
            "annotations": truth,
            "categories": [{"id": k + 5} for k in range(classes)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [math.nan if value == -1 else value for value in evaluation.stats], evaluation.eval["precision"]


def boxes_of(random, count, smallest, largest):
    corner = random.uniform(0, 500, (count, 2))
    return np.concatenate([corner, corner + random.uniform(smallest, largest, (count, 2))], 1).astype(np.float32)


def perturbed(random, target, classes, spurious):
    """A noisy detector: boxes moved, labels sometimes wrong, some missed, some invented; ties among the scores."""
    kept = random.random(len(target.boxes)) < 0.9
    boxes = target.boxes[kept]
    sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    boxes = boxes + random.normal(0, 0.08, boxes.shape) * sides
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
    labels = np.where(random.random(len(boxes)) < 0.9, target.labels[kept], random.integers(0, classes, len(boxes)))
    boxes = np.concatenate([boxes, boxes_of(random, spurious, 3, 200)]).astype(np.float32)
    labels = np.concatenate([labels, random.integers(0, classes, spurious)])
    return Instances(boxes, labels, np.round(random.random(len(boxes)), 2).astype(np.float32))


def compare(pairs, classes):
    metric = DetectionMetric([f"class {k}" for k in range(classes)])
    for i, (prediction, target) in enumerate(pairs):
        metric.update(f"{i:06d}", prediction, target)
    numbers = metric.compute()
    expected, precision = pycocotools(pairs, classes)
    assert [numbers[name] for name in NAMES] == pytest.approx(expected[:6], abs=1e-9, nan_ok=True)
    assert numbers["ar100"] == pytest.approx(expected[8], abs=1e-9)
    assert 0 < numbers["ap"] < 1
    for k, row in enumerate(metric.compute_per_class().values()):
        known = precision[:, :, k, 0, -1]
        known = known[known > -1]
        assert row["ap"] == pytest.approx(known.mean() if known.size else math.nan, abs=1e-9, nan_ok=True)
    return metric


@pytest.mark.fault("E1")
@pytest.mark.parametrize("seed", range(4))
def test_equals_pycocotools_on_random_data(seed):
    random = np.random.default_rng(seed)
    pairs = []
    for _ in range(40):
        count = int(random.integers(0, 12))
        target = Instances(
            boxes_of(random, count, 2, 250), random.integers(0, 4, count), ignore=random.random(count) < 0.2
        )
        pairs.append((perturbed(random, target, 5, int(random.integers(0, 10))), target))
    compare(pairs, 5)


@pytest.mark.fault("E1")
def test_equals_pycocotools_with_more_than_100_detections_of_a_class():
    random = np.random.default_rng(0)
    pairs = []
    for count in (150, 0, 230):
        target = Instances(boxes_of(random, count, 5, 60), np.zeros(count, np.int64))
        pairs.append((perturbed(random, target, 1, 60), target))
    compare(pairs, 1)


@pytest.mark.fault("E1")
@pytest.mark.skipif(not DATA, reason="PERCEPTION_TEST_DATA is not set")
@pytest.mark.parametrize("split", ["train2017", "val2017"])
def test_equals_pycocotools_on_coco(split):
    path = Path(str(DATA), "coco128", "annotations", f"instances_{split}.json")
    document = json.loads(path.read_text("utf-8"))
    place = {category["id"]: k for k, category in enumerate(document["categories"])}
    random = np.random.default_rng(0)
    pairs = []
    for image in document["images"]:
        own = [item for item in document["annotations"] if item["image_id"] == image["id"]]
        boxes = np.array([item["bbox"] for item in own], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([place[item["category_id"]] for item in own], np.int64)
        target = Instances(boxes, labels, ignore=random.random(len(own)) < 0.1)  # these 128 images hold no crowd
        pairs.append((perturbed(random, target, len(place), 5), target))
    compare(pairs, len(place))


def box(*corners, label=0, score=None, **rest):
    scores = None if score is None else np.array([score], np.float32)
    return Instances(np.array([corners], np.float32), np.array([label]), scores, **rest)


NOTHING = Instances(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))


@pytest.mark.fault("E2")
def test_no_detections_is_zero():
    metric = DetectionMetric(["car", "bus"])
    metric.update("a", NOTHING, box(0, 0, 50, 50))
    numbers = metric.compute()
    assert numbers["ap"] == numbers["ap50"] == numbers["ar100"] == 0
    assert math.isnan(numbers["ap_large"])


@pytest.mark.fault("E2")
def test_absent_class_is_excluded_and_said_so():
    metric = DetectionMetric(["car", "bus"])
    metric.update("a", box(0, 0, 50, 50, score=0.9), box(0, 0, 50, 50))
    metric.update("b", box(0, 0, 50, 50, label=1, score=0.9), NOTHING)
    assert metric.compute()["ap"] == 1
    table = metric.compute_per_class()
    assert math.isnan(table["bus"]["ap"])
    assert [row["count"] for row in table.values()] == [1, 0]


def test_detections_of_unlabeled_classes_are_no_mistake():
    def score(classes):
        metric = DetectionMetric(["car", "bus"])
        metric.update("a", box(0, 0, 50, 50, label=1, score=0.8), box(0, 0, 50, 50, label=1))
        only = None if classes is None else np.array(classes)
        metric.update("b", box(0, 0, 50, 50, label=1, score=0.9), box(0, 0, 50, 50, label=0, labeled_classes=only))
        return metric.compute_per_class()["bus"]["ap"]

    assert score(None) == pytest.approx(0.5, abs=0.01)
    assert score([True, True]) == pytest.approx(0.5, abs=0.01)
    assert score([True, False]) == 1


def test_detections_inside_an_ignore_region_are_no_mistake():
    target = Instances(
        np.array([[0, 0, 50, 50], [100, 0, 300, 200]], np.float32), np.array([0, 0]), ignore=np.array([False, True])
    )
    found = Instances(
        np.array([[0, 0, 50, 50], [120, 20, 160, 60]], np.float32), np.array([0, 0]), np.array([0.5, 0.9], np.float32)
    )
    metric = DetectionMetric(["car"])
    metric.update("a", found, target)
    assert metric.compute()["ap"] == 1
    assert metric.score_image(found, target) == 1
    assert metric.compute_per_class()["car"]["count"] == 1


@pytest.mark.parametrize("label", [0, 1])
def test_an_ignore_region_of_every_class_excuses_detections_of_any(label):
    boxes = np.array([[0, 0, 50, 50], [100, 0, 300, 200]], np.float32)
    target = Instances(boxes, np.array([label, -1]), ignore=np.array([False, True]))
    found = Instances(
        np.array([[0, 0, 50, 50], [120, 20, 160, 60]], np.float32),
        np.array([label] * 2),
        np.array([0.5, 0.9], np.float32),
    )
    metric = DetectionMetric(["car", "person"])
    metric.update("a", found, target)
    assert metric.compute()["ap"] == 1
    assert metric.score_image(found, target) == 1
    assert sum(row["count"] for row in metric.compute_per_class().values()) == 1
    with pytest.raises(ValueError, match="true labels are -1"):  # an object has a class
        metric.update("b", found, Instances(boxes, np.array([label, -1])))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_boxes_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match=r"frame-7.*boxes"):
        DetectionMetric(["car"]).update("frame-7", box(0, 0, value, 5, score=0.5), NOTHING)


def test_labels_outside_the_classes_are_refused():
    with pytest.raises(ValueError, match=r"frame-7.*Expected 0 to 0"):
        DetectionMetric(["car"]).update("frame-7", box(0, 0, 5, 5, label=1, score=0.5), NOTHING)


def test_quality_of_one_image():
    metric = DetectionMetric(["car", "bus"], score_threshold=0.3)
    target = box(0, 0, 50, 50)
    assert math.isnan(metric.score_image(NOTHING, NOTHING))
    assert metric.score_image(NOTHING, target) == 0
    assert metric.score_image(box(0, 0, 50, 50, score=0.9), NOTHING) == 0
    assert math.isnan(metric.score_image(box(0, 0, 50, 50, score=0.2), NOTHING))  # not shown
    assert metric.score_image(box(0, 0, 50, 40, score=0.9), target) == pytest.approx(0.8)
    assert metric.score_image(box(0, 0, 50, 50, label=1, score=0.9), target) == 0


def test_nothing_is_printed(capfd):
    metric = DetectionMetric(["car"])
    metric.update("a", box(0, 0, 50, 40, score=0.9), box(0, 0, 50, 50))
    metric.compute()
    metric.compute_per_class()
    assert capfd.readouterr() == ("", "")
