"""Inference cost of networks: parameters, and CPU time in interleaved rounds, so that load affects all equally."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perception.model import MultiTaskModel
from perception.ops.denormals import flush_denormals

NUM_ROUNDS = 15


@dataclass(frozen=True, slots=True)
class NetworkCost:
    """Inference cost of a network.

    Attributes:
        parameters: number of parameters.
        seconds: CPU seconds of one prediction including decoding, one value per round.
    """

    parameters: int
    seconds: tuple[float, ...]

    @property
    def milliseconds(self) -> float:
        """The median in milliseconds."""
        return statistics.median(self.seconds) * 1e3


def measure_costs(
    models: Mapping[str, MultiTaskModel], images: Tensor, rounds: int = NUM_ROUNDS
) -> dict[str, NetworkCost]:
    """Measure the cost of predictions including decoding, on one CPU thread.

    Uses CPU time, because other load on the machine affects it less than wall time. The first round is a warm-up.

    Args:
        models: name -> network.
        images: uint8 [B, 3, H, W].
        rounds: number of measured rounds.

    Returns:
        Name -> cost.
    """
    seconds: dict[str, list[float]] = {name: [] for name in models}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with flush_denormals(), torch.inference_mode():
            for _ in range(rounds + 1):
                for name, model in models.items():
                    start = time.process_time()
                    model.predict(images)
                    seconds[name].append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return {
        name: NetworkCost(sum(p.numel() for p in model.parameters()), tuple(seconds[name][1:]))
        for name, model in models.items()
    }


def time_ratio(one: NetworkCost, others: Sequence[NetworkCost]) -> float:
    """Compute the time of one network relative to all others in sequence: the median over the rounds."""
    return statistics.median(
        mine / sum(theirs) for mine, *theirs in zip(one.seconds, *(other.seconds for other in others), strict=True)
    )
