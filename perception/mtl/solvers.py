"""Weights of a few tasks from the inner products of their gradients: small problems, solved to the last digits.

The lengths of the gradients may differ by 1e5 and more,
so every problem is posed for the unit gradients (`factor_gramian`)
and scaled back: a task's weight times the length of its gradient is a number of ordinary size. What is smaller than the
noise of float32 counts as zero: collinear gradients are collinear.

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
"""What counts as zero among cosines of gradients, for their Gramian may be of float32: an eigenvalue of their matrix,
or the squared length of a mean of unit gradients. Gradients closer than about 1e-3 radians are one direction."""


def factor_gramian(gramian: Tensor) -> tuple[Array, Array]:
    """Gradients that have this Gramian: unit vectors [T, rank] and lengths [T].

    The cosines are taken to the nearest positive semi-definite matrix without eigenvalues at the level of noise.
    """
    products = gramian.detach().double().cpu().numpy()
    lengths = np.sqrt(products.diagonal())
    cosines = np.clip(products / lengths[:, None] / lengths, -1, 1)
    values, vectors = np.linalg.eigh((cosines + cosines.T) / 2)
    kept = values > NOISE
    rows = vectors[:, kept] * np.sqrt(values[kept])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), lengths


def is_pareto_stationary(rows: Array) -> bool:
    """Whether a convex combination of the unit vectors ``rows`` is zero: no update lowers all losses (Pareto
    stationary)."""
    weights = _solve_nnls(np.vstack([rows.T, np.ones(len(rows))]), _last_unit_vector(rows))
    shortest = rows.T @ weights / weights.sum()
    return float(shortest @ shortest) <= NOISE


def project_onto_dual_cone(preferences: Tensor, gramian: Tensor) -> Tensor:
    """For each row u >= 0 of ``preferences`` [..., T] the weights v >= u with the least v' G v (Quinton and Rey 2024,
    prop. 1): the gradients' sum by v is their sum by u, projected to where it raises no loss. Exact: nothing is
    regularised."""
    rows, lengths = factor_gramian(gramian)
    found = [_project_weights(u * lengths, rows) / lengths for u in preferences.double().reshape(-1, len(rows)).numpy()]
    return torch.from_numpy(np.stack(found)).reshape(preferences.shape)


def _project_weights(weights: Array, rows: Array) -> Array:
    """As `project_onto_dual_cone`, for unit vectors: a least-squares problem in what is added."""
    size = float(np.abs(weights).max()) or 1.0
    return weights + size * _solve_nnls(rows.T, -rows.T @ (weights / size))


def solve_mgda(gramian: Tensor) -> Tensor:
    """MGDA: the convex weights whose combination of the gradients is shortest.

    Least squares in x >= 0: |sum of x g|^2 + (sum of x - 1)^2 is least at a multiple of these weights.
    """
    rows, lengths = factor_gramian(gramian)
    weights = _solve_nnls(np.vstack([rows.T, lengths.min() / lengths]), _last_unit_vector(rows)) / lengths
    return torch.from_numpy(weights / weights.sum())


def solve_cagrad(gramian: Tensor, c: float) -> Tensor:
    """CAGrad: of all updates within ``c`` |mean| of the mean gradient, the one that helps the worst-off task most; of
    several such (no update helps all tasks) the one nearest to the mean.

    To help every task by t takes a move of the mean by some least distance, which grows with t
    (`_solve_least_distance`); t is
    the root at which the distance is the radius.
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
    ):  # else no update helps all, and one within the radius hurts none
        least, most = float((helped / slopes).min()), (1 + c) / c
        root: Any = brentq(excess, least, most, xtol=1e-14) if excess(most) > 0 > excess(least) else least
        t = float(root)
        back = 1e-14 * (1 + abs(t))
        while excess(t) > 0 and t > least:
            t, back = max(least, t - back), 2 * back
    return torch.from_numpy(even + radius * _solve_least_distance(rows, slopes * t - helped)[0] / lengths)


def _solve_least_distance(rows: Array, bounds: Array) -> tuple[Array, float]:
    """The weights >= 0 of the shortest combination u of unit vectors whose products with them are at least ``bounds``,
    and |u|^2 / (1 + |u|^2), which is 1 where there is none (least distance programming, Lawson and Hanson 1974, ch.
    23)."""
    found = _solve_nnls(np.vstack([rows.T, bounds]), _last_unit_vector(rows))
    rest = 1.0 - float(bounds @ found)
    return found / max(rest, NOISE), 1.0 - rest


def solve_fairgrad(gramian: Tensor, alpha: float) -> Tensor:
    """FairGrad: weights x > 0 with G x = x^(-1 / alpha); even weights for ``alpha`` 0.

    They are where the convex x' G x / 2 - sum of U(x), U' = x^(-1 / alpha), is least; Newton's method, to about 1e-8 up
    to alpha 5 (beyond, weights span so many orders that digits are lost). Where the gradients are balanced there are
    none; then with `NOISE` times the squared lengths added to G's diagonal.
    """
    rows, lengths = factor_gramian(gramian)
    if not alpha:
        return torch.full((len(rows),), 1 / len(rows), dtype=torch.float64)
    power = 1 / alpha
    cosines = rows @ rows.T + (NOISE * np.eye(len(rows)) if is_pareto_stationary(rows) else 0.0)
    # Of one task alone, weight times length is its unit: every number below is one of ordinary size.
    units = np.exp(np.log(lengths) * (power - 1) / (power + 1))

    def slopes(x: Array) -> Array:
        return cosines @ (units * x) - units * x**-power

    def curvature(x: Array) -> Array:
        return cosines + np.diag(power * x ** (-power - 1))

    return torch.from_numpy(units * _minimize_by_newton(slopes, curvature, units) / lengths)


def _minimize_by_newton(gradient: Callable[[Array], Array], hessian: Callable[[Array], Array], scales: Array) -> Array:
    """The x > 0 at which a strictly convex function of ``scales`` x is least. Steps stay within the positive numbers
    and
    are halved until they do not overshoot."""
    x = np.ones(len(scales))
    with np.errstate(over="ignore"):  # a step far too long has a slope of infinity
        for _ in range(_MAX_STEPS):
            here = gradient(x)
            bent = hessian(x)
            step = -np.linalg.solve(bent + 1e-13 * np.diag(np.diag(bent)), here) / scales  # equal gradients bend alike
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
    """Aligned-MTL: even weights, after all singular values of the gradients were set to one of them."""
    rows, lengths = factor_gramian(gramian)
    left, values, _ = np.linalg.svd(lengths[:, None] * rows, full_matrices=False)
    common = {"min": values[-1], "median": values[len(values) // 2], "rmse": np.sqrt((values**2).mean())}[scale]
    return torch.from_numpy(common * (left / values) @ left.mean(0))


def solve_imtl_g(gramian: Tensor) -> Tensor:
    """IMTL-G: weights whose update has the same positive projection onto every gradient; where there are no such, those
    nearest to it by least squares.

    Their sum is 1, but where negative weights take up a third of the positive ones or more, the sum of their absolute
    values is 2: the plain sum may be zero or negative there.
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
    """PCGrad: each gradient loses, one after the other in random order, its components against the others; the sum."""
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
    """GradVac: each gradient is turned, in random order, towards those with which its cosine is below the target; the
    sum, and the targets [T, T] after they have moved to the cosines by ``beta``."""
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
            goal = float(np.clip(goals[own, other], NOISE - 1, 1 - NOISE))  # no turn makes gradients parallel
            if cosine < goal:
                sine = np.sqrt(max(0.0, 1 - cosine**2))
                weights[other] += length * (goal * sine / np.sqrt(1 - goal**2) - cosine)
            goals[own, other] += beta * (cosine - goals[own, other])
        total += lengths[own] * weights
    return torch.from_numpy(total / lengths), torch.from_numpy(goals)


def _last_unit_vector(rows: Array) -> Array:
    """Zeros but for a last 1, one more than ``rows`` have columns."""
    return np.append(np.zeros(rows.shape[1]), 1.0)


def _solve_nnls(matrix: Array, target: Array) -> Array:
    """The least x >= 0 with the least |matrix x - target|."""
    from scipy.optimize import nnls

    count = matrix.shape[1]
    matrix, target = np.vstack([matrix, _RIDGE * np.eye(count)]), np.append(target, np.zeros(count))
    return nnls(matrix, target, maxiter=100 * count)[0]


_RIDGE = 1e-6
"""Its square times |x|^2 is added where the least is not unique: digits that float64 keeps, and x of ordinary size."""
