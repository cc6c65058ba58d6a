"""One optimizer step, and the training state that it updates."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, TypeAdapter, ValidationError
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from perception.engine import distributed, optim
from perception.engine.backward import BackwardResult, compute_gradients
from perception.engine.precision import Precision, autocast
from perception.mtl.balancer import Balancer
from perception.mtl.conflict import detect_conflicts, record_cosines
from perception.mtl.schedule import TaskSchedule
from perception.types import Batch


@dataclass(slots=True)
class TrainState:
    """Everything that a step changes. A checkpoint holds its `state_dict` and the moving average.

    Attributes:
        model: the network in training.
        balancer: combines the losses of the tasks.
        optimizer: over the parameters of network and balancer.
        ema: moving average of the network.
        schedule: which tasks a step trains, and which parts are frozen.
        data_fingerprints: source name -> part -> fingerprint of the training data.
        step: steps done, skipped ones included.
        seconds: training time.
        best_score: highest score of the evaluations that rank checkpoints.
        evaluated_step: the last step with a finished evaluation.
        consecutive_skipped: steps skipped in a row.
        skipped_steps: steps skipped in total.
        window_sums: name -> [sum, count] since the last log event.
        first_losses: task -> mean loss in the first log event that had one.
        task_scores: task -> its score at each evaluation.
        cosines: "cosine/<task>/<task>" -> recent values, ``train.log_gradients_every`` steps apart.
        label_counts: "<task>/<source>" -> [labeled images, those with usable labels].
    """

    model: nn.Module
    balancer: Balancer
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3
    schedule: TaskSchedule | None = None
    data_fingerprints: dict[str, dict[str, str]] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0
    best_score: float = -math.inf
    evaluated_step: int = 0
    consecutive_skipped: int = 0
    skipped_steps: int = 0
    window_sums: dict[str, list[float]] = field(default_factory=dict)
    first_losses: dict[str, float] = field(default_factory=dict)
    task_scores: dict[str, list[float]] = field(default_factory=dict)
    cosines: dict[str, list[float]] = field(default_factory=dict)
    label_counts: dict[str, list[int]] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """The state to save, without the moving average."""
        return {
            "model": self.model.state_dict(),
            "balancer": self.balancer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else {},
            "data_fingerprints": self.data_fingerprints,
            **{name: getattr(self, name) for name in _NUMBER_FIELDS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state. An invalid one raises various errors and leaves this object unusable."""
        numbers = {"evaluated_step": state["step"], **{name: state[name] for name in _NUMBER_FIELDS if name in state}}
        for name, kind in _NUMBER_FIELDS.items():
            try:
                TypeAdapter(kind).validate_python(numbers[name], strict=True)
            except ValidationError as error:
                found = error.errors()[0]
                place = ".".join(map(str, (name, *found["loc"])))
                raise ValueError(f"{place}: {found['msg']}, found {found['input']!r:.80}.") from None
        groups = [set(group) for group in self.optimizer.state_dict()["param_groups"]]
        for name in ("model", "balancer", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        for group, wanted in zip(self.optimizer.state_dict()["param_groups"], groups, strict=True):
            if lacking := sorted(wanted - set(group)):
                raise ValueError(f"optimizer: a group lacks {', '.join(lacking)}.")
        if self.schedule and state.get("schedule"):
            self.schedule.load_state_dict(state["schedule"])
        for name, value in numbers.items():
            setattr(self, name, value)

    def add_to_window(self, values: Mapping[str, float]) -> None:
        """Add the values of a step to the sums since the last log event."""
        for name, value in values.items():
            entry = self.window_sums.setdefault(name, [0.0, 0])
            entry[0] += value
            entry[1] += 1

    def pop_window_means(self) -> dict[str, float]:
        """Means since the last call, loss ratios and conflicts.

        "loss_ratio/<task>" is a task's mean loss divided by its first one. For the conflicts see
        `perception.mtl.conflict`.
        """
        means = {name: total / count for name, (total, count) in self.window_sums.items()}
        self.window_sums = {}
        losses = {name.removeprefix("loss/"): mean for name, mean in means.items() if name.startswith("loss/")}
        tasks = {name: mean for name, mean in losses.items() if "/" not in name}
        self.first_losses = {**tasks, **self.first_losses}
        paces = {
            f"loss_ratio/{name}": mean / self.first_losses[name]
            for name, mean in tasks.items()
            if self.first_losses[name] > 0
        }
        conflicts = detect_conflicts(self.cosines) if any(name.startswith("cosine/") for name in means) else {}
        return {**means, **paces, **conflicts}


_FloatLists = dict[str, list[float]]
_NonNegativeInt = Annotated[int, Field(ge=0)]
_NUMBER_FIELDS = {
    "step": _NonNegativeInt,
    "seconds": float,
    "best_score": float,
    "evaluated_step": _NonNegativeInt,
    "consecutive_skipped": _NonNegativeInt,
    "skipped_steps": _NonNegativeInt,
    "window_sums": dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]],
    "first_losses": dict[str, float],
    "task_scores": _FloatLists,
    "cosines": _FloatLists,
    "label_counts": dict[str, Annotated[list[int], Field(min_length=2, max_length=2)]],
}
"""Numeric fields of a `TrainState`: name -> type, which a loaded state must match."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """Result of a step.

    Attributes:
        values: "loss", "loss/<task>" and "loss/<task>/<part>" of the labeled tasks, "penalty/<name>", and
            "gradient_norm" before clipping.
        weights: "weight/<task>" -> factor on the task's gradient; empty unless requested.
        flags: summed over the ranks.
        problem: why the step was skipped; "" if it was not.
    """

    values: dict[str, float]
    weights: dict[str, float]
    flags: dict[str, int]
    problem: str = ""


def seed_step(seed: int, step: int) -> None:
    """Seed torch from seed, step and rank, so that a resume needs no generator state."""
    state = np.random.SeedSequence((seed, step, distributed.rank())).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0]))


def take_step(
    train_state: TrainState,
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
    """Run forward, balancing, backward, clipping, the optimizer update and the moving average.

    If a loss or gradient is not finite, weights, optimizer, moving average and BatchNorm statistics stay unchanged. All
    ranks make the same decision.

    Args:
        train_state: updated in place.
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
    model, index = train_state.model, train_state.step
    optim.set_learning_rate(train_state.optimizer, lr)
    buffers = copy_tensors(model.buffers())
    randomness = _get_rng_state(batch.images.device) if train_state.balancer.needs_updated_losses else []
    with autocast(precision, batch.images.device):
        found = loss_function(batch, tasks)
    counts = {name: sum(a is not None for a in batch.annotations[name]) for name in found.terms}
    summed = {**flags, "statistics": _has_non_finite_statistics(model), "images": len(batch)}
    joint = distributed.reduce_losses(found, counts, summed)
    present = [name for name in joint.losses if joint.num_labeled[name]]
    values, problem = _collect_log_values(joint, present)
    train_state.step += 1
    norm = torch.zeros(())
    balance = copy.deepcopy(train_state.balancer.state_dict())
    done = BackwardResult()
    if not problem:
        done = compute_gradients(
            train_state.balancer, model, found, joint, index, with_weights=with_weights, log_gradients=log_gradients
        )
        problem = done.problem
    if not problem:
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        own = [p.grad for p in train_state.balancer.parameters() if p.grad is not None]
        ends = [done.total_loss, norm, nn.utils.get_total_norm(own) if own else torch.zeros_like(norm)]
        # The host waits for the device here, once for all three numbers.
        total, length, owned = torch.stack([end.double().to(norm.device) for end in ends]).tolist()
        values |= {"loss": total, "gradient_norm": length, **done.gradient_stats}
        problem = _describe_gradient_problem(train_state, values, list(joint.losses), owned)
    if problem:
        restore_buffers(model, buffers)
        train_state.balancer.load_state_dict(balance)
        train_state.optimizer.zero_grad(set_to_none=True)
        return StepResult(values, done.weights, joint.flags, problem)
    if clip_norm:
        nn.utils.clip_grads_with_norm_(model.parameters(), clip_norm, norm)
    if log_gradients and train_state.balancer.space != "features":  # cosines at features do not measure conflict
        record_cosines(train_state.cosines, done.gradient_stats)
    train_state.optimizer.step()
    train_state.optimizer.zero_grad(set_to_none=True)
    if train_state.balancer.needs_updated_losses and present:
        _report_updated_losses(train_state, batch, joint.num_labeled, precision, randomness)
    distributed.average_statistics(model)
    train_state.ema.update(model, step=train_state.step)
    return StepResult(values, done.weights, joint.flags)


def _report_updated_losses(
    train_state: TrainState, batch: Batch, num_labeled: Mapping[str, int], precision: Precision, rng_state: list[Tensor]
) -> None:
    """Pass the losses after the update to the balancer, for the same batch and the same dropout."""
    model = train_state.model
    buffers = copy_tensors(model.buffers())
    _set_rng_state(batch.images.device, rng_state)
    with torch.no_grad(), autocast(precision, batch.images.device):
        found = model.compute_loss_terms(batch, list(num_labeled))  # type: ignore[operator]
    losses = distributed.reduce_losses(found, {}, {}).losses
    restore_buffers(model, buffers)
    train_state.balancer.observe_updated_losses({name: losses[name] for name, count in num_labeled.items() if count})


def _get_rng_state(device: torch.device) -> list[Tensor]:
    """State of the random generators that a forward pass uses."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_rng_state(device: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def _collect_log_values(joint: distributed.JointLosses, present: list[str]) -> tuple[dict[str, float], str]:
    """The numbers to log, and a text that names the non-finite ones ("" if none). The same on all ranks."""
    named = joint.numbers
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


def _describe_gradient_problem(
    train_state: TrainState, values: Mapping[str, float], tasks: list[str], balancer_norm: float
) -> str:
    """Name the total loss or gradient that is not finite; "" if none. The same on all ranks.

    ``balancer_norm`` is the gradient norm of the balancer's own parameters.
    """
    if not math.isfinite(values["loss"]):
        return f"total loss is {values['loss']}"
    if not math.isfinite(values["gradient_norm"]):
        wrong = [
            n for n, p in train_state.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()
        ]
        heads = [task for task in tasks if any(f"tasks.{task}." in name for name in wrong)]
        return f"gradient of {', '.join(heads or wrong[:1] or ['all parameters together'])} is not finite"
    return "" if math.isfinite(balancer_norm) else "gradient of the balancer is not finite"


def copy_tensors(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Copy tensors; on a GPU with one kernel launch per dtype."""
    tensors = list(tensors)
    copies = [torch.empty_like(tensor) for tensor in tensors]
    for kind in {tensor.dtype for tensor in tensors}:
        pairs = [pair for pair in zip(copies, tensors, strict=True) if pair[1].dtype == kind]
        torch._foreach_copy_([copy for copy, _ in pairs], [tensor for _, tensor in pairs])
    return copies


def restore_buffers(model: nn.Module, buffers: list[Tensor]) -> None:
    """Restore a network's buffers from `copy_tensors`."""
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
