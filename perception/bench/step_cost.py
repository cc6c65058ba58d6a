"""Cost of training steps: CPU time and memory, in interleaved rounds, so that other load affects all equally."""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from perception.engine import distributed
from perception.engine.precision import Precision
from perception.engine.run_start import build_train_state
from perception.engine.step import take_step
from perception.engine.train_config import TrainConfig
from perception.model import MultiTaskModel
from perception.mtl.balancers import Balancer
from perception.types import Batch

TrainStep = Callable[[], object]


@dataclass(frozen=True, slots=True)
class StepCost:
    """Cost of a training step.

    Attributes:
        seconds: seconds per step, one value per round.
        peak_memory: peak MiB during a step minus the memory before it; NaN if the system does not report it.
    """

    seconds: tuple[float, ...]
    peak_memory: float

    @property
    def milliseconds(self) -> float:
        """The median in milliseconds."""
        return statistics.median(self.seconds) * 1e3

    def ratio_to(self, other: StepCost) -> float:
        """Return the duration relative to another step: the median over the rounds."""
        return statistics.median(one / two for one, two in zip(self.seconds, other.seconds, strict=True))


def make_training_step(
    model: MultiTaskModel,
    balancer: Balancer,
    batch: Batch,
    precision: Precision = "float32",
    log_gradients: bool = False,
) -> TrainStep:
    """Make a step as in `perception train`, with AdamW, gradient clipping and the moving average of the weights.

    Args:
        model: the network. The step runs on its device.
        balancer: the loss balancer.
        batch: the batch to train on.
        precision: numeric precision of the step.
        log_gradients: also measure the tasks' gradients.

    Returns:
        A function that takes one step.
    """
    training = build_train_state(model, balancer, TrainConfig(lr=1e-4, backbone_lr_scale=1.0))
    losses_of = distributed.LossFunction(model)

    def step() -> None:
        take_step(
            training,
            losses_of,
            batch,
            lr=1e-4,
            clip_norm=10.0,
            precision=precision,
            flags={},
            with_weights=False,
            log_gradients=log_gradients,
        )

    return step


def measure_steps(steps: Mapping[str, TrainStep], rounds: int) -> dict[str, StepCost]:
    """Measure steps in interleaved rounds, after one warm-up round.

    Uses the CPU time of this process on a CPU, and wall time on a GPU.

    Args:
        steps: name -> step.
        rounds: number of measured rounds.

    Returns:
        Name -> cost.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, step in steps.items():
            start = _read_clock()
            step()
            seconds[name].append(_read_clock() - start)
    return {name: StepCost(tuple(times[1:]), measure_peak_memory(steps[name])) for name, times in seconds.items()}


def _read_clock() -> float:
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def measure_peak_memory(step: TrainStep) -> float:
    """Measure the peak MiB during a step minus the memory before it, on the GPU or of the process (Linux); else NaN."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # otherwise reused memory of an earlier step would not count
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before = _peak_resident_memory()
        step()
        return _peak_resident_memory() - before
    except OSError:
        return math.nan


def _peak_resident_memory() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
