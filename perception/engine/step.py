"""One optimizer step: forward, balancing, backward, clipping, update, moving average."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from perception.engine import distributed, optim
from perception.engine.backward import BackwardResult, compute_gradients
from perception.engine.precision import Precision, autocast
from perception.engine.train_state import TrainState
from perception.mtl.conflict import record_cosines
from perception.nn.buffers import copy_tensors, restore_buffers
from perception.types import Batch


@dataclass(frozen=True, slots=True)
class StepResult:
    """Result of a step.

    Attributes:
        values: "loss", "loss/<task>" and "loss/<task>/<part>" of the labeled tasks, "penalty/<name>", and
            "gradient_norm" before clipping.
        weights: "weight/<task>" -> factor on the task's gradient; empty unless requested.
        flags: name -> sum over the ranks.
        lr: learning rate.
        ids: ids of this rank's images.
        problem: why the step was skipped; "" if it was not.
    """

    values: dict[str, float]
    weights: dict[str, float]
    flags: dict[str, int]
    lr: float
    ids: tuple[str, ...]
    problem: str = ""

    @property
    def losses(self) -> dict[str, float]:
        """Task -> loss, of the labeled tasks."""
        names = {key: key.removeprefix("loss/") for key in self.values if key.startswith("loss/")}
        return {name: self.values[key] for key, name in names.items() if "/" not in name}


class StepTransaction:
    """What a step changes before it is known whether its losses and gradients are finite.

    Args:
        state: the training before the step.
    """

    def __init__(self, state: TrainState) -> None:
        self._state, self._buffers = state, copy_tensors(state.model.buffers())
        self._balancer = copy.deepcopy(state.balancer.state_dict())

    def roll_back(self) -> None:
        """Restore BatchNorm's statistics and the balancer, and drop the gradients."""
        restore_buffers(self._state.model, self._buffers)
        self._state.balancer.load_state_dict(self._balancer)
        self._state.optimizer.zero_grad(set_to_none=True)


def seed_step(seed: int, step: int) -> None:
    """Seed torch from seed, step and rank, so that a resume needs no generator state."""
    state = np.random.SeedSequence((seed, step, distributed.rank())).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def take_step(
    state: TrainState,
    loss_function: distributed.LossFunction,
    batch: Batch,
    *,
    lr: float,
    clip_norm: float,
    precision: Precision,
    flags: Mapping[str, int],
    with_weights: bool,
    log_gradients: bool = False,
    tasks: Collection[str] | None = None,
) -> StepResult:
    """Take one step. If a loss or gradient is not finite, only ``state.step`` changes, on all ranks alike.

    Args:
        state: updated in place.
        loss_function: the forward pass.
        batch: this rank's batch, on the device.
        lr: learning rate of this step.
        clip_norm: largest gradient norm; 0 means no clipping.
        precision: number format of the forward pass.
        flags: numbers to sum over the ranks.
        with_weights: compute `StepResult.weights`.
        log_gradients: measure the tasks' gradients.
        tasks: tasks to train; None means all.
    """
    model, balancer, device = state.model, state.balancer, batch.images.device
    optim.set_learning_rate(state.optimizer, lr)
    transaction = StepTransaction(state)
    rng_state = _get_rng_state(device) if balancer.needs_updated_losses else []
    with autocast(precision, device):
        local = loss_function(batch, tasks)
    counts = {name: sum(a is not None for a in batch.annotations[name]) for name in local.terms}
    summed = {**flags, "statistics": _has_non_finite_statistics(model), "images": len(batch)}
    joint = distributed.reduce_losses(local, counts, summed)  # the host waits for the device here
    values, problem = _collect_log_values(joint)
    state.step += 1
    backward, norm = BackwardResult(), torch.zeros(())
    if not problem:
        options = {"with_weights": with_weights, "log_gradients": log_gradients}
        backward = compute_gradients(balancer, model, local, joint, state.step - 1, **options)
        values, norm, problem = _check_gradients(state, values, backward, list(joint.losses))
    result = StepResult(values, backward.weights, joint.flags, lr, tuple(batch.ids), problem)
    if problem:
        transaction.roll_back()
        return result
    if clip_norm:
        nn.utils.clip_grads_with_norm_(model.parameters(), clip_norm, norm)
    if log_gradients and balancer.space != "features":  # cosines at features do not measure conflict
        record_cosines(state.cosines, backward.gradient_stats)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if balancer.needs_updated_losses and joint.present:
        _report_updated_losses(state, batch, joint, precision, rng_state)
    distributed.average_statistics(model)
    state.ema.update(model, step=state.step)
    return result


def _report_updated_losses(
    state: TrainState, batch: Batch, joint: distributed.JointLosses, precision: Precision, rng_state: Sequence[Tensor]
) -> None:
    """Pass the losses after the update to the balancer, for the same batch and the same dropout."""
    buffers = copy_tensors(state.model.buffers())
    _set_rng_state(batch.images.device, rng_state)
    with torch.no_grad(), autocast(precision, batch.images.device):
        local = state.model.compute_loss_terms(batch, list(joint.num_labeled))
    losses = distributed.reduce_losses(local, {}, {}).losses
    restore_buffers(state.model, buffers)
    state.balancer.observe_updated_losses({name: losses[name] for name in joint.num_labeled if name in joint.present})


def _get_rng_state(device: torch.device) -> list[Tensor]:
    """State of the random generators that a forward pass uses."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_rng_state(device: torch.device, state: Sequence[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def _collect_log_values(joint: distributed.JointLosses) -> tuple[dict[str, float], str]:
    """The numbers to log, and a text that names the non-finite ones ("" if none). The same on all ranks."""
    named, present = joint.numbers, joint.present
    problem = ", ".join(f"{name} is {number}" for name, number in named.items() if not math.isfinite(number))
    if joint.flags["statistics"] and not problem:
        problem = "BatchNorm statistics are not finite"
    values = {f"loss/{name}": named[f"loss of {name}"] for name in present}
    values |= {f"loss/{part}": value for part, value in joint.terms.items() if part.partition("/")[0] in present}
    values |= {f"penalty/{name}": named[f"penalty {name}"] for name in joint.penalties}
    return values, problem


def _has_non_finite_statistics(model: nn.Module) -> Tensor | int:
    """1 if a floating-point buffer (BatchNorm's running statistics) is not finite, else 0; on the device."""
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return (~nn.utils.get_total_norm(statistics).isfinite()).double() if statistics else 0


def _check_gradients(
    state: TrainState, values: Mapping[str, float], backward: BackwardResult, tasks: Sequence[str]
) -> tuple[dict[str, float], Tensor, str]:
    """Returns the values to log, the norm of the model's gradient, and what is not finite ("" if all is)."""
    if backward.problem:
        return dict(values), torch.zeros(()), backward.problem
    norm = nn.utils.get_total_norm([p.grad for p in state.model.parameters() if p.grad is not None])
    own = [p.grad for p in state.balancer.parameters() if p.grad is not None]
    ends = [backward.total_loss, norm, nn.utils.get_total_norm(own) if own else torch.zeros_like(norm)]
    # The host waits for the device here, once for all three numbers.
    total, length, balancer_norm = torch.stack([end.double().to(norm.device) for end in ends]).tolist()
    problem = ""
    if not math.isfinite(total):
        problem = f"total loss is {total}"
    elif not math.isfinite(length):
        named = state.model.named_parameters()
        wrong = [name for name, p in named if p.grad is not None and not p.grad.isfinite().all()]
        heads = [task for task in tasks if any(f"tasks.{task}." in name for name in wrong)]
        problem = f"gradient of {', '.join(heads or wrong[:1] or ['all parameters together'])} is not finite"
    elif not math.isfinite(balancer_norm):
        problem = "gradient of the balancer is not finite"
    return {**values, "loss": total, "gradient_norm": length, **backward.gradient_stats}, norm, problem
