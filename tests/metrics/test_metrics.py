"""What holds for every metric: perfection, independence of order, duplicates and ranks, empty sets, NaN."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from perception.metrics.classification import ClassificationMetric
from perception.metrics.depth import DepthMetric
from perception.metrics.detection import DetectionMetric
from perception.metrics.metric import LOWER_IS_BETTER
from perception.metrics.segmentation import SegmentationMetric
from perception.types import DenseMap, ImageLabel, Instances

CLASSES = ("car", "person", "bus", "dog", "cat", "sky", "tree")


class Case(NamedTuple):
    metric: Callable
    target: Callable  # random generator -> annotation
    noisy: Callable  # random generator, target -> prediction
    exact: Callable  # target -> prediction


def some_instances(random):
    count = random.integers(0, 6)
    corner, side = random.uniform(0, 300, (count, 2)), random.uniform(5, 150, (count, 2))
    boxes = np.concatenate([corner, corner + side], 1).astype(np.float32)
    return Instances(boxes, random.integers(0, len(CLASSES), count), ignore=random.random(count) < 0.1)


def noisy_instances(random, target):
    boxes = target.boxes + random.normal(0, 6, target.boxes.shape)
    boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return Instances(boxes.astype(np.float32), target.labels, random.random(len(boxes)).astype(np.float32))


def exact_instances(target):
    return Instances(target.boxes, target.labels, np.full(len(target.boxes), 0.9, np.float32))


def some_map(random):
    return DenseMap(random.integers(0, len(CLASSES), (12, 16)).astype(np.uint8), random.random((12, 16)) < 0.9)


def noisy_map(random, target):
    other = random.integers(0, len(CLASSES) + 1, target.values.shape).astype(np.uint8)
    values = np.where(random.random(target.values.shape) < 0.5, target.values, other)
    return DenseMap(values, values < len(CLASSES))


def some_depth(random):
    return DenseMap(random.uniform(0.2, 90, (12, 16)).astype(np.float32), random.random((12, 16)) < 0.9)


def noisy_depth(random, target):
    factor = np.exp(random.normal(0.1, 0.3, target.values.shape))
    return DenseMap((target.values * factor).astype(np.float32), np.ones(target.values.shape, bool))


def all_valid(target):
    return DenseMap(target.values, np.ones(target.values.shape, bool))


def some_label(random):
    return ImageLabel(np.eye(len(CLASSES), dtype=np.float32)[random.integers(len(CLASSES))])


def some_labels(random):
    return ImageLabel((random.random(len(CLASSES)) < 0.4).astype(np.float32), random.random(len(CLASSES)) < 0.8)


def noisy_label(random, target):
    return ImageLabel(random.dirichlet(np.ones(len(CLASSES))).astype(np.float32))


def exact_label(target):
    return ImageLabel(target.values)


CASES = {
    "detection": Case(lambda: DetectionMetric(CLASSES), some_instances, noisy_instances, exact_instances),
    "segmentation": Case(lambda: SegmentationMetric(CLASSES), some_map, noisy_map, all_valid),
    "depth": Case(lambda: DepthMetric((0.5, 80.0)), some_depth, noisy_depth, all_valid),
    "classification": Case(lambda: ClassificationMetric(CLASSES), some_label, noisy_label, exact_label),
    "labels": Case(lambda: ClassificationMetric(CLASSES, multi_label=True), some_labels, noisy_label, exact_label),
}
every_metric = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def pictures(case, count=24):
    random = np.random.default_rng(7)
    for i in range(count):
        target = case.target(random)
        yield f"image {i}", case.noisy(random, target), target


def filled(case, records):
    metric = case.metric()
    for record in records:
        metric.update(*record)
    return metric


def same(first, second):
    """Equal to the last bit; NaN equals NaN."""
    return repr(first) == repr(second)


@every_metric
def test_target_as_prediction_is_perfect(case):
    metric = case.metric()
    for id, _, target in pictures(case):
        metric.update(id, case.exact(target), target)
        quality = metric.score_image(case.exact(target), target)
        assert quality == pytest.approx(1) or math.isnan(quality)
    for name, value in metric.compute().items():
        assert value == pytest.approx(0 if name in LOWER_IS_BETTER else 1), name


@every_metric
def test_noise_is_worse_than_perfect(case):
    metric = filled(case, pictures(case))
    for name, value in metric.compute().items():
        assert value > 0.01 if name in LOWER_IS_BETTER else 0 <= value < 0.99, name
    qualities = [metric.score_image(prediction, target) for _, prediction, target in pictures(case)]
    assert 0 < np.nanmean(qualities) < 0.99


@every_metric
def test_order_does_not_matter(case):
    records = list(pictures(case))
    forth, back = filled(case, records), filled(case, records[::-1])
    assert same(forth.compute(), back.compute())
    assert same(forth.compute_per_class(), back.compute_per_class())


@every_metric
def test_duplicates_count_once(case):
    records = list(pictures(case))
    assert same(filled(case, records).compute(), filled(case, records + records[:5]).compute())


@pytest.mark.fault("E3")
@every_metric
def test_uneven_ranks_equal_one_process(case):
    records = list(pictures(case))
    shards = [records[:3], records[3:15], [*records[15:], *records[:2]], []]
    united = case.metric()
    united.merge([filled(case, shard).state() for shard in shards])
    whole = filled(case, records)
    assert same(whole.compute(), united.compute())
    assert same(whole.compute_per_class(), united.compute_per_class())


@every_metric
def test_merge_replaces(case):
    records = list(pictures(case))
    metric = filled(case, records[:4])
    metric.merge([filled(case, records[4:]).state()])
    assert same(metric.compute(), filled(case, records[4:]).compute())


@every_metric
def test_state_survives_later_updates(case):
    records = list(pictures(case))
    metric = filled(case, records[:4])
    state = metric.state()
    before = metric.compute()
    for record in records[4:]:
        metric.update(*record)
    metric.merge([state])
    assert same(metric.compute(), before)


@every_metric
def test_nothing_labeled_is_nan(case, capsys):
    metric = case.metric()
    assert all(math.isnan(value) for value in metric.compute().values())
    for row in metric.compute_per_class().values():
        assert all(math.isnan(value) or value == 0 for value in row.values())
    assert capsys.readouterr() == ("", "")


@every_metric
def test_names_do_not_depend_on_the_data(case):
    assert case.metric().compute().keys() == filled(case, pictures(case)).compute().keys()
    assert case.metric().compute_per_class().keys() == filled(case, pictures(case)).compute_per_class().keys()


@every_metric
def test_protocol_is_a_sentence(case):
    assert case.metric().protocol.endswith(".")


def with_nan(prediction):
    match prediction:
        case Instances(boxes, labels, scores):
            return Instances(boxes, labels, np.full_like(scores, np.nan))
        case DenseMap(values, valid):
            return DenseMap(np.full(values.shape, np.nan, np.float32), valid)
        case ImageLabel(values):
            return ImageLabel(np.full_like(values, np.nan))


@pytest.mark.fault("E2")
@every_metric
def test_nan_is_refused_and_the_image_named(case):
    id, prediction, target = list(pictures(case))[1]
    metric = case.metric()
    with pytest.raises(ValueError, match=id):
        metric.update(id, with_nan(prediction), target)
    assert metric.state() == {}
