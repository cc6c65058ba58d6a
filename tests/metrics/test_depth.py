"""DepthMetric against closed forms and scikit-learn."""

import math

import numpy as np
import pytest
from sklearn.metrics import mean_absolute_percentage_error, root_mean_squared_error

from perception.metrics.depth import DepthMetric
from perception.types import DenseMap

LIMITS = (0.5, 80.0)


def full(values):
    values = np.atleast_2d(np.asarray(values, np.float32))
    return DenseMap(values, np.ones(values.shape, bool))


def measured(*pairs, limits=LIMITS):
    metric = DepthMetric(limits)
    for i, (prediction, target) in enumerate(pairs):
        metric.update(str(i), prediction, target)
    return metric.compute()


@pytest.mark.parametrize("factor", [0.75, 1.1, 1.3, 1.6, 2.0])
def test_a_wrong_scale_in_closed_form(factor):
    truth = np.random.default_rng(0).uniform(1, 30, (20, 30))
    numbers = measured((full(truth * factor), full(truth)))
    assert numbers["abs_rel"] == pytest.approx(abs(factor - 1), rel=1e-5)
    assert numbers["sq_rel"] == pytest.approx((factor - 1) ** 2 * truth.mean(), rel=1e-5)
    assert numbers["rmse"] == pytest.approx(abs(factor - 1) * math.sqrt((truth**2).mean()), rel=1e-5)
    assert numbers["rmse_log"] == pytest.approx(abs(math.log(factor)), rel=1e-5)
    assert numbers["silog"] == pytest.approx(0, abs=1e-3)
    ratio = max(factor, 1 / factor)
    assert [numbers[f"delta{k}"] for k in (1, 2, 3)] == [float(ratio < 1.25**k) for k in (1, 2, 3)]
    assert numbers["abs_rel_aligned"] == pytest.approx(0, abs=1e-6)
    assert numbers["delta1_aligned"] == 1


def test_equals_scikit_learn():
    random = np.random.default_rng(1)
    truth = random.uniform(1, 60, 600)
    predicted = np.clip(truth * np.exp(random.normal(0, 0.3, 600)), *LIMITS)
    truth, predicted = truth.astype(np.float32), predicted.astype(np.float32)
    numbers = measured((full(predicted), full(truth)))
    truth, predicted = truth.astype(np.float64), np.clip(predicted.astype(np.float64), *LIMITS)
    assert numbers["abs_rel"] == pytest.approx(mean_absolute_percentage_error(truth, predicted), rel=1e-9)
    assert numbers["rmse"] == pytest.approx(root_mean_squared_error(truth, predicted), rel=1e-9)
    log_error = root_mean_squared_error(np.log(truth), np.log(predicted))
    assert numbers["rmse_log"] == pytest.approx(log_error, rel=1e-9)
    difference = np.log(predicted) - np.log(truth)  # KITTI's own form of the scale-invariant logarithmic error
    silog = 100 * math.sqrt((difference**2).mean() - difference.mean() ** 2)
    assert numbers["silog"] == pytest.approx(silog, rel=1e-6)


def test_mean_over_images_not_over_pixels():
    big, small = full(np.full((10, 10), 10.0)), full([[10.0]])
    assert measured((full(np.full((10, 10), 11.0)), big), (full([[13.0]]), small))["abs_rel"] == pytest.approx(0.2)


def test_pixels_outside_the_limits_and_invalid_pixels_are_left_out():
    target = DenseMap(np.array([[10, 100, 0.1, 10]], np.float32), np.array([[True, True, True, False]]))
    assert measured((full([[10, 1, 1, 1]]), target))["abs_rel"] == 0


def test_predictions_are_clipped_to_the_limits():
    assert measured((full([[500.0]]), full([[80.0]])))["abs_rel"] == 0
    assert measured((full([[-3.0]]), full([[0.5]])))["abs_rel"] == 0


def test_a_pixel_that_the_prediction_leaves_out_does_not_pay():
    prediction = DenseMap(np.array([[10, np.nan]], np.float32), np.array([[True, False]]))
    assert measured((prediction, full([[10, 10]])))["abs_rel"] == pytest.approx(0.95 / 2)


def test_an_image_without_valid_pixels_is_in_no_mean():
    empty = DenseMap(np.zeros((1, 2), np.float32), np.zeros((1, 2), bool))
    numbers = measured((full([[5, 5]]), empty), (full([[11.0]]), full([[10.0]])))
    assert numbers["abs_rel"] == pytest.approx(0.1)
    assert math.isnan(DepthMetric(LIMITS).score_image(full([[5, 5]]), empty))


def test_wrong_size_limits_and_depths_are_refused():
    metric = DepthMetric(LIMITS)
    with pytest.raises(ValueError, match=r"frame-7.*one size"):
        metric.update("frame-7", full([[1, 2]]), full([[1]]))
    with pytest.raises(ValueError, match=r"frame-7.*1 valid true"):
        metric.update("frame-7", full([[1, 2]]), full([[1, np.inf]]))
    with pytest.raises(ValueError, match="limits"):
        DepthMetric((0, 80))


def foretold(random, sigma, told=None):
    """A depth map whose errors are Laplace-distributed with scales ``sigma``, telling the scales ``told``."""
    truth = random.uniform(2, 30, sigma.shape)
    predicted = truth * np.exp(random.laplace(0, sigma))
    error = np.asarray(sigma if told is None else told, np.float32)
    return DenseMap(predicted.astype(np.float32), np.ones(sigma.shape, bool), error), full(truth)


def test_honest_errors_are_calibrated_and_wrong_ones_are_not():
    random = np.random.default_rng(0)
    sigma = random.uniform(0.02, 0.2, (200, 300))
    honest = measured(foretold(random, sigma))
    assert honest["miscalibration"] < 0.005
    bold, timid = (measured(foretold(random, sigma, sigma * factor)) for factor in (0.5, 2))
    # P(|x| < f b t) with t = -log(1 - level): 1 - (1 - level)^f
    levels = np.arange(0.1, 0.95, 0.1)
    for numbers, factor in ((bold, 0.5), (timid, 2)):
        expected = np.abs(1 - (1 - levels) ** factor - levels).mean()
        assert numbers["miscalibration"] == pytest.approx(expected, abs=0.005)
    assert bold["ause"] == pytest.approx(honest["ause"], abs=0.01), "the order is the same"


def test_sparsification_in_closed_form():
    """Errors of 0.1 to 0.4: left out in the right order, and in the reverse, which is the worst."""
    truth = np.full((1, 20), 10.0)
    made = np.repeat([0.1, 0.2, 0.3, 0.4], 5)[None]
    right, reverse = (
        measured((DenseMap((truth * (1 + made)).astype(np.float32), truth > 0, told), full(truth)))["ause"]
        for told in (made, 0.5 - made)
    )
    assert right == pytest.approx(0, abs=1e-6)
    worst, best = ([order[:n].mean() for n in range(20, 0, -1)] for order in (made[0][::-1], made[0]))
    assert reverse == pytest.approx(np.subtract(worst, best).mean() / 0.25, rel=1e-5)


def test_an_order_by_chance_is_worse_than_an_honest_one():
    random = np.random.default_rng(1)
    sigma = np.exp(random.uniform(-5, -1, (100, 100)))
    honest, blind = measured(foretold(random, sigma)), measured(foretold(random, sigma, random.permutation(sigma)))
    assert honest["ause"] < 0.5 * blind["ause"]


def test_errors_that_are_not_told_are_not_judged():
    assert not {"ause", "miscalibration"} & measured((full([[5.0]]), full([[5.0]]))).keys()


def test_an_expected_error_of_nothing_is_refused():
    prediction = DenseMap(np.array([[5.0]], np.float32), np.array([[True]]), np.array([[0.0]], np.float32))
    with pytest.raises(ValueError, match=r"frame-7.*expected errors"):
        DepthMetric(LIMITS).update("frame-7", prediction, full([[5.0]]))
