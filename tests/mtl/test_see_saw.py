"""The see-saw alarm: what it finds, and by simulation how often it is wrong and how often right."""

from __future__ import annotations

import numpy as np
import pytest

from perception.mtl.negative_transfer import MIN_EVALUATIONS, find_negative_transfer

EVALUATIONS = 12
TASKS = ("detection", "segmentation", "depth", "scene")
AT = np.arange(EVALUATIONS)
NOISE = 0.01

LEVEL = np.zeros((4, EVALUATIONS))
SATURATING = np.stack([0.2 * (1 - np.exp(-AT / rate)) for rate in (1.5, 3.0, 4.5, 6.0)])
ONE_RISES = np.stack([*LEVEL[:3], 0.02 * AT])


def falling(step: float) -> np.ndarray:
    """One task rises to a level and falls by ``step`` at each of the last six evaluations, another rises throughout."""
    fall = 0.2 * (1 - np.exp(-AT / 0.8)) - step * np.maximum(0, AT - 5)
    return np.stack([fall, 0.015 * AT, SATURATING[0], SATURATING[0]])


def alarms(course: np.ndarray, runs: int = 400, seed: int = 0) -> list[list]:
    """For each run with noise, what is said over its evaluations."""
    drawn = 0.5 + course + np.random.default_rng(seed).normal(0, NOISE, (runs, *course.shape))
    return [
        [
            found
            for count in range(1, EVALUATIONS + 1)
            for found in find_negative_transfer(dict(zip(TASKS, values[:, :count].tolist(), strict=True)))
        ]
        for values in drawn
    ]


@pytest.mark.parametrize(("course", "most"), [(LEVEL, 0.01), (SATURATING, 0.01), (ONE_RISES, 0.07)])
def test_false_alarms_are_as_rare_as_the_docstring_says(course, most):
    assert np.mean([bool(found) for found in alarms(course)]) <= most


@pytest.mark.parametrize(("step", "least"), [(1, 0.35), (2, 0.85)])
def test_a_task_that_falls_is_found_as_often_as_the_docstring_says(step, least):
    said = alarms(falling(step * NOISE))
    assert np.mean([bool(found) for found in said]) >= least
    pairs = [one.falling for found in said for one in found]
    assert pairs.count("detection") >= 0.98 * len(pairs)


def test_a_see_saw_is_signed_and_measured_from_the_best():
    scores = {"depth": [0.5, 0.5, 0.4, 0.3, 0.2, 0.1], "detection": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]}
    assert find_negative_transfer(scores) == [("depth", "detection", pytest.approx(-0.35), pytest.approx(0.4))]


def test_units_do_not_matter():
    """Ten times the score in other units: the same alarms."""
    for values in np.random.default_rng(3).normal(falling(2 * NOISE), NOISE, (50, 4, EVALUATIONS)):
        plain, scaled = (find_negative_transfer({task: (k * row).tolist() for task, row in zip(TASKS, values,
        strict=True)})
                         for k in (1, 10))  # fmt: skip
        assert [one[:2] for one in plain] == [one[:2] for one in scaled]


def test_one_task_that_falls_alone_is_no_see_saw():
    course = falling(2 * NOISE)
    course[1:] = 0
    assert np.mean([bool(found) for found in alarms(course, 100)]) <= 0.05


def test_few_evaluations_and_missing_ones_say_nothing():
    up, down = [0.1 * k for k in range(MIN_EVALUATIONS - 1)], [1 - 0.1 * k for k in range(MIN_EVALUATIONS - 1)]
    assert not find_negative_transfer({"depth": down, "detection": up})
    assert find_negative_transfer({"depth": [*down, 0.4], "detection": [*up, 0.6]})
    assert not find_negative_transfer({"depth": [float("nan")] * 20, "detection": [0.1 * k for k in range(20)]})
