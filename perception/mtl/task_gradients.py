"""The gradient of each task where they meet: their inner products, and what these say of conflict."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Gradients = list[tuple[Tensor | None, ...]]
"""Task by task, the gradient at each place; None where the loss does not depend on it."""


def task_gradients(losses: Iterable[Tensor], places: Sequence[Tensor]) -> Gradients:
    """The gradient of each loss at ``places`` (features or parameters). The graph is kept, no ``.grad`` is touched."""
    return [torch.autograd.grad(loss, places, retain_graph=True, allow_unused=True) for loss in losses]


def own_leaves(losses: Sequence[Tensor], shared: Sequence[Tensor]) -> list[list[Tensor]] | None:
    """The leaves of the graph that belong to one loss alone: those above the tensors ``shared``.

    None where there is no such cut: where a leaf above is reached from several losses, or is also below.
    """
    cut = {tensor.grad_fn for tensor in shared}
    found = [_leaves([loss.grad_fn], cut) for loss in losses]
    below = _leaves([node for tensor in shared if tensor.grad_fn for node, _ in tensor.grad_fn.next_functions], set())
    count = len({id(leaf) for own in (*found, below) for leaf in own})
    return found if count == sum(map(len, (*found, below))) else None


def _leaves(nodes: Iterable[Any], stop: set[Any]) -> list[Tensor]:
    """What a graph accumulates gradients in, from some of its nodes on, without going through those of ``stop``."""
    seen, waiting, found = set(stop), list(nodes), []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
    return found


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


def describe(gramian: Tensor, names: Sequence[str], factors: Tensor) -> dict[str, float]:
    """Numbers for the log: "gradient/<task>", its norm; "cosine/<task>/<task>"; "conflict/<task>/<task>" and
    "conflict/any", 1 where a cosine is negative and 0 where none is: their means are shares of steps.

    factors: what the tasks' losses were multiplied with; norms are those of the losses themselves
    """
    norms = gramian.diagonal().clamp(min=0).sqrt().tolist()
    known = zip(names, norms, factors.abs().tolist(), strict=True)
    found = {f"gradient/{name}": norm / factor for name, norm, factor in known if factor > 0}
    for (i, one), (j, other) in itertools.combinations(enumerate(names), 2):
        lengths = norms[i] * norms[j]
        cosine = float(gramian[i, j]) / lengths if lengths > 0 else math.nan
        if math.isfinite(cosine):
            found[f"cosine/{one}/{other}"] = cosine
            found[f"conflict/{one}/{other}"] = float(cosine < 0)
    pairs = [value for key, value in found.items() if key.startswith("conflict/")]
    return {**found, "conflict/any": max(pairs)} if pairs else found
