"""Delta_m and its intervals against closed forms and an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from perception.mtl.compare import (
    bootstrap_interval,
    delta_m,
    estimate,
    relative_change,
    t_interval,
    t_probability,
    t_quantile,
)

numbers = st.lists(st.floats(-10, 10), min_size=2, max_size=4)


def test_positive_is_better_whatever_the_metric():
    assert relative_change(0.6, 0.5) == pytest.approx(0.2)
    assert relative_change(0.6, 0.5, -1) == pytest.approx(-0.2)
    assert relative_change(-0.4, -0.5) == pytest.approx(0.2)
    assert math.isnan(relative_change(0.1, 0.0))


def test_delta_m_is_the_mean_over_tasks_of_each_seed():
    assert delta_m({"a": [0.1, 0.2], "b": [-0.3, 0.4]}) == pytest.approx((-0.1, 0.3))


def test_a_task_without_a_score_in_one_seed_is_left_out_of_all():
    assert delta_m({"a": [0.1, 0.2], "b": [9.0, math.nan]}) == pytest.approx((0.1, 0.2))
    assert delta_m({"a": [math.nan]}) == ()
    assert math.isnan(estimate(()).mean)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 10, 29, 100])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.999])
def test_students_quantile(degrees, level):
    assert t_quantile(level, degrees) == pytest.approx(stats.t.ppf((1 + level) / 2, degrees), rel=1e-9)
    assert t_probability(t_quantile(level, degrees), degrees) == pytest.approx(level, abs=1e-12)


@given(numbers)
def test_students_interval(values):
    if np.ptp(values) > 1e-6:
        expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert t_interval(values) == pytest.approx(expected, rel=1e-6, abs=1e-9)


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
    found, turned = estimate(values), estimate([-value for value in values])
    for interval, other in ((found.bootstrap, turned.bootstrap), (found.t, turned.t)):
        assert interval is not None
        assert other is not None
        assert interval[0] - 1e-9 <= found.mean <= interval[1] + 1e-9
        assert interval == pytest.approx((-other[1], -other[0]), abs=1e-9)


def test_students_interval_covers_as_often_as_it_says_and_the_bootstrap_does_not():
    """With three seeds: the reason why both are reported."""
    samples = np.random.default_rng(0).normal(size=(1500, 3))
    inside = np.array([[low <= 0 <= high for low, high in (t_interval(s), bootstrap_interval(s))] for s in samples])
    student, bootstrap = inside.mean(0)
    assert student == pytest.approx(0.95, abs=0.02)
    assert bootstrap < 0.85


def test_one_seed_has_no_interval():
    assert estimate([0.1]).t is None
    assert estimate([0.1]).bootstrap is None
