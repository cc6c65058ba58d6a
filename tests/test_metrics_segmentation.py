"""SegmentationMetric against Cityscapes' evaluation script and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as cityscapes
from cityscapesscripts.helpers.labels import trainId2label
from torchmetrics.classification import MulticlassJaccardIndex

from perception.metrics.segmentation import SegmentationMetric
from perception.types import DenseMap

NAMES = [trainId2label[k].name for k in range(19)]


def full(values):
    values = np.asarray(values, np.uint8)
    return DenseMap(values, np.ones(values.shape, bool))


def pairs(classes, count=6, absent=()):
    random = np.random.default_rng(3)
    for _ in range(count):
        truth = random.integers(0, classes, (40, 50)).astype(np.uint8)
        truth[np.isin(truth, absent)] = 255
        truth[random.random(truth.shape) < 0.1] = 255
        predicted = np.where(random.random(truth.shape) < 0.6, truth, random.integers(0, classes, truth.shape))
        predicted[predicted == 255] = 0
        predicted[np.isin(predicted, absent)] = 0
        yield full(predicted), DenseMap(truth, truth != 255)


def filled(classes, records):
    metric = SegmentationMetric(classes)
    for i, (prediction, target) in enumerate(records):
        metric.update(str(i), prediction, target)
    return metric


@pytest.mark.parametrize("absent", [(), (4, 16)])
def test_E1_equals_cityscapes(absent):
    args = cityscapes.args
    matrix = cityscapes.generateMatrix(args)
    ids = np.array([trainId2label[k].id for k in range(19)] + [0] * 237)  # void: 0, "unlabeled"
    for prediction, target in pairs(19, absent=absent):
        np.add.at(matrix, (ids[target.values], ids[prediction.values]), 1)
    expected = {NAMES[k]: cityscapes.getIouScoreForLabel(trainId2label[k].id, matrix, args) for k in range(19)}
    metric = filled(NAMES, pairs(19, absent=absent))
    assert metric.compute()["miou"] == pytest.approx(cityscapes.getScoreAverage(expected, args), abs=1e-9)
    assert {name: row["iou"] for name, row in metric.table().items()} == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert [k for k in range(19) if metric.table()[NAMES[k]]["pixels"] == 0] == list(absent)


def test_E1_equals_torchmetrics():
    index = MulticlassJaccardIndex(num_classes=7, ignore_index=255, average="macro")
    for prediction, target in pairs(7):
        index.update(torch.as_tensor(prediction.values).long(), torch.as_tensor(target.values).long())
    assert filled(list("abcdefg"), pairs(7)).compute()["miou"] == pytest.approx(float(index.compute()), abs=1e-6)


def test_one_global_matrix_not_a_mean_of_pictures():
    metric = filled(["road", "sky"], [(full([[0, 0, 0, 1]]), full([[0, 0, 0, 0]])), (full([[1, 1]]), full([[1, 1]]))])
    assert metric.confusion().tolist() == [[3, 1, 0], [0, 2, 0]]
    assert metric.compute() == {"miou": pytest.approx((3 / 4 + 2 / 3) / 2), "pixel_accuracy": pytest.approx(5 / 6)}


def test_E2_absent_class_is_excluded_and_said_so():
    metric = filled(["road", "sky", "bus"], [(full([[0, 1, 2]]), full([[0, 1, 1]]))])
    assert metric.compute()["miou"] == pytest.approx((1 + 0.5) / 2)
    row = metric.table()["bus"]
    assert math.isnan(row["iou"])
    assert (row["pixels"], row["predicted"]) == (0, 1)


def test_void_pixels_are_left_out():
    target = DenseMap(np.array([[0, 1, 255]], np.uint8), np.array([[True, False, False]]))
    assert filled(["road", "sky"], [(full([[0, 0, 1]]), target)]).compute() == {"miou": 1.0, "pixel_accuracy": 1.0}


def test_a_pixel_without_a_predicted_class_is_a_miss():
    prediction = DenseMap(np.array([[0, 255]], np.uint8), np.array([[True, False]]))
    metric = filled(["road", "sky"], [(prediction, full([[0, 0]]))])
    assert metric.compute() == {"miou": 0.5, "pixel_accuracy": 0.5}


def test_state_is_small():
    """150 classes: a dense matrix would hold 22,500 numbers."""
    truth = np.zeros((64, 64), np.uint8)
    truth[:32] = 149
    metric = filled([str(k) for k in range(150)], [(full(truth), full(truth))])
    (counts,) = metric.state().values()
    assert [len(part) for part in counts[:2]] == [2, 2]
    assert metric.compute()["miou"] == 1


def test_wrong_size_and_wrong_ids_are_refused():
    metric = SegmentationMetric(["road", "sky"])
    with pytest.raises(ValueError, match=r"frame-7.*\(1, 2\).*\(2, 1\)"):
        metric.update("frame-7", full([[0, 1]]), full([[0], [1]]))
    with pytest.raises(ValueError, match=r"frame-7.*Expected 0 to 1"):
        metric.update("frame-7", full([[0, 1]]), full([[0, 2]]))
