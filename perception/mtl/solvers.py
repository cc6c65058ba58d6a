"""Small convex problems over the Gramian of a few tasks, where torchjd's own solver needs a package that we do not ask
for: quadprog (GPL) for the projection, cvxpy and its solvers for CAGrad, ECOS (GPL) for Nash-MTL."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

REGULARISATION = 1e-4
"""On the diagonal of the Gramian scaled to trace 1, as in torchjd: a projection onto opposed gradients is defined."""


def project_onto_dual_cone(preferences: Tensor, gramian: Tensor) -> Tensor:
    """For each row u of ``preferences`` [..., T] the weights v >= u with the least v' G v (Quinton and Rey 2024, prop.
    1).

    With G = L L' and v = u + x this is a least-squares problem in x >= 0: |L' x + L' u|.
    """
    from scipy.optimize import nnls

    scaled = gramian.double() / gramian.diagonal().sum().double()
    root = torch.linalg.cholesky(scaled + REGULARISATION * torch.eye(len(scaled), dtype=scaled.dtype)).T.numpy()
    rows = preferences.double().reshape(-1, len(scaled)).numpy()
    found = np.stack([u + nnls(root, -root @ u)[0] for u in rows])
    return torch.from_numpy(found).reshape(preferences.shape).to(preferences.dtype)


def cagrad(gramian: Tensor, c: float) -> Tensor:
    """Weights of CAGrad (Liu et al. 2021): of all updates within ``c`` |mean| of the mean gradient, the one that helps
    the worst-off task most; zeros where none helps all tasks.

    To help every task by t, the mean must be moved by the gradients times x >= 0 with the least x' G x / 2 - x (t - G
    mean), a least-squares problem; the distance grows with t, so t is the root at which it is the radius.
    """
    from scipy.linalg import solve_triangular
    from scipy.optimize import brentq, nnls

    g = gramian.double().numpy() / float(gramian.diagonal().sum())
    mean = np.full(len(g), 1 / len(g))
    helped = g @ mean
    radius = c * np.sqrt(max(mean @ helped, 0.0))
    root = np.linalg.cholesky(g + _TINY * np.eye(len(g)))

    def moves(t: float) -> NDArray:
        return nnls(root.T, solve_triangular(root, t - helped, lower=True))[0]

    def excess(t: float) -> float:
        return float(np.linalg.norm(root.T @ moves(t)) - radius)

    least, most = float(helped.min()), float(mean @ helped) * (1 + c) + _TINY
    t: Any = brentq(excess, least, most, xtol=1e-14) if excess(most) > 0 else most
    x = moves(t)
    if radius < _STATIONARY * x.sum():  # some mean of the gradients is zero
        return torch.zeros(len(g), dtype=torch.float64)
    return torch.from_numpy(mean + x)


_TINY = 1e-12
_STATIONARY = 1e-4
"""Length, against the root of the sum of all squared lengths, at which torchjd takes a mean of gradients for zero."""
