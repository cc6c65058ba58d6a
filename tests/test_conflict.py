"""Conflict: a mean cosine below zero beyond noise; how often it is reported where there is none, and missed."""

from __future__ import annotations

import numpy as np
import pytest

from perception.mtl.conflict import LEAST, WINDOW, bound, describe_conflicts, in_conflict, remember

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
        windows = (run[max(0, end - WINDOW) : end, pair] for end in range(LEAST, 51) for pair in range(PAIRS))
        alarms += any(in_conflict(window) for window in windows)
    assert alarms / len(drawn) < 0.03


@pytest.mark.parametrize(("mean", "least", "most"), [(-0.15, 0.9, 1.0), (-0.1, 0.4, 0.7), (0.1, 0.0, 0.0)])
def test_a_lasting_conflict_is_found(mean, least, most):
    drawn = looks(200, WINDOW, mean)
    assert least <= np.mean([in_conflict(run[:, 0]) for run in drawn]) <= most


def test_a_conflict_too_small_to_matter_is_none_however_sure():
    assert not in_conflict([-0.01 - 1e-4 * k for k in range(WINDOW)])
    assert in_conflict([-0.05 - 1e-4 * k for k in range(WINDOW)])


def test_too_few_looks_say_nothing():
    assert bound([-0.9] * (LEAST - 1)) == np.inf
    memory: dict[str, list[float]] = {}
    for k in range(LEAST - 1):
        remember(memory, {"cosine/a/b": -0.5 - 0.01 * k, "gradient/a": 1.0})
    assert describe_conflicts(memory) == {}
    remember(memory, {"cosine/a/b": -0.5, "cosine/a/c": 0.1})
    assert describe_conflicts(memory) == {"conflict/a/b": 1.0, "conflict/any": 1.0}


def test_only_the_last_looks_count():
    memory: dict[str, list[float]] = {}
    for k in range(3 * WINDOW):
        remember(memory, {"cosine/a/b": -0.5 if k < WINDOW else 0.3 + 0.001 * k})
    assert len(memory["cosine/a/b"]) == WINDOW
    assert describe_conflicts(memory)["conflict/any"] == 0
