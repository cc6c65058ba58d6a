"""What networks cost to run: parameters, and processor time in turns, so that a busy machine slows all alike."""

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
    """parameters: of the whole network. seconds: of an image, decoded, one number a turn."""

    parameters: int
    seconds: tuple[float, ...]

    @property
    def milliseconds(self) -> float:
        """The median."""
        return statistics.median(self.seconds) * 1e3


def measure_costs(
    models: Mapping[str, MultiTaskModel], images: Tensor, rounds: int = NUM_ROUNDS
) -> dict[str, NetworkCost]:
    """Name -> cost of a network's decoded prediction of ``images`` (uint8 [B, 3, H, W]) on one thread of the CPU.

    Processor time, not the clock: what else runs on the machine disturbs it least. The first turn warms up.
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
    """Time of one network over that of the others in sequence: the median over the turns."""
    return statistics.median(
        mine / sum(theirs) for mine, *theirs in zip(one.seconds, *(other.seconds for other in others), strict=True)
    )
