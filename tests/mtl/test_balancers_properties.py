"""What every balancer of gradients keeps to, whatever the lengths and directions of the gradients, and certificates of
the problems that they solve. A new balancer in BALANCERS inherits the contract."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from balancer_cases import CONFLICT, make
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import linprog

from perception.mtl import solvers

DRAWN = {"pcgrad", "gradvac"}
"""Whose weights depend on an order that is drawn."""
RAISES_NO_LOSS: list[tuple[str, dict[str, Any]]] = [
    ("upgrad", {}),
    ("mgda", {}),
    ("nash_mtl", {}),
    ("fairgrad", {"alpha": 1.0}),
    ("fairgrad", {"alpha": 0.5}),
    ("fairgrad", {"alpha": 3.0}),
    ("cagrad", {"c": 1.0}),
]
SLACK = 2e-6
"""Of a promise, in units of the gradient's length times the sum of the weighted gradients' lengths."""


@dataclass(frozen=True)
class Problem:
    """rows: gradients [T, n]. gramian: of these, as the balancer gets it, possibly computed in float32."""

    rows: NDArray
    gramian: torch.Tensor

    @property
    def lengths(self) -> NDArray:
        return np.linalg.norm(self.rows, axis=1)

    @property
    def moving(self) -> NDArray:
        return self.rows[self.lengths > 0]

    @property
    def smallest(self) -> float:
        """The least eigenvalue of the cosines: 0 where gradients are linearly dependent."""
        units = self.moving / np.linalg.norm(self.moving, axis=1, keepdims=True)
        return float(np.linalg.eigvalsh(units @ units.T)[0])


@st.composite
def problems(draw, precise: bool = False) -> Problem:
    """Lengths that differ by up to 1e5; directions of any rank, some collinear, opposed or nearly so; zero rows."""
    tasks, size = draw(st.integers(2, 6)), draw(st.integers(1, 8))
    random = np.random.default_rng(draw(st.integers(0, 100_000)))
    rows = random.normal(size=(tasks, size))
    for row in range(1, tasks):
        kind = draw(st.sampled_from(("free", "free", "free", "collinear", "opposed", "nearly")))
        other, sign = rows[random.integers(row)], 1 if kind == "collinear" else -1
        if kind != "free":
            angle = 10 ** random.uniform(-8, -1) * random.normal(size=size) if kind == "nearly" else 0.0
            rows[row] = sign * other + angle
    rows *= 10 ** (draw(st.floats(0, 5)) * random.random(tasks))[:, None]
    if draw(st.booleans()) and not precise:
        rows[random.integers(tasks)] = 0
    if precise or draw(st.booleans()):
        return Problem(rows, torch.from_numpy(rows @ rows.T))
    single = torch.from_numpy(rows).float()
    return Problem(rows, (single @ single.T).double())


@st.composite
def independent(draw) -> Problem:
    """Linearly independent gradients in float64, whose lengths differ by up to 1e5: problems with one solution."""
    tasks = draw(st.integers(2, 6))
    random = np.random.default_rng(draw(st.integers(0, 100_000)))
    rows = random.normal(size=(tasks, draw(st.integers(tasks, 12))))
    rows *= 10 ** (draw(st.floats(0, 5)) * random.random(tasks))[:, None]
    problem = Problem(rows, torch.from_numpy(rows @ rows.T))
    assume(problem.smallest > 1e-3)
    return problem


def weights_of(name: str, gramian: torch.Tensor, order: NDArray | None = None, **options: Any) -> NDArray:
    """Weights of a fresh balancer; ``order``: the tasks' places when it sees them."""
    names = tuple(f"task{k}" for k in range(len(gramian)))
    balancer = make(name, names, **options)
    order = np.arange(len(gramian)) if order is None else order
    balancer.observe_gramian(gramian[order][:, order], dict.fromkeys(names, torch.ones(())), 3)
    found = balancer.shared_weights(names)
    assert found is not None
    weights = np.empty(len(order))
    weights[order] = found.numpy()
    return weights


def common_descent(rows: NDArray) -> float:
    """How fast the directions of all gradients fall along the best update (each of its numbers within -1 and 1), by
    linear programming; 0 where the gradients balance each other (Gordan's theorem)."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    goal = np.append(np.zeros(rows.shape[1]), -1.0)
    limits = [(-1, 1)] * rows.shape[1] + [(0, None)]
    return -float(linprog(goal, np.hstack([-units, np.ones((len(rows), 1))]), np.zeros(len(rows)), bounds=limits).fun)


@pytest.mark.parametrize("name", CONFLICT)
@settings(deadline=None, max_examples=40)
@given(problem=problems())
def test_weights_are_finite_and_the_update_is_zero_only_where_gradients_balance(name, problem):
    weights = weights_of(name, problem.gramian)
    assert np.isfinite(weights).all()
    assert (weights[problem.lengths == 0] == 1).all()
    size = (np.abs(weights) * problem.lengths).sum()
    if len(problem.moving) and np.linalg.norm(weights @ problem.rows) <= 1e-7 * size:
        assert common_descent(problem.moving) < 5e-3


@pytest.mark.parametrize("name", CONFLICT)
@settings(deadline=None, max_examples=20)
@given(problem=problems(), unit=st.sampled_from((1e-9, 1e-3, 1e6)))
def test_the_unit_of_gradients_does_not_matter(name, problem, unit):
    one, other = weights_of(name, problem.gramian), weights_of(name, problem.gramian * unit**2)
    same_update(problem, one, other)


@pytest.mark.parametrize("name", [name for name in CONFLICT if name not in DRAWN])
@settings(deadline=None, max_examples=20)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_the_order_of_tasks_does_not_matter(name, problem, seed):
    order = np.random.default_rng(seed).permutation(len(problem.rows))
    same_update(problem, weights_of(name, problem.gramian), weights_of(name, problem.gramian, order))


def same_update(problem: Problem, one: NDArray, other: NDArray) -> None:
    """To rounding, relative to the lengths of what is summed."""
    size = (np.abs(one) * problem.lengths).sum()
    assert np.linalg.norm((one - other) @ problem.rows) <= 1e-6 * size


@pytest.mark.parametrize(("name", "options"), RAISES_NO_LOSS)
@settings(deadline=None, max_examples=40)
@given(problem=problems())
def test_no_loss_is_raised(name, options, problem):
    weights = weights_of(name, problem.gramian, **options)
    size = (np.abs(weights) * problem.lengths).sum()
    assert ((problem.rows @ (weights @ problem.rows)) >= -SLACK * problem.lengths * size).all()


@pytest.mark.parametrize(("name", "options"), RAISES_NO_LOSS)
@settings(deadline=None, max_examples=40)
@given(problem=independent())
def test_no_loss_is_raised_at_all_where_gradients_are_independent(name, options, problem):
    update = weights_of(name, problem.gramian, **options) @ problem.rows
    products = problem.rows @ update
    assert (products >= -1e-9 * problem.lengths * np.linalg.norm(update)).all()
    assert products.max() > 0


@pytest.mark.parametrize("ratio", [30, 100, 1e3, 1e5])
def test_upgrad_goes_with_the_short_gradient_that_a_long_one_opposes(ratio):
    rows = np.array([[1.0, 0.2], [-ratio, 0.3 * ratio]])
    update = weights_of("upgrad", torch.from_numpy(rows @ rows.T)) @ rows
    assert (rows @ update >= -1e-9 * np.linalg.norm(rows, axis=1) * np.linalg.norm(update)).all()


@pytest.mark.parametrize("ratio", [1, 30, 1e3, 1e5])
@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), tasks=st.integers(2, 6), c=st.floats(0.05, 0.95))
def test_cagrad_never_stops_for_c_below_one(ratio, seed, tasks, c):
    rows = np.random.default_rng(seed).normal(size=(tasks, 3)) * np.logspace(0, np.log10(ratio), tasks)[:, None]
    update = weights_of("cagrad", torch.from_numpy(rows @ rows.T), c=c) @ rows
    assert np.linalg.norm(update) >= (1 - c) * np.linalg.norm(rows.mean(0)) * (1 - 1e-6)


@pytest.mark.parametrize("name", CONFLICT)
@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000), size=st.integers(100, 3000), ratio=st.floats(0, 5))
def test_collinear_gradients_of_float32_are_one_direction(name, seed, size, ratio):
    """The update is along it, with the sign of all, and of the size of one: no weight is made of noise."""
    random = np.random.default_rng(seed)
    lengths = 10 ** (ratio * random.random(3))
    single = torch.from_numpy(lengths[:, None] * random.normal(size=size)).float()
    weights = weights_of(name, (single @ single.T).double())
    along = weights @ lengths
    assert along > 0
    assert np.abs(weights * lengths).sum() < 1.001 * along


# --- certificates ----------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(problems(precise=True))
def test_the_projection_is_the_optimum_of_its_quadratic_program(problem):
    """Karush-Kuhn-Tucker, for unit gradients: v >= u, G v >= 0, and one of both equal."""
    lengths, tasks = problem.lengths, len(problem.rows)
    preferences = torch.eye(tasks, dtype=torch.float64) / tasks
    found = solvers.project_onto_dual_cone(preferences, problem.gramian)
    moved = (found - preferences).numpy() * lengths / lengths[:, None]
    slopes = found.numpy() @ problem.gramian.numpy() / lengths / lengths[:, None]
    sizes = (found.numpy() * lengths).sum(1, keepdims=True) / lengths[:, None]
    assert moved.min() >= -1e-12
    assert (slopes >= -SLACK * sizes).all()
    assert (np.abs(moved * slopes) <= SLACK * sizes**2).all()


@settings(deadline=None, max_examples=40)
@given(independent(), st.floats(0.05, 3))
def test_cagrad_is_the_best_update_in_its_ball(problem, c):
    """The worst-off task's gain is the dual's value at our weights: no update in the ball can do better."""
    rows, lengths = problem.rows, problem.lengths
    weights = solvers.solve_cagrad(problem.gramian, c).numpy()
    mean = rows.mean(0)
    radius = c * np.linalg.norm(mean)
    assert np.linalg.norm(weights @ rows - mean) == pytest.approx(radius, rel=1e-6)
    moved = weights - 1 / len(rows)
    assert moved.min() >= -1e-9 * np.abs(weights).max()
    simplex = moved / moved.sum()
    best = simplex @ rows @ mean + radius * np.linalg.norm(simplex @ rows)
    worst = (rows @ (weights @ rows)).min()
    assert worst == pytest.approx(best, abs=1e-5 * lengths.min() * np.linalg.norm(mean))


@settings(deadline=None, max_examples=40)
@given(problems(precise=True))
def test_mgda_is_the_shortest_point_of_the_convex_hull(problem):
    """No gradient's product with it is below its squared length: the hull lies beyond."""
    weights = solvers.solve_mgda(problem.gramian).numpy()
    update = weights @ problem.rows
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    slack = SLACK * problem.lengths * (weights @ problem.lengths)
    assert (problem.rows @ update >= (1 - 1e-3) * update @ update - slack).all()


@settings(deadline=None, max_examples=40)
@given(independent())
def test_nash_mtl_is_the_bargaining_solution(problem):
    weights = weights_of("nash_mtl", problem.gramian)
    products = (problem.gramian / problem.gramian.norm()).numpy()
    assert weights.min() > 0
    assert (products @ weights * weights).tolist() == pytest.approx([1.0] * len(weights), rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(independent(), st.floats(0.2, 5))
def test_fairgrad_is_alpha_fair(problem, alpha):
    """G x = x^(-1 / alpha), to the digits that the sum on the left has."""
    products = (problem.gramian / problem.gramian.diagonal().mean()).numpy()
    weights = solvers.solve_fairgrad(torch.from_numpy(products), alpha).numpy()
    assert weights.min() > 0
    lengths = np.sqrt(products.diagonal())
    gap = products @ weights - weights ** (-1 / alpha)
    assert (np.abs(gap) <= 1e-8 * lengths * (lengths @ weights)).all()


@pytest.mark.parametrize("alpha", [0.001, 0.02, 10.0, 50.0])
@settings(deadline=None, max_examples=20)
@given(problem=problems())
def test_fairgrad_is_finite_and_positive_at_any_alpha(alpha, problem):
    weights = weights_of("fairgrad", problem.gramian, alpha=alpha)
    assert np.isfinite(weights).all()
    assert weights.min() > 0


@settings(deadline=None, max_examples=40)
@given(independent())
def test_imtl_g_has_equal_positive_projections(problem):
    weights = solvers.solve_imtl_g(problem.gramian).numpy()
    projections = problem.rows @ (weights @ problem.rows) / problem.lengths
    assert projections.min() > 0
    assert projections.tolist() == pytest.approx([projections.mean()] * len(projections), rel=1e-6)
    assert weights.sum() <= 1 + 1e-9
    assert np.abs(weights).sum() <= 2 + 1e-9


@settings(deadline=None, max_examples=40)
@given(independent())
def test_aligned_mtl_makes_the_singular_values_equal(problem):
    """Of rows in the common basis, its update is the mean of the nearest orthonormal rows times the least value."""
    left, values, right = np.linalg.svd(problem.rows, full_matrices=False)
    expected = values[-1] * (left @ right).mean(0)
    update = solvers.solve_aligned_mtl(problem.gramian, "min").numpy() @ problem.rows
    assert np.linalg.norm(update - expected) <= 1e-4 * np.linalg.norm(expected)
