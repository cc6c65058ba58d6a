"""A moving average of the tasks' Gramian, because cosines of single batches are mostly noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from perception.mtl.balancer import Gramian


class GramianAverage:
    """Averages each pair of tasks over the steps at which both had a gradient.

    The average is bias-corrected as Adam's moments are. Absent tasks keep their values.

    Args:
        num_tasks: number of tasks in the recipe.
        decay: decay of the average per step, [0, 1).
    """

    def __init__(self, num_tasks: int, decay: float) -> None:
        self.decay = decay
        self._sums = torch.zeros(num_tasks, num_tasks, dtype=torch.float64)
        self._counts = torch.zeros(num_tasks, num_tasks, dtype=torch.int64)

    def update(self, indices: Sequence[int], gramian: Gramian) -> None:
        """Add the Gramian [n, n] of the tasks at ``indices`` in the recipe's order."""
        at = _index_pairs(indices)
        self._sums[at] = self.decay * self._sums[at] + (1 - self.decay) * gramian
        self._counts[at] += 1

    def has_all(self, indices: Sequence[int]) -> bool:
        """Return whether each of these tasks has had a gradient."""
        return bool((self._counts.diagonal()[list(indices)] > 0).all())

    def compute_average(self, indices: Sequence[int]) -> Gramian:
        """Return the average [n, n] of tasks that all had a gradient. Pairs never present together count as orthogonal.

        Pairs come from different steps, so their cosines may be inconsistent. They are projected to the nearest
        positive semi-definite matrix by setting negative eigenvalues to zero. Lengths of gradients do not change.
        """
        sums, counts = self._sums[_index_pairs(indices)], self._counts[_index_pairs(indices)]
        products = sums / (1 - self.decay ** counts.double()).where(counts > 0, 1.0)
        lengths = products.diagonal().sqrt()
        cosines = products / torch.outer(lengths, lengths)
        values, vectors = torch.linalg.eigh(cosines)
        if values[0] < 0:
            cosines = (vectors * values.clamp(min=0)) @ vectors.T
            lengths = lengths / cosines.diagonal().sqrt()
        return cosines * torch.outer(lengths, lengths)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state."""
        return {"sums": self._sums.clone(), "counts": self._counts.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state."""
        self._sums, self._counts = state["sums"].clone(), state["counts"].clone()


def _index_pairs(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
    rows = torch.tensor(indices)
    return rows[:, None], rows[None, :]
