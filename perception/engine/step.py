"""One optimizer step, and the state that steps change."""

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
    """Everything that a step changes; with `state_dict` and the moving average it is what a checkpoint holds.

    data_fingerprints:    fingerprints of what it is trained on, by name
    step:    steps done, skipped ones included
    skipped_steps: steps skipped in a row, and in all
    window_sums:  sums since the last log event: name -> [sum, count]
    first_losses:   task -> mean loss of the first log event that had one
    best_score:    the highest score of an evaluation that checkpoints are compared by
    evaluated_step: the last step whose evaluation is done
    task_scores:  task -> its score at each of these evaluations
    cosines: "cosine/<task>/<task>" -> those of the last looks at the gradients, ``train.look_every`` steps apart
    label_counts:  "<task>/<source>" -> images that label it, and those of them with something that counts
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
        return {
            "model": self.model.state_dict(),
            "balancer": self.balancer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else {},
            "data_fingerprints": self.data_fingerprints,
            **{name: getattr(self, name) for name in _NUMBER_FIELDS},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises whatever a state that is none makes torch or Python raise; then this is of no use any more."""
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
        """Add a step's numbers to the window."""
        for name, value in values.items():
            entry = self.window_sums.setdefault(name, [0.0, 0])
            entry[0] += value
            entry[1] += 1

    def pop_window_means(self) -> dict[str, float]:
        """Means since the last call; "loss_ratio/<task>": a task's mean loss over its first one; and which tasks are in
        conflict, see `perception.mtl.conflict`."""
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
"""What of a `TrainState` is numbers: name -> kind, which a state that is read must have."""


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step did.

    values:  "loss", "loss/<task>" and "loss/<task>/<part>" of the labeled tasks, "penalty/<name>",
             "gradient_norm" before clipping
    weights: "weight/<task>": what each task's gradient was multiplied with; empty unless asked for
    flags:   summed over the ranks
    problem: why the step was skipped, "" if it was not
    """

    values: dict[str, float]
    weights: dict[str, float]
    flags: dict[str, int]
    problem: str = ""


def seed_step(seed: int, step: int) -> None:
    """Make torch's randomness a function of seed, step and rank, so that a resume needs no generator state."""
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
    """Forward (of ``tasks``, all by default), balance, one backward, clip, update, average.

    A loss or a gradient that is not finite leaves weights, optimizer, moving average and BatchNorm's statistics as they
    were. All ranks come to the same decision.
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
        # The host waits here, once for all three.
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
    if log_gradients and train_state.balancer.space != "features":  # where the cosines say nothing of conflict
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
    """Show the balancer the losses of the same batch, with the same dropout, after the update."""
    model = train_state.model
    buffers = copy_tensors(model.buffers())
    _set_rng_state(batch.images.device, rng_state)
    with torch.no_grad(), autocast(precision, batch.images.device):
        found = model.compute_loss_terms(batch, list(num_labeled))  # type: ignore[operator]
    losses = distributed.reduce_losses(found, {}, {}).losses
    restore_buffers(model, buffers)
    train_state.balancer.observe_updated_losses({name: losses[name] for name, count in num_labeled.items() if count})


def _get_rng_state(device: torch.device) -> list[Tensor]:
    """The state of the generators that a forward pass draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_rng_state(device: torch.device, state: list[Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)


def _collect_log_values(joint: distributed.JointLosses, present: list[str]) -> tuple[dict[str, float], str]:
    """The numbers to log, and which of them is not finite; "" where all are. The same on all ranks."""
    named = joint.numbers
    problem = ", ".join(f"{name} is {number}" for name, number in named.items() if not math.isfinite(number))
    if joint.flags["statistics"] and not problem:
        problem = "BatchNorm statistics are not finite"
    values = {f"loss/{name}": named[f"loss of {name}"] for name in present}
    values |= {f"loss/{part}": value for part, value in joint.terms.items() if part.partition("/")[0] in present}
    values |= {f"penalty/{name}": named[f"penalty {name}"] for name in joint.penalties}
    return values, problem


def _has_non_finite_statistics(model: nn.Module) -> Tensor | int:
    """Whether a forward pass left a floating-point buffer (BatchNorm's running statistics) that is not finite: 1 or 0,
    on the device."""
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return (~nn.utils.get_total_norm(statistics).isfinite()).double() if statistics else 0


def _describe_gradient_problem(
    train_state: TrainState, values: Mapping[str, float], tasks: list[str], balancer_norm: float
) -> str:
    """Where the total or a gradient stopped being finite; "" where all is well. The same on all ranks.

    balancer_norm: norm of the gradients of the balancer's own parameters
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
    """Copies of tensors, on a GPU in one launch for all of a kind."""
    tensors = list(tensors)
    copies = [torch.empty_like(tensor) for tensor in tensors]
    for kind in {tensor.dtype for tensor in tensors}:
        pairs = [pair for pair in zip(copies, tensors, strict=True) if pair[1].dtype == kind]
        torch._foreach_copy_([copy for copy, _ in pairs], [tensor for _, tensor in pairs])
    return copies


def restore_buffers(model: nn.Module, buffers: list[Tensor]) -> None:
    """Set a network's buffers to what `copies` had of them."""
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
