"""Compare the tasks' gradients: inner products, norms and cosines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

TaskGradients = list[tuple[Tensor | None, ...]]
"""For each task, the gradient at each tensor; None if the loss does not depend on it."""


def compute_gramian(gradients: TaskGradients) -> Tensor:
    """Return inner products of the tasks' gradients, [T, T] float64 on their device, summed in float64."""
    total: Tensor | None = None
    for at_place in zip(*gradients, strict=True):
        some = next((gradient for gradient in at_place if gradient is not None), None)
        if some is not None:
            rows = torch.stack(
                [(some.new_zeros(some.shape) if g is None else g).reshape(-1).double() for g in at_place]
            )
            found = rows @ rows.T
            total = found if total is None else total + found
    return torch.zeros(len(gradients), len(gradients), dtype=torch.float64) if total is None else total


def describe_gradients(gramian: Tensor, names: Sequence[str], factors: Tensor) -> dict[str, float]:
    """Return values for the log: "task_gradient_norm/<task>" and "cosine/<task>/<task>".

    Args:
        gramian: inner products of the gradients [T, T].
        names: names of the tasks.
        factors: factors [T] on the tasks' losses; the reported norms are those of the losses without them.
    """
    norms = gramian.diagonal().clamp(min=0).sqrt().tolist()
    known = zip(names, norms, factors.abs().tolist(), strict=True)
    found = {f"task_gradient_norm/{name}": norm / factor for name, norm, factor in known if factor > 0}
    for (i, one), (j, other) in itertools.combinations(enumerate(names), 2):
        lengths = norms[i] * norms[j]
        cosine = float(gramian[i, j]) / lengths if lengths > 0 else math.nan
        if math.isfinite(cosine):
            found[f"cosine/{one}/{other}"] = min(1.0, max(-1.0, cosine))
    return found
