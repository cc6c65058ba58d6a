"""Task affinity by look-ahead on the shared parameters, and the best task grouping for a number of networks.

Task affinity groupings (TAG, Fifty et al. 2021): take a step along one task's gradient, on the shared parameters, and
measure the change of the other losses on the same batch; then restore the parameters.
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
"""Grouping more tasks would take minutes: the search visits every subset of every subset."""
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
    """Return task i -> task j -> the share of j's loss that a step of task i alone removes; negative if it increases.

    Each tensor of shared parameters moves by ``step_size * g_i / sqrt(sum_k mean(g_k^2))``: the step length of an
    optimizer such as Adam, divided among the tasks in proportion to their weighted gradients. Parameters of a single
    task stay fixed. The decrease is the step times j's gradient at its midpoint, which is correct to second order. A
    difference of two losses would be enough if each loss were consistent with its gradient. Detection's is not: its
    targets follow the prediction, and it may rise along its own gradient.

    Parameters, buffers, gradients and torch's random state are restored.

    Args:
        network: the network.
        loss_function: returns the losses of one batch, always the same one.
        present: the tasks that the batch labels.
        step_size: length of the step.
        weights: task -> factor on its loss; 1 if missing.
        seed: random seed of dropout etc., the same in every pass.
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
    """Return the update times the gradient of the loss."""
    gradient = _compute_gradients(loss, [parameter for parameter, _ in update])
    parts = [(change * g).sum() for (_, change), g in zip(update, gradient, strict=True) if g is not None]
    return float(torch.stack(parts).sum()) if parts else 0.0


def _compute_seeded_losses(loss_function: Callable[[], Mapping[str, Tensor]], seed: int) -> Mapping[str, Tensor]:
    torch.manual_seed(seed)
    return loss_function()


def _compute_task_updates(
    parameters: Sequence[Tensor], gradients: Sequence[Sequence[Tensor | None]], step_size: float
) -> list[list[tuple[Tensor, Tensor]]]:
    """Return the shared parameters for each task, with the updates to subtract."""
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
    """Subtract a fraction of the update. The original values are restored from a copy, so they are bit-identical."""
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
    """Affinity measurements during a training.

    Attributes:
        tasks: names of the tasks.
        values: [N, T, T], for N measurements the affinity of the row's task onto the column's; NaN if not both are
            present.
    """

    tasks: tuple[str, ...]
    values: NDArray[np.float64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """Mean over the measurements that include both tasks, [T, T]."""
        return _mean_of_known(self.values)

    @property
    def standard_error(self) -> NDArray[np.float64]:
        """Standard error of the mean, [T, T].

        Consecutive measurements are correlated, so it is computed from the means of ten blocks of the training.
        """
        block_means = self.blocks()
        known = np.isfinite(block_means).sum(0)
        spread = np.where(np.isfinite(block_means), block_means - _mean_of_known(block_means), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(known > 1, np.sqrt((spread**2).sum(0) / (known - 1) / known), np.nan)

    def blocks(self) -> NDArray[np.float64]:
        """Return the means over up to ten blocks of the training, [B, T, T]."""
        parts = np.array_split(self.values, min(_NUM_BLOCKS, len(self.values)))
        return np.stack([_mean_of_known(part) for part in parts])


def _mean_of_known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known.any(0), np.where(known, values, 0.0).sum(0) / known.sum(0), np.nan)


def group_affinity(matrix: NDArray[np.float64], group: Sequence[int]) -> dict[int, float]:
    """Return task -> mean affinity of the others of its group onto it (Fifty et al. 2021, section 3.3); 0 if alone.

    A pair that was never measured together counts as 0.
    """
    known = np.nan_to_num(matrix)
    return {j: float(np.mean([known[i, j] for i in group if i != j])) if len(group) > 1 else 0.0 for j in group}


def find_best_groupings(
    matrix: NDArray[np.float64], max_networks: int, count: int = 2
) -> list[tuple[float, tuple[tuple[int, ...], ...]]]:
    """Return the ``count`` best partitions into at most ``max_networks`` groups.

    Exact: the score is a sum over groups, so dynamic programming applies.

    Args:
        matrix: affinities [T, T].
        max_networks: maximum number of groups.
        count: number of partitions to return.

    Returns:
        Pairs of the sum of the tasks' affinities and the groups, best first.
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
    """Return the sum of the tasks' affinities in a grouping."""
    return math.fsum(value for group in groups for value in group_affinity(matrix, group).values())


def compare_groupings(
    affinity: Affinity, one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]
) -> Interval | None:
    """Return Student's 95 % interval of the score difference of two groupings, over blocks of the training.

    None with fewer than two blocks.
    """
    differences = [score_grouping(block, one) - score_grouping(block, other) for block in affinity.blocks()]
    return t_interval(differences) if len(differences) > 1 else None
