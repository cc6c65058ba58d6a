"""Delta_m and its intervals against closed forms, an independent implementation and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from perception.mtl.delta_m import (
    bootstrap_interval,
    delta_m,
    detectable_change,
    estimate_change,
    log_ratio,
    relative_change,
    required_seeds,
    t_interval,
)

numbers = st.lists(st.floats(-3, 3), min_size=2, max_size=4)


def test_positive_is_better_whatever_the_metric():
    assert relative_change(log_ratio(0.6, 0.5)) == pytest.approx(0.2)
    assert relative_change(log_ratio(0.6, 0.3, -1)) == pytest.approx(-0.5)  # twice the error is half as good
    assert log_ratio(0.5, 0.6) == pytest.approx(-log_ratio(0.6, 0.5))
    for none in ((0.1, 0.0), (0.1, -0.1), (math.nan, 0.1), (0.1, math.nan)):
        assert math.isnan(log_ratio(*none))


def test_a_task_that_joint_training_loses_is_a_loss():
    """Left out of the mean, it would leave the gain of the others."""
    assert log_ratio(0.0, 0.3) == pytest.approx(math.log(1e-3)) == log_ratio(1e-9, 0.3)
    lost = {"detection": [log_ratio(0.0, 0.3), log_ratio(0.29, 0.3)], "segmentation": [log_ratio(0.61, 0.6)] * 2}
    assert estimate_change(delta_m(lost)).mean < -0.5


def test_delta_m_is_the_mean_over_tasks_of_each_seed():
    assert delta_m({"a": [0.1, 0.2], "b": [-0.3, 0.4]}) == pytest.approx((-0.1, 0.3))


def test_a_task_without_a_score_in_one_seed_is_left_out_of_all():
    assert delta_m({"a": [0.1, 0.2], "b": [9.0, math.nan]}) == pytest.approx((0.1, 0.2))
    assert delta_m({"a": [math.nan]}) == ()
    assert math.isnan(estimate_change(()).mean)


def test_an_estimate_is_the_ratio_of_geometric_means():
    joint, control = (0.3, 0.5, 0.4), (0.25, 0.55, 0.3)
    found = estimate_change([log_ratio(*pair) for pair in zip(joint, control, strict=True)])
    assert found.mean == pytest.approx(stats.gmean(joint) / stats.gmean(control) - 1)
    assert found.values == pytest.approx([0.2, 0.5 / 0.55 - 1, 1 / 3])


@pytest.mark.parametrize(("noisy", "center"), [(1, np.mean), (4, np.median)])
def test_noise_of_the_control_is_no_gain_and_the_interval_covers(noisy, center):
    """Equal networks, scores with noise of 20 % in one or all of four tasks, three seeds; ratios as they are lie 1.1
    and 4.6 % too high. With all noisy the mean lies 0.3 % too high: as much is left to transform back."""
    random = np.random.default_rng(0)
    scales = 0.2 * (np.arange(4) < noisy)
    joint, control = 0.5 * (1 + scales * random.normal(size=(2, 6000, 3, 4)))
    biased = (joint / control - 1).mean()
    assert biased > 0.01
    found = [
        estimate_change(delta_m({task: list(map(log_ratio, one[:, task], two[:, task])) for task in range(4)}))
        for one, two in zip(joint.clip(0.02), control.clip(0.02), strict=True)
    ]
    assert abs(center([its.mean for its in found])) < 0.002
    assert 0.93 < np.mean([its.t_interval[0] <= 0 <= its.t_interval[1] for its in found]) < 0.97


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_students_interval_at_every_level(level):
    """The half-width over the standard error is t: of Abramowitz and Stegun's closed forms for 1 and 2 degrees."""
    t = {1: math.tan(math.pi * level / 2), 2: level * math.sqrt(2 / (1 - level**2))}
    for values in ((0.0, 1.0), (0.0, 1.0, 5.0)):
        low, high = t_interval(values, level)
        assert (high - low) / 2 / stats.sem(values) == pytest.approx(t[len(values) - 1], rel=1e-9)


@given(numbers)
def test_students_interval(values):
    if np.ptp(values) > 1e-6:
        expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert t_interval(values) == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_so_many_seeds_tell_an_effect_with_that_power():
    """The t-test of scipy on drawn differences; G*Power says 34 pairs for an effect of half a standard deviation."""
    effect, spread = 0.02, math.log1p(0.02) / 0.5
    count = required_seeds(spread, effect)
    assert count == 34
    drawn = np.random.default_rng(0).normal(math.log1p(effect), spread, (4000, count))
    assert np.mean(stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.02)
    assert detectable_change(spread, count) == pytest.approx(effect, rel=0.02)
    assert detectable_change(spread, count - 1) > effect
    assert required_seeds(5.0, 0.001) is None
    assert required_seeds(0.0, 0.02) == 2


def test_the_bootstrap_of_two_seeds_in_closed_form():
    """Resamples of (0, 1) have the means 0, 1/2, 1/2, 1; of a constant there is only one."""
    assert bootstrap_interval((0.0, 1.0), level=0.5) == pytest.approx((0.375, 0.625))
    assert bootstrap_interval((0.3, 0.3, 0.3)) == pytest.approx((0.3, 0.3))


def test_the_bootstrap_that_draws_agrees_with_an_independent_one():
    values = np.random.default_rng(3).normal(size=12)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(5))
    assert bootstrap_interval(values.tolist()) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)
    assert bootstrap_interval(values.tolist()) == bootstrap_interval(values.tolist())


@given(numbers)
def test_intervals_hold_the_mean_and_turn_with_the_sign(values):
    """Of logarithms: what is r times as good in one direction is 1 / r times as good in the other."""
    found, turned = estimate_change(values), estimate_change([-value for value in values])
    for interval, other in (
        (found.bootstrap_interval, turned.bootstrap_interval),
        (found.t_interval, turned.t_interval),
    ):
        assert interval is not None
        assert other is not None
        slack = 1e-9 * (1 + found.mean)
        assert interval[0] - slack <= found.mean <= interval[1] + slack
        assert 1 + interval[0] == pytest.approx(1 / (1 + other[1]), rel=1e-6)


def test_students_interval_covers_as_often_as_it_says_and_the_bootstrap_does_not():
    """With three seeds: the reason why both are reported."""
    samples = np.random.default_rng(0).normal(size=(1500, 3))
    inside = np.array([[low <= 0 <= high for low, high in (t_interval(s), bootstrap_interval(s))] for s in samples])
    student, bootstrap = inside.mean(0)
    assert student == pytest.approx(0.95, abs=0.02)
    assert bootstrap < 0.85


def test_one_seed_has_no_interval():
    assert estimate_change([0.1]).t_interval is None
    assert estimate_change([0.1]).bootstrap_interval is None
