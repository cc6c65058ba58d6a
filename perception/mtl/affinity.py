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

MAX_TASKS = 12
"""More would take minutes to group: the search looks at every subset of every subset."""
_NUM_BLOCKS = 10
_EPSILON = 1e-12


def measure_affinity(
    network: nn.Module,
    loss_function: Callable[[], Mapping[str, Tensor]],
    present: Collection[str],
    *,
    step_size: float,
    weights: Mapping[str, float],
    seed: int,
) -> dict[str, dict[str, float]]:
    """Task i -> task j -> the part of j's loss that a step of task i alone takes away; negative where it adds to it.

    Each tensor of shared parameters moves by ``step * g_i / sqrt(sum_k mean(g_k^2))``: the length that an optimizer
    such as Adam gives it, shared out among the tasks as their weighted gradients are. Parameters that one task alone
    uses stay. What the step takes away is the step times j's gradient in the middle of it, which is right to second
    order. The difference of two losses would do where a loss is what its gradient belongs to; detection's is not: its
    targets follow the prediction, and it may rise along its own gradient.

    Parameters, buffers, gradients and the state of torch's randomness are left as they were found.

    loss_function: the losses of one batch, always the same one. present: the tasks that it labels.
    weights:   task -> factor on its loss; 1 where none is given
    seed:      of dropout and the like, the same in every pass
    """
    with _preserve_state(network):
        before = _compute_seeded_losses(loss_function, seed)
        tasks = [name for name in before if name in present]
        parameters = [p for p in network.parameters() if p.requires_grad]
        gradients = [_compute_gradients(before[name] * weights.get(name, 1.0), parameters) for name in tasks]
        base = {name: float(before[name].detach()) for name in tasks}
        found = {}
        for name, move in zip(tasks, _compute_task_updates(parameters, gradients, step_size), strict=True):
            with _apply_update(move, 0.5):
                after = _compute_seeded_losses(loss_function, seed)
                found[name] = {
                    other: _loss_decrease(after[other], move) / base[other] if base[other] else math.nan
                    for other in tasks
                }
        return found


def _compute_gradients(loss: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)


def _loss_decrease(loss: Tensor, update: Sequence[tuple[Tensor, Tensor]]) -> float:
    """The move times the gradient of the loss."""
    gradient = _compute_gradients(loss, [parameter for parameter, _ in update])
    parts = [(change * g).sum() for (_, change), g in zip(update, gradient, strict=True) if g is not None]
    return float(torch.stack(parts).sum()) if parts else 0.0


def _compute_seeded_losses(loss_function: Callable[[], Mapping[str, Tensor]], seed: int) -> Mapping[str, Tensor]:
    torch.manual_seed(seed)
    return loss_function()


def _compute_task_updates(
    parameters: Sequence[Tensor], gradients: Sequence[Sequence[Tensor | None]], step_size: float
) -> list[list[tuple[Tensor, Tensor]]]:
    """For each task, the shared parameters with what is to be subtracted from them."""
    moves: list[list[tuple[Tensor, Tensor]]] = [[] for _ in gradients]
    for parameter, *own in zip(parameters, *gradients, strict=True):
        users = [g for g in own if g is not None]
        if len(users) < 2:
            continue
        length = torch.stack([g.square().mean() for g in users]).sum().sqrt().clamp(min=_EPSILON)
        for move, gradient in zip(moves, own, strict=True):
            if gradient is not None:
                move.append((parameter, gradient * (step_size / length)))
    return moves


@contextmanager
def _apply_update(update: Sequence[tuple[Tensor, Tensor]], fraction: float) -> Iterator[None]:
    """With a part of the move subtracted; the bits come back from a copy, not from adding it again."""
    kept = [parameter.detach().clone() for parameter, _ in update]
    try:
        with torch.no_grad():
            for parameter, change in update:
                parameter.sub_(change, alpha=fraction)
        yield
    finally:
        with torch.no_grad():
            for (parameter, _), before in zip(update, kept, strict=True):
                parameter.copy_(before)


@contextmanager
def _preserve_state(network: nn.Module) -> Iterator[None]:
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
        return _mean_of_known(self.values)

    @property
    def standard_error(self) -> NDArray[np.float64]:
        """[T, T]: the mean's standard error. Looks that follow each other resemble each other, so it is taken from the
        means of ten stretches of the training."""
        block_means = self.blocks()
        known = np.isfinite(block_means).sum(0)
        spread = np.where(np.isfinite(block_means), block_means - _mean_of_known(block_means), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(known > 1, np.sqrt((spread**2).sum(0) / (known - 1) / known), np.nan)

    def blocks(self) -> NDArray[np.float64]:
        """[B, T, T]: the means over up to ten stretches of the training."""
        parts = np.array_split(self.values, min(_NUM_BLOCKS, len(self.values)))
        return np.stack([_mean_of_known(part) for part in parts])


def _mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known.any(0), np.where(known, values, 0.0).sum(0) / known.sum(0), np.nan)


def group_affinity(matrix: NDArray[np.float64], group: Sequence[int]) -> dict[int, float]:
    """Task -> the mean affinity of the others of its group onto it (Fifty et al. 2021, section 3.3); 0 where alone.

    A pair that no look saw together counts as 0: nothing is known for or against it.
    """
    known = np.nan_to_num(matrix)
    return {j: float(np.mean([known[i, j] for i in group if i != j])) if len(group) > 1 else 0.0 for j in group}


def find_best_groupings(
    matrix: NDArray[np.float64], max_networks: int, count: int = 2
) -> list[tuple[float, tuple[tuple[int, ...], ...]]]:
    """The ``count`` best of all partitions into at most ``max_networks`` groups, as (sum of the tasks' affinities,
    groups).

    Exact: the sum is one over groups, so the best partition of the rest can be looked up.
    """
    tasks = len(matrix)
    values: dict[int, float] = {}

    def value(group: int) -> float:
        if group not in values:
            values[group] = math.fsum(group_affinity(matrix, _unpack_bitmask(group)).values())
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
        (score, tuple(tuple(_unpack_bitmask(group)) for group in groups))
        for score, groups in best((1 << tasks) - 1, max_networks)
    ]


def _unpack_bitmask(group: int) -> list[int]:
    return [i for i in range(group.bit_length()) if group >> i & 1]


def score_grouping(matrix: NDArray[np.float64], groups: Sequence[Sequence[int]]) -> float:
    """The sum of the tasks' affinities in a grouping."""
    return math.fsum(value for group in groups for value in group_affinity(matrix, group).values())


def compare_groupings(
    affinity: Affinity, one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]
) -> Interval | None:
    """Student's 95 % interval of how much better one grouping is than another, over stretches of the training.

    None with fewer than two stretches.
    """
    differences = [score_grouping(block, one) - score_grouping(block, other) for block in affinity.blocks()]
    return t_interval(differences) if len(differences) > 1 else None
