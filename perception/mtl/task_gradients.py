"""The gradient of each task where they meet: their inner products, and what these say of conflict."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

Gradients = list[tuple[Tensor | None, ...]]
"""Task by task, the gradient at each place; None where the loss does not depend on it."""


def task_gradients(losses: Iterable[Tensor], places: Sequence[Tensor]) -> Gradients:
    """The gradient of each loss at ``places`` (features or parameters). The graph is kept, no ``.grad`` is touched."""
    return [torch.autograd.grad(loss, places, retain_graph=True, allow_unused=True) for loss in losses]


def gramian(gradients: Gradients) -> Tensor:
    """Inner products of the tasks' gradients, [T, T] float64 on their device, summed in float32 or better."""
    total: Tensor | None = None
    for at_place in zip(*gradients, strict=True):
        some = next((gradient for gradient in at_place if gradient is not None), None)
        if some is not None:
            rows = torch.stack([_row(some.new_zeros(some.shape) if g is None else g) for g in at_place])
            found = (rows @ rows.T).double()
            total = found if total is None else total + found
    return torch.zeros(len(gradients), len(gradients), dtype=torch.float64) if total is None else total


def _row(gradient: Tensor) -> Tensor:
    return gradient.reshape(-1).to(torch.promote_types(gradient.dtype, torch.float32))


def weighted(gradients: Gradients, weights: Tensor) -> list[Tensor | None]:
    """At each place the sum of the tasks' gradients times their weights, in the gradients' own format."""
    sums: list[Tensor | None] = []
    for at_place in zip(*gradients, strict=True):
        terms = [
            g.to(torch.promote_types(g.dtype, torch.float32)) * w
            for g, w in zip(at_place, weights.tolist(), strict=True)
            if g is not None
        ]
        sums.append(torch.stack(terms).sum(0) if terms else None)
    return sums


def describe(gramian: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Numbers for the log: "gradient/<task>", its norm; "cosine/<task>/<task>"; "conflict/<task>/<task>" and
    "conflict/any", 1 where a cosine is negative and 0 where none is: their means are shares of steps."""
    norms = gramian.diagonal().clamp(min=0).sqrt().tolist()
    found = {f"gradient/{name}": norm for name, norm in zip(names, norms, strict=True)}
    for (i, one), (j, other) in itertools.combinations(enumerate(names), 2):
        lengths = norms[i] * norms[j]
        cosine = float(gramian[i, j]) / lengths if lengths > 0 else math.nan
        if math.isfinite(cosine):
            found[f"cosine/{one}/{other}"] = cosine
            found[f"conflict/{one}/{other}"] = float(cosine < 0)
    pairs = [value for key, value in found.items() if key.startswith("conflict/")]
    return {**found, "conflict/any": max(pairs)} if pairs else found
