"""SegmentationMetric against Cityscapes' evaluation script, torchmetrics and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as cityscapes
from cityscapesscripts.helpers.labels import trainId2label
from sklearn.metrics import jaccard_score
from torchmetrics.classification import MulticlassJaccardIndex

from perception.metrics.segmentation import SegmentationMetric
from perception.types import DenseMap, LabelSpace

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


@pytest.mark.fault("E1")
@pytest.mark.parametrize("absent", [(), (4, 16)])
def test_equals_cityscapes(absent):
    args = cityscapes.args
    matrix = cityscapes.generateMatrix(args)
    ids = np.array([trainId2label[k].id for k in range(19)] + [0] * 237)  # void: 0, "unlabeled"
    for prediction, target in pairs(19, absent=absent):
        np.add.at(matrix, (ids[target.values], ids[prediction.values]), 1)
    expected = {NAMES[k]: cityscapes.getIouScoreForLabel(trainId2label[k].id, matrix, args) for k in range(19)}
    metric = filled(NAMES, pairs(19, absent=absent))
    assert metric.compute()["miou"] == pytest.approx(cityscapes.getScoreAverage(expected, args), abs=1e-9)
    assert {name: row["iou"] for name, row in metric.compute_per_class().items()} == pytest.approx(
        expected, abs=1e-9, nan_ok=True
    )
    assert [k for k in range(19) if metric.compute_per_class()[NAMES[k]]["pixels"] == 0] == list(absent)


@pytest.mark.fault("E1")
def test_equals_torchmetrics():
    index = MulticlassJaccardIndex(num_classes=7, ignore_index=255, average="macro")
    for prediction, target in pairs(7):
        index.update(torch.as_tensor(prediction.values).long(), torch.as_tensor(target.values).long())
    assert filled(list("abcdefg"), pairs(7)).compute()["miou"] == pytest.approx(float(index.compute()), abs=1e-6)


def test_one_global_matrix_not_a_mean_of_images():
    metric = filled(["road", "sky"], [(full([[0, 0, 0, 1]]), full([[0, 0, 0, 0]])), (full([[1, 1]]), full([[1, 1]]))])
    assert metric.confusion_matrix().tolist() == [[3, 1, 0], [0, 2, 0]]
    assert metric.compute() == {"miou": pytest.approx((3 / 4 + 2 / 3) / 2), "pixel_accuracy": pytest.approx(5 / 6)}


@pytest.mark.fault("E2")
def test_absent_class_is_excluded_and_said_so():
    metric = filled(["road", "sky", "bus"], [(full([[0, 1, 2]]), full([[0, 1, 1]]))])
    assert metric.compute()["miou"] == pytest.approx((1 + 0.5) / 2)
    row = metric.compute_per_class()["bus"]
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


FIVE = ("road", "car", "truck", "tree", "sky")
VEHICLES = LabelSpace(("ground", "vehicle", "far"), ((0,), (1, 2), (3, 4)))
CARS = LabelSpace(("car", ""), ((1,), (0, 2, 3, 4)))
IDENTITY = LabelSpace(FIVE, tuple((k,) for k in range(5)))


def pictures(source: str, space: LabelSpace | None, count: int, seed: int) -> list[tuple[str, DenseMap, DenseMap]]:
    """(id, prediction, truth): three pixels in five are right."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(count):
        fine = random.integers(0, 5, (20, 30))
        predicted = np.where(random.random(fine.shape) < 0.6, fine, random.integers(0, 5, fine.shape)).astype(np.uint8)
        truth = fine.astype(np.uint8)
        if space is not None:
            owner = np.array(
                [next(k for k, each in enumerate(space.class_sets) if c in each) for c in range(5)], np.uint8
            )
            truth = owner[fine]
        truth[random.random(truth.shape) < 0.1] = 255
        everywhere = np.ones(truth.shape, bool)
        found.append(
            (f"{source}/{i}", DenseMap(predicted, everywhere), DenseMap(truth, truth != 255, label_space=space))
        )
    return found


def metric_of(records: list[tuple[str, DenseMap, DenseMap]]) -> SegmentationMetric:
    metric = SegmentationMetric(FIVE)
    for record in records:
        metric.update(*record)
    return metric


def merged_ious(records: list[tuple[str, DenseMap, DenseMap]], space: LabelSpace) -> list[float]:
    """scikit-learn's Jaccard index of each id, predictions merged by the sets."""
    owner = np.array([next(k for k, each in enumerate(space.class_sets) if c in each) for c in range(5)])
    true = np.concatenate([truth.values[truth.valid] for _, _, truth in records])
    predicted = np.concatenate([owner[p.values[t.valid]] for _, p, t in records])
    return jaccard_score(true, predicted, labels=range(len(space.class_sets)), average=None).tolist()


def test_a_source_is_judged_in_its_own_label_space_as_scikit_learn_does_on_merged_labels():
    full, vehicles, cars = pictures("a", None, 4, 0), pictures("b", VEHICLES, 3, 1), pictures("c", CARS, 2, 2)
    metric = metric_of([*full, *vehicles, *cars])
    numbers, table = metric.compute(), metric.compute_per_class()
    expected = {
        "a": np.mean(merged_ious(full, IDENTITY)),
        "b": np.mean(merged_ious(vehicles, VEHICLES)),
        "c": merged_ious(cars, CARS)[0],  # "no car" is no class of its own
    }
    for source, value in expected.items():
        assert numbers[f"{source}/miou"] == pytest.approx(value, abs=1e-12)
    assert numbers["miou"] == pytest.approx(np.mean(list(expected.values())), abs=1e-12)
    assert [table[f"b: {name}"]["iou"] for name in VEHICLES.names] == pytest.approx(merged_ious(vehicles, VEHICLES))
    assert {name for name in table if ":" in name} == {"b: ground", "b: vehicle", "b: far", "c: car"}


def test_the_iou_of_a_class_is_over_the_pixels_where_it_can_be_decided():
    full, vehicles, cars = pictures("a", None, 4, 0), pictures("b", VEHICLES, 3, 1), pictures("c", CARS, 2, 2)
    table = metric_of([*full, *vehicles, *cars]).compute_per_class()
    for k, name in enumerate(FIVE):
        true, predicted = [], []
        for _, prediction, truth in (*full, *vehicles, *cars):
            sets = (IDENTITY if truth.label_space is None else truth.label_space).class_sets
            decides = [each == (k,) or k not in each for each in sets]
            seen = truth.valid & np.array([*decides, *[False] * (256 - len(sets))])[truth.values]
            is_it = np.array([each == (k,) for each in sets])
            true.append(is_it[truth.values[seen]])
            predicted.append(prediction.values[seen] == k)
        assert table[name]["iou"] == pytest.approx(jaccard_score(np.concatenate(true), np.concatenate(predicted)))
        assert table[name]["pixels"] == np.concatenate(true).sum()


def test_sources_of_one_label_space_share_a_matrix_and_full_ones_give_one_figure():
    first, second = pictures("a", None, 3, 0), pictures("b", None, 4, 1)
    numbers = metric_of([*first, *second]).compute()
    assert set(numbers) == {"miou", "pixel_accuracy"}
    assert numbers["miou"] == pytest.approx(np.mean(merged_ious([*first, *second], IDENTITY)), abs=1e-12)
    partial = pictures("c", VEHICLES, 2, 2)
    both = metric_of([*first, *second, *partial]).compute()
    assert both["miou"] == pytest.approx((numbers["miou"] + both["c/miou"]) / 2)


def test_numbers_do_not_depend_on_order_nor_on_ranks():
    records = [*pictures("a", None, 4, 0), *pictures("b", VEHICLES, 3, 1), *pictures("c", CARS, 2, 2)]
    whole = metric_of(records)
    ranks = [metric_of(records[i::3] + records[:1]) for i in range(3)]
    united = SegmentationMetric(FIVE)
    united.merge([rank.state() for rank in ranks])
    backwards = metric_of(records[::-1])
    assert whole.compute() == united.compute() == backwards.compute()
    assert list(whole.compute_per_class()) == list(united.compute_per_class()) == list(backwards.compute_per_class())


def test_where_sets_overlap_a_prediction_that_the_label_allows_is_right_and_never_wrong():
    space = LabelSpace(("living", "vehicle"), ((1, 2), (2, 3)))
    truth = DenseMap(np.array([[0, 0, 1, 1]], np.uint8), np.ones((1, 4), bool), label_space=space)
    said = DenseMap(np.array([[2, 3, 2, 0]], np.uint8), np.ones((1, 4), bool))
    rows = metric_of([("a/1", said, truth)]).compute_per_class()
    assert rows["a: living"]["iou"] == 1 / 2  # one right, one said to be a vehicle
    assert rows["a: vehicle"]["iou"] == 1 / 3  # one right, one missed, one that was living
    assert metric_of([("a/1", said, truth)]).compute()["pixel_accuracy"] == 0.5
    assert metric_of([]).score_image(said, truth) == pytest.approx((1 / 2 + 1 / 3) / 2)
