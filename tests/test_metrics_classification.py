"""ClassificationMetric and its average precision against scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from perception.metrics.classification import ClassificationMetric, average_precision
from perception.types import ImageLabel

NAMES = tuple("abcdefgh")


def label(values, classes=None):
    return ImageLabel(np.asarray(values, np.float32), None if classes is None else np.asarray(classes, bool))


def test_E1_accuracy_equals_scikit_learn():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(8), 200).astype(np.float32)
    truth = random.integers(0, 8, 200)
    metric = ClassificationMetric(NAMES)
    for i in range(200):
        metric.update(str(i), label(probabilities[i]), label(np.eye(8)[truth[i]]))
    numbers = metric.compute()
    for k in (1, 5):
        expected = top_k_accuracy_score(truth, probabilities, k=k, labels=range(8))
        assert numbers[f"top{k}"] == pytest.approx(expected, abs=1e-12)
    table = metric.table()
    assert [row["count"] for row in table.values()] == np.bincount(truth, minlength=8).tolist()
    hits = np.argmax(probabilities, 1) == truth
    assert [row["accuracy"] for row in table.values()] == pytest.approx([hits[truth == k].mean() for k in range(8)])


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=1, max_size=40))
def test_E1_average_precision_equals_scikit_learn(pairs):
    truth = np.array([pair[0] for pair in pairs])
    scores = np.array([pair[1] / 10 for pair in pairs])
    if not truth.any():
        assert math.isnan(average_precision(truth, scores))
    else:
        assert average_precision(truth, scores) == pytest.approx(average_precision_score(truth, scores), abs=1e-9)


def test_E1_multi_label_equals_scikit_learn_over_the_labelled_pictures_of_each_class():
    random = np.random.default_rng(1)
    truth, known = random.random((120, 8)) < 0.3, random.random((120, 8)) < 0.7
    truth[:, 6] = False
    scores = np.round(0.4 * truth + random.random((120, 8)) * 0.6, 2).astype(np.float32)
    metric = ClassificationMetric(NAMES, multi_label=True)
    for i in range(120):
        metric.update(str(i), label(scores[i]), label(truth[i], known[i]))
    expected = [
        average_precision_score(truth[known[:, k], k], scores[known[:, k], k]) if k != 6 else math.nan for k in range(8)
    ]
    table = metric.table()
    assert [row["ap"] for row in table.values()] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert metric.compute() == {"map": pytest.approx(np.nanmean(expected), abs=1e-9)}
    assert table["g"]["count"] == 0


def test_top5_only_where_it_says_something():
    assert ClassificationMetric(NAMES[:5]).compute().keys() == {"top1"}
    assert ClassificationMetric(NAMES[:6]).compute().keys() == {"top1", "top5"}


def test_of_equal_probabilities_the_first_wins():
    metric = ClassificationMetric(["day", "night"])
    metric.update("a", label([0.5, 0.5]), label([1, 0]))
    metric.update("b", label([0.5, 0.5]), label([0, 1]))
    assert metric.compute() == {"top1": 0.5}


def test_E2_absent_class_is_said_so():
    metric = ClassificationMetric(["day", "night"])
    metric.update("a", label([0.7, 0.3]), label([1, 0]))
    assert metric.table()["day"] == {"accuracy": 1, "count": 1}
    assert math.isnan(metric.table()["night"]["accuracy"])


@pytest.mark.parametrize("values", [[0, 0], [1, 1]])
def test_one_class_means_one(values):
    with pytest.raises(ValueError, match=r"frame-7.*Expected one"):
        ClassificationMetric(["day", "night"]).update("frame-7", label([0.7, 0.3]), label(values))


def test_wrong_number_of_classes_is_refused():
    with pytest.raises(ValueError, match=r"frame-7.*\(3,\)"):
        ClassificationMetric(["day", "night"]).update("frame-7", label([0.7, 0.2, 0.1]), label([1, 0]))


def test_quality_of_one_picture():
    assert ClassificationMetric(["a", "b"]).quality(label([0.2, 0.8]), label([0, 1])) == pytest.approx(0.8)
    several = ClassificationMetric(["a", "b", "c"], multi_label=True)
    found = several.quality(label([0.9, 0.3, 0.9]), label([1, 0, 0], [True, True, False]))
    assert found == pytest.approx(0.8)
