"""ClassificationMetric and its average precision against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, log_loss, top_k_accuracy_score
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from perception.metrics.classification import NUM_BINS, ClassificationMetric, average_precision
from perception.types import ImageLabel

NAMES = tuple("abcdefgh")


def label(values, classes=None):
    return ImageLabel(np.asarray(values, np.float32), None if classes is None else np.asarray(classes, bool))


@pytest.mark.fault("E1")
def test_accuracy_equals_scikit_learn():
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
    table = metric.compute_per_class()
    assert [row["count"] for row in table.values()] == np.bincount(truth, minlength=8).tolist()
    hits = np.argmax(probabilities, 1) == truth
    assert [row["accuracy"] for row in table.values()] == pytest.approx([hits[truth == k].mean() for k in range(8)])


@pytest.mark.fault("E1")
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10)), min_size=1, max_size=40))
def test_average_precision_equals_scikit_learn(pairs):
    truth = np.array([pair[0] for pair in pairs])
    scores = np.array([pair[1] / 10 for pair in pairs])
    if not truth.any():
        assert math.isnan(average_precision(truth, scores))
    else:
        assert average_precision(truth, scores) == pytest.approx(average_precision_score(truth, scores), abs=1e-9)


@pytest.mark.fault("E1")
def test_multi_label_equals_scikit_learn_over_the_labeled_images_of_each_class():
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
    table = metric.compute_per_class()
    assert [row["ap"] for row in table.values()] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert metric.compute()["map"] == pytest.approx(np.nanmean(expected), abs=1e-9)
    assert table["g"]["count"] == 0


def test_top5_only_where_it_says_something():
    assert ClassificationMetric(NAMES[:5]).compute().keys() == {"top1", "ece"}
    assert ClassificationMetric(NAMES[:6]).compute().keys() == {"top1", "top5", "ece"}


def test_of_equal_probabilities_the_first_wins():
    metric = ClassificationMetric(["day", "night"])
    metric.update("a", label([0.5, 0.5]), label([1, 0]))
    metric.update("b", label([0.5, 0.5]), label([0, 1]))
    assert metric.compute()["top1"] == 0.5


@pytest.mark.fault("E2")
def test_absent_class_is_said_so():
    metric = ClassificationMetric(["day", "night"])
    metric.update("a", label([0.7, 0.3]), label([1, 0]))
    assert metric.compute_per_class()["day"] == {"accuracy": 1, "count": 1}
    assert math.isnan(metric.compute_per_class()["night"]["accuracy"])


@pytest.mark.parametrize("values", [[0, 0], [1, 1]])
def test_one_class_means_one(values):
    with pytest.raises(ValueError, match=r"frame-7.*Expected one"):
        ClassificationMetric(["day", "night"]).update("frame-7", label([0.7, 0.3]), label(values))


def test_wrong_number_of_classes_is_refused():
    with pytest.raises(ValueError, match=r"frame-7.*\(3,\)"):
        ClassificationMetric(["day", "night"]).update("frame-7", label([0.7, 0.2, 0.1]), label([1, 0]))


def test_quality_of_one_image():
    assert ClassificationMetric(["a", "b"]).score_image(label([0.2, 0.8]), label([0, 1])) == pytest.approx(0.8)
    several = ClassificationMetric(["a", "b", "c"], multi_label=True)
    found = several.score_image(label([0.9, 0.3, 0.9]), label([1, 0, 0], [True, True, False]))
    assert found == pytest.approx(0.8)


def drawn(sharpness, count=400, multi_label=False):
    """A metric of labels that are as probable as honest scores say, and of scores whose logits are ``sharpness`` times
    too large."""
    random = np.random.default_rng(2)
    metric = ClassificationMetric(NAMES, multi_label)
    for i in range(count):
        logits = random.normal(0, 1.5, 8)
        if multi_label:
            truth, found = random.random(8) < 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-sharpness * logits))
            metric.update(str(i), label(found), label(truth, random.random(8) < 0.7))
        else:
            honest, found = (np.exp(s * logits) / np.exp(s * logits).sum() for s in (1, sharpness))
            metric.update(str(i), label(found), label(np.eye(8)[random.choice(8, p=honest)]))
    return metric


@pytest.mark.fault("E1")
@pytest.mark.parametrize("sharpness", [0.5, 1, 3])
def test_calibration_error_equals_torchmetrics(sharpness):
    metric = drawn(sharpness)
    records = list(metric.state().values())
    scores = torch.from_numpy(np.stack([record.probabilities for record in records]))
    truth = torch.from_numpy(np.stack([record.targets for record in records]))
    expected = multiclass_calibration_error(scores, truth.long().argmax(1), 8, NUM_BINS)
    assert metric.compute()["ece"] == pytest.approx(float(expected), abs=1e-6)
    metric = drawn(sharpness, multi_label=True)
    pairs = [
        (p, t)
        for r in metric.state().values()
        for p, t in zip(r.probabilities[r.labeled], r.targets[r.labeled], strict=True)
    ]
    scores, truth = (torch.tensor(np.array(part)) for part in zip(*pairs, strict=True))
    expected = binary_calibration_error(scores, truth.long(), NUM_BINS)
    assert metric.compute()["ece"] == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("sharpness", [0.5, 1, 3])
def test_tempering_finds_how_much_too_sure_scores_are(sharpness, multi_label):
    metric = drawn(sharpness, 3000, multi_label)
    before = metric.compute()
    assert metric.fit_temperature() == pytest.approx(sharpness, rel=0.08)
    after = metric.compute()
    assert after["ece"] < 0.03
    assert after["ece"] < before["ece"] + 0.01
    kept = {name: value for name, value in before.items() if name != "ece"}
    assert {name: after[name] for name in kept} == pytest.approx(kept), "no decision changes"
    assert metric.fit_temperature() == pytest.approx(1, rel=1e-3), "tempered twice is tempered once"


def test_the_temperature_is_the_most_likely_one():
    """No other is better by scikit-learn's log loss."""
    metric = drawn(2.5, 1000)
    records = list(metric.state().values())
    logits = np.log(np.stack([record.probabilities for record in records]))
    truth = np.stack([record.targets for record in records]).argmax(1)
    best = metric.fit_temperature()

    def loss(temperature):
        powers = np.exp(logits / temperature)
        return log_loss(truth, powers / powers.sum(1, keepdims=True), labels=range(8))

    assert loss(best) < min(loss(best * 1.05), loss(best / 1.05))


def test_no_mistake_on_a_few_images_is_not_certainty():
    metric = ClassificationMetric(["day", "night"])
    for i in range(8):
        metric.update(str(i), label([0.8, 0.2]), label([1, 0]))
    metric.fit_temperature()
    assert 0.9 < next(iter(metric.state().values())).probabilities[0] < 0.99
    assert ClassificationMetric(["day", "night"]).fit_temperature() == 1
