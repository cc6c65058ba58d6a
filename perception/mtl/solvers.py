"""Task weights from the inner products of a few gradients: small problems, solved to numerical precision.

The lengths of the gradients may differ by 1e5 and more, so every problem is posed for the unit gradients
(`factor_gramian`) and scaled back: a task's weight times the length of its gradient has a normal magnitude. Values
below the noise of float32 count as zero: nearly collinear gradients are treated as collinear.

Every Gramian here is [T, T], symmetric, of T non-zero gradients; weights are [T] float64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

NOISE = 1e-6
"""Threshold for zero among cosines of gradients, because their Gramian may be of float32. It applies to an eigenvalue
of their matrix, and to the squared length of a mean of unit gradients. Gradients closer than about 1e-3 radians are
one direction."""


def factor_gramian(gramian: Tensor) -> tuple[Array, Array]:
    """Return gradients that have this Gramian: unit vectors [T, rank] and lengths [T].

    The cosines are projected to the nearest positive semi-definite matrix without eigenvalues at the noise level.
    """
    products = gramian.detach().double().cpu().numpy()
    lengths = np.sqrt(products.diagonal())
    cosines = np.clip(products / lengths[:, None] / lengths, -1, 1)
    values, vectors = np.linalg.eigh((cosines + cosines.T) / 2)
    kept = values > NOISE
    rows = vectors[:, kept] * np.sqrt(values[kept])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), lengths


def is_pareto_stationary(rows: Array) -> bool:
    """Return whether a convex combination of the unit vectors ``rows`` is zero.

    Then no update lowers all losses (Pareto stationary).
    """
    weights = _solve_nnls(np.vstack([rows.T, np.ones(len(rows))]), _last_unit_vector(rows))
    shortest = rows.T @ weights / weights.sum()
    return float(shortest @ shortest) <= NOISE


def project_onto_dual_cone(preferences: Tensor, gramian: Tensor) -> Tensor:
    """Return, for each row u >= 0 of ``preferences`` [..., T], the weights v >= u with the least v' G v.

    (Quinton and Rey 2024, prop. 1.) The sum of the gradients by v is their sum by u, projected so that it raises no
    loss. Exact, without regularization.
    """
    rows, lengths = factor_gramian(gramian)
    found = [_project_weights(u * lengths, rows) / lengths for u in preferences.double().reshape(-1, len(rows)).numpy()]
    return torch.from_numpy(np.stack(found)).reshape(preferences.shape)


def _project_weights(weights: Array, rows: Array) -> Array:
    """Do as `project_onto_dual_cone` for unit vectors: a least-squares problem in the added weights."""
    size = float(np.abs(weights).max()) or 1.0
    return weights + size * _solve_nnls(rows.T, -rows.T @ (weights / size))


def solve_mgda(gramian: Tensor) -> Tensor:
    """MGDA: return the convex weights whose combination of the gradients is shortest.

    The minimum over x >= 0 of |sum of x g|^2 + (sum of x - 1)^2 is at a multiple of these weights.
    """
    rows, lengths = factor_gramian(gramian)
    weights = _solve_nnls(np.vstack([rows.T, lengths.min() / lengths]), _last_unit_vector(rows)) / lengths
    return torch.from_numpy(weights / weights.sum())


def solve_cagrad(gramian: Tensor, c: float) -> Tensor:
    """CAGrad: return weights of the best update for the worst task, within ``c`` |mean| of the mean gradient.

    If several are equally good (no update helps all tasks), it is the one nearest to the mean. To help every task by t,
    the mean must move by a minimum distance that grows with t (`_solve_least_distance`). t is the root where this
    distance equals the radius.
    """
    from scipy.optimize import brentq

    rows, lengths = factor_gramian(gramian)
    mean = rows.T @ lengths / len(lengths)
    radius = c * float(np.linalg.norm(mean))
    even = np.full(len(lengths), 1 / len(lengths))
    if radius <= NOISE * lengths.max() * c or not c:
        return torch.from_numpy(even)
    slopes, helped = lengths.min() / lengths, rows @ mean / radius

    def excess(t: float) -> float:
        return _solve_least_distance(rows, slopes * t - helped)[1] - 0.5

    t = 0.0
    if (
        not is_pareto_stationary(rows) or excess(t) > 0
    ):  # else no update helps all tasks, and one within the radius harms none
        least, most = float((helped / slopes).min()), (1 + c) / c
        root: Any = brentq(excess, least, most, xtol=1e-14) if excess(most) > 0 > excess(least) else least
        t = float(root)
        back = 1e-14 * (1 + abs(t))
        while excess(t) > 0 and t > least:
            t, back = max(least, t - back), 2 * back
    return torch.from_numpy(even + radius * _solve_least_distance(rows, slopes * t - helped)[0] / lengths)


def _solve_least_distance(rows: Array, bounds: Array) -> tuple[Array, float]:
    """Return the weights >= 0 of a shortest combination u of unit vectors, and |u|^2 / (1 + |u|^2).

    The products of u with the vectors are at least ``bounds``. The second value is 1 if there is no such u (least
    distance programming, Lawson and Hanson 1974, ch. 23).
    """
    found = _solve_nnls(np.vstack([rows.T, bounds]), _last_unit_vector(rows))
    rest = 1.0 - float(bounds @ found)
    return found / max(rest, NOISE), 1.0 - rest


def solve_fairgrad(gramian: Tensor, alpha: float) -> Tensor:
    """FairGrad: return weights x > 0 with G x = x^(-1 / alpha); even weights for ``alpha`` 0.

    They minimize the convex function x' G x / 2 - sum of U(x), U' = x^(-1 / alpha). Newton's method is accurate to
    about 1e-8 up to alpha 5 (beyond, weights span so many orders of magnitude that digits are lost). Balanced gradients
    have no solution; then `NOISE` times the squared lengths is added to G's diagonal.
    """
    rows, lengths = factor_gramian(gramian)
    if not alpha:
        return torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    power = 1 / alpha
    cosines = rows @ rows.T + (NOISE * np.eye(len(rows)) if is_pareto_stationary(rows) else 0.0)
    # For a single task, weight times length equals its unit, so all numbers below have a normal magnitude.
    units = np.exp(np.log(lengths) * (power - 1) / (power + 1))

    def slopes(x: Array) -> Array:
        return cosines @ (units * x) - units * x**-power

    def curvature(x: Array) -> Array:
        return cosines + np.diag(power * x ** (-power - 1))

    return torch.from_numpy(units * _minimize_by_newton(slopes, curvature, units) / lengths)


def _minimize_by_newton(gradient: Callable[[Array], Array], hessian: Callable[[Array], Array], scales: Array) -> Array:
    """Return the x > 0 that minimizes a strictly convex function of ``scales`` x.

    Steps stay within the positive numbers and are halved until they do not overshoot.
    """
    x = np.ones(len(scales))
    with np.errstate(over="ignore"):  # a step that is too long has an infinite slope
        for _ in range(_MAX_STEPS):
            here = gradient(x)
            bent = hessian(x)
            step = (
                -np.linalg.solve(bent + 1e-13 * np.diag(np.diag(bent)), here) / scales
            )  # equal gradients have equal curvature
            falls = -float(here @ (scales * step))
            size = min(1.0, 0.9 / max(float((-step / x).max()), 1e-300))
            while size > 1e-12 and float(gradient(x + size * step) @ (scales * step)) > 0.1 * falls:
                size /= 2
            x = x + size * step
            if np.abs(step / x).max() < 1e-9:
                break
    return x


_MAX_STEPS = 200


def solve_aligned_mtl(gramian: Tensor, scale: Literal["min", "median", "rmse"]) -> Tensor:
    """Aligned-MTL: return even weights, after setting all singular values of the gradients to one of them."""
    rows, lengths = factor_gramian(gramian)
    left, values, _ = np.linalg.svd(lengths[:, None] * rows, full_matrices=False)
    common = {"min": values[-1], "median": values[len(values) // 2], "rmse": np.sqrt((values**2).mean())}[scale]
    return torch.from_numpy(common * (left / values) @ left.mean(0))


def solve_imtl_g(gramian: Tensor) -> Tensor:
    """IMTL-G: return weights whose update has the same positive projection onto every gradient.

    If there are none, the nearest by least squares are returned. Their sum is 1. If negative weights amount to a third
    of the positive ones or more, the sum of their absolute values is 2 instead: the plain sum may be zero or negative
    there.
    """
    rows, lengths = factor_gramian(gramian)
    together = rows.sum(0)
    weights = np.ones(len(rows))
    if together @ together > NOISE * len(rows) ** 2:
        left, values, _ = np.linalg.svd(rows, full_matrices=False)
        weights = (left / values**2) @ left.sum(0)
    weights = weights / lengths
    return torch.from_numpy(weights / max(weights.sum(), np.abs(weights).sum() / 2))


def solve_pcgrad(gramian: Tensor, generator: torch.Generator) -> Tensor:
    """PCGrad: return weights of the sum of the gradients, each without its components against the others.

    The components are removed one after the other in random order.
    """
    rows, lengths = factor_gramian(gramian)
    total = np.zeros(len(rows))
    for own in range(len(rows)):
        weights = np.zeros(len(rows))
        weights[own] = 1.0
        for other in torch.randperm(len(rows), generator=generator).tolist():
            if other != own:
                weights[other] += max(0.0, -float(rows[other] @ (rows.T @ weights)))
        total += lengths[own] * weights
    return torch.from_numpy(total / lengths)


def solve_gradvac(gramian: Tensor, targets: Tensor, beta: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """GradVac: return weights of the sum of the rotated gradients, and the new targets [T, T].

    Each gradient is rotated, in random order, towards those with which its cosine is below the target. The targets move
    to the cosines at the rate ``beta``.
    """
    rows, lengths = factor_gramian(gramian)
    goals, total = targets.double().numpy().copy(), np.zeros(len(rows))
    for own in range(len(rows)):
        weights = np.zeros(len(rows))
        weights[own] = 1.0
        others = [other for other in range(len(rows)) if other != own]
        for place in torch.randperm(len(others), generator=generator).tolist():
            other = others[place]
            vector = rows.T @ weights
            length = float(np.linalg.norm(vector))
            cosine = float(rows[other] @ vector) / length if length > NOISE else 0.0
            goal = float(np.clip(goals[own, other], NOISE - 1, 1 - NOISE))  # no rotation makes gradients parallel
            if cosine < goal:
                sine = np.sqrt(max(0.0, 1 - cosine**2))
                weights[other] += length * (goal * sine / np.sqrt(1 - goal**2) - cosine)
            goals[own, other] += beta * (cosine - goals[own, other])
        total += lengths[own] * weights
    return torch.from_numpy(total / lengths), torch.from_numpy(goals)


def _last_unit_vector(rows: Array) -> Array:
    """Return zeros with a final 1, one element longer than the rows."""
    return np.append(np.zeros(rows.shape[1]), 1.0)


def _solve_nnls(matrix: Array, target: Array) -> Array:
    """Return the smallest x >= 0 that minimizes |matrix x - target|."""
    from scipy.optimize import nnls

    count = matrix.shape[1]
    matrix, target = np.vstack([matrix, _RIDGE * np.eye(count)]), np.append(target, np.zeros(count))
    return nnls(matrix, target, maxiter=100 * count)[0]


_RIDGE = 1e-6
"""Its square times |x|^2 is added for solutions that are not unique. float64 has enough digits, and x stays of normal
magnitude."""
