"""Conflict: a mean cosine below zero beyond noise; how often it is reported where there is none, and missed."""

from __future__ import annotations

import numpy as np
import pytest

from perception.mtl.conflict import (
    MIN_COSINES,
    WINDOW,
    detect_conflicts,
    is_conflicting,
    mean_upper_bound,
    record_cosines,
)

PAIRS = 6


def looks(runs: int, count: int, mean: float, seed: int = 0) -> np.ndarray:
    """[runs, count, PAIRS] cosines of gradients of batches."""
    return np.random.default_rng(seed).normal(mean, 0.1, (runs, count, PAIRS))


def test_unrelated_tasks_are_in_conflict_in_almost_no_run():
    """Counting negative cosines, as was done before, reports nearly every step."""
    drawn = looks(300, 50, 0.0)
    assert np.mean((drawn < 0).any(2)) > 0.95
    alarms = 0
    for run in drawn:
        windows = (run[max(0, end - WINDOW) : end, pair] for end in range(MIN_COSINES, 51) for pair in range(PAIRS))
        alarms += any(is_conflicting(window) for window in windows)
    assert alarms / len(drawn) < 0.03


@pytest.mark.parametrize(("mean", "least", "most"), [(-0.15, 0.9, 1.0), (-0.1, 0.4, 0.7), (0.1, 0.0, 0.0)])
def test_a_lasting_conflict_is_found(mean, least, most):
    drawn = looks(200, WINDOW, mean)
    assert least <= np.mean([is_conflicting(run[:, 0]) for run in drawn]) <= most


def test_a_conflict_too_small_to_matter_is_none_however_sure():
    assert not is_conflicting([-0.01 - 1e-4 * k for k in range(WINDOW)])
    assert is_conflicting([-0.05 - 1e-4 * k for k in range(WINDOW)])


def test_too_few_looks_say_nothing():
    assert mean_upper_bound([-0.9] * (MIN_COSINES - 1)) == np.inf
    memory: dict[str, list[float]] = {}
    for k in range(MIN_COSINES - 1):
        record_cosines(memory, {"cosine/a/b": -0.5 - 0.01 * k, "task_gradient_norm/a": 1.0})
    assert detect_conflicts(memory) == {}
    record_cosines(memory, {"cosine/a/b": -0.5, "cosine/a/c": 0.1})
    assert detect_conflicts(memory) == {"conflict/a/b": 1.0, "conflict/any": 1.0}


def test_only_the_last_looks_count():
    memory: dict[str, list[float]] = {}
    for k in range(3 * WINDOW):
        record_cosines(memory, {"cosine/a/b": -0.5 if k < WINDOW else 0.3 + 0.001 * k})
    assert len(memory["cosine/a/b"]) == WINDOW
    assert detect_conflicts(memory)["conflict/any"] == 0
