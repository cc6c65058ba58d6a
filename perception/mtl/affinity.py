"""Which tasks help each other: look-ahead on the shared parameters, and the best grouping for a number of networks.

Task affinity groupings (TAG, Fifty et al. 2021): take a step along one task's gradient, on the parameters that tasks
share, and see what it does to the losses of the others on the same batch; then put the tasks back as they were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from perception.mtl.delta_m import Interval, t_interval

Partition = tuple[tuple[str, ...], ...]

MOST_TASKS = 12
"""More would take minutes to group: the search looks at every subset of every subset."""
_BLOCKS = 10
_TINY = 1e-12


def look_ahead(
    network: nn.Module,
    losses_of: Callable[[], Mapping[str, Tensor]],
    present: Collection[str],
    *,
    step: float,
    weights: Mapping[str, float],
    seed: int,
) -> dict[str, dict[str, float]]:
    """Task i -> task j -> the part of j's loss that a step of task i alone takes away; negative where it adds to it.

    Each tensor of shared parameters moves by ``step * g_i / sqrt(sum_k mean(g_k^2))``: the length that an optimiser
    such as Adam gives it, shared out among the tasks as their weighted gradients are. Parameters that one task alone
    uses stay. What the step takes away is the step times j's gradient in the middle of it, which is right to second
    order. The difference of two losses would do where a loss is what its gradient belongs to; detection's is not: its
    targets follow the prediction, and it may rise along its own gradient.

    Parameters, buffers, gradients and the state of torch's randomness are left as they were found.

    losses_of: the losses of one batch, always the same one. present: the tasks that it labels.
    weights:   task -> factor on its loss; 1 where none is given
    seed:      of dropout and the like, the same in every pass
    """
    with _untouched(network):
        before = _seeded(losses_of, seed)
        tasks = [name for name in before if name in present]
        parameters = [p for p in network.parameters() if p.requires_grad]
        gradients = [_gradient(before[name] * weights.get(name, 1.0), parameters) for name in tasks]
        base = {name: float(before[name].detach()) for name in tasks}
        found = {}
        for name, move in zip(tasks, _moves(parameters, gradients, step), strict=True):
            with _moved(move, 0.5):
                after = _seeded(losses_of, seed)
                found[name] = {
                    other: _taken(after[other], move) / base[other] if base[other] else math.nan for other in tasks
                }
        return found


def _gradient(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def _taken(loss: Tensor, move: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The move times the gradient of the loss."""
    gradient = _gradient(loss, [parameter for parameter, _ in move])
    parts = [(change * g).sum() for (_, change), g in zip(move, gradient, strict=True) if g is not None]
    return float(torch.stack(parts).sum()) if parts else 0.0


def _seeded(losses_of: Callable[[], Mapping[str, Tensor]], seed: int) -> Mapping[str, Tensor]:
    torch.manual_seed(seed)
    return losses_of()


def _moves(
    parameters: Sequence[Tensor], gradients: Sequence[Sequence[Tensor | None]], step: float
) -> list[list[tuple[Tensor, Tensor]]]:
    """For each task, the shared parameters with what is to be subtracted from them."""
    moves: list[list[tuple[Tensor, Tensor]]] = [[] for _ in gradients]
    for parameter, *own in zip(parameters, *gradients, strict=True):
        users = [g for g in own if g is not None]
        if len(users) < 2:
            continue
        length = torch.stack([g.square().mean() for g in users]).sum().sqrt().clamp(min=_TINY)
        for move, gradient in zip(moves, own, strict=True):
            if gradient is not None:
                move.append((parameter, gradient * (step / length)))
    return moves


@contextmanager
def _moved(move: Sequence[tuple[Tensor, Tensor]], part: float) -> Iterator[None]:
    """With a part of the move subtracted; the bits come back from a copy, not from adding it again."""
    kept = [parameter.detach().clone() for parameter, _ in move]
    try:
        with torch.no_grad():
            for parameter, change in move:
                parameter.sub_(change, alpha=part)
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), before in zip(move, kept, strict=True):
                parameter.copy_(before)


@contextmanager
def _untouched(network: nn.Module) -> Iterator[None]:
    buffers = [buffer.clone() for buffer in network.buffers()]
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        with torch.no_grad():
            for buffer, before in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(before)


@dataclass(frozen=True, slots=True)
class Affinity:
    """values [N, T, T]: of N looks, the affinity of the row's task onto the column's; NaN where not seen together."""

    tasks: tuple[str, ...]
    values: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """[T, T]: over the looks that saw both tasks."""
        return _known_mean(self.values)

    @property
    def error(self) -> NDArray[np.float64]:
        """[T, T]: the mean's standard error. Looks that follow each other resemble each other, so it is taken from the
        means of ten stretches of the training."""
        blocks = self.blocks()
        known = np.isfinite(blocks).sum(0)
        spread = np.where(np.isfinite(blocks), blocks - _known_mean(blocks), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(known > 1, np.sqrt((spread**2).sum(0) / (known - 1) / known), np.nan)

    def blocks(self) -> NDArray[np.float64]:
        """[B, T, T]: the means over up to ten stretches of the training."""
        parts = np.array_split(self.values, min(_BLOCKS, len(self.values)))
        return np.stack([_known_mean(part) for part in parts])


def _known_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known.any(0), np.where(known, values, 0.0).sum(0) / known.sum(0), np.nan)


def group_affinity(matrix: NDArray[np.float64], group: Sequence[int]) -> dict[int, float]:
    """Task -> the mean affinity of the others of its group onto it (Fifty et al. 2021, section 3.3); 0 where alone.

    A pair that no look saw together counts as 0: nothing is known for or against it.
    """
    known = np.nan_to_num(matrix)
    return {j: float(np.mean([known[i, j] for i in group if i != j])) if len(group) > 1 else 0.0 for j in group}


def best_groupings(
    matrix: NDArray[np.float64], networks: int, count: int = 2
) -> list[tuple[float, tuple[tuple[int, ...], ...]]]:
    """The ``count`` best of all partitions into at most ``networks`` groups, as (sum of the tasks' affinities, groups).

    Exact: the sum is one over groups, so the best partition of the rest can be looked up.
    """
    tasks = len(matrix)
    values: dict[int, float] = {}

    def value(group: int) -> float:
        if group not in values:
            values[group] = math.fsum(group_affinity(matrix, _members(group)).values())
        return values[group]

    @cache
    def best(rest: int, left: int) -> tuple[tuple[float, tuple[int, ...]], ...]:
        if not rest:
            return ((0.0, ()),)
        if not left:
            return ()
        first = rest & -rest
        others, found = rest ^ first, []
        joined = others
        while True:
            group = first | joined
            found += [(value(group) + score, (group, *groups)) for score, groups in best(rest ^ group, left - 1)]
            if not joined:
                break
            joined = (joined - 1) & others
        found.sort(key=lambda item: (-item[0], len(item[1]), item[1]))
        return tuple(found[:count])

    return [
        (score, tuple(tuple(_members(group)) for group in groups)) for score, groups in best((1 << tasks) - 1, networks)
    ]


def _members(group: int) -> list[int]:
    return [i for i in range(group.bit_length()) if group >> i & 1]


def score(matrix: NDArray[np.float64], groups: Sequence[Sequence[int]]) -> float:
    """The sum of the tasks' affinities in a grouping."""
    return math.fsum(value for group in groups for value in group_affinity(matrix, group).values())


def margin(affinity: Affinity, one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> Interval | None:
    """Student's 95 % interval of how much better one grouping is than another, over stretches of the training.

    None with fewer than two stretches.
    """
    differences = [score(block, one) - score(block, other) for block in affinity.blocks()]
    return t_interval(differences) if len(differences) > 1 else None
