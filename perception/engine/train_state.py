"""The state of a training: everything that a step changes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter, ValidationError
from timm.utils.model_ema import ModelEmaV3

from perception.model import MultiTaskModel
from perception.mtl.balancer import Balancer
from perception.mtl.conflict import detect_conflicts
from perception.mtl.schedule import TaskSchedule


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

    model: MultiTaskModel
    balancer: Balancer
    schedule: TaskSchedule
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3
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

    def state_dict(self) -> dict[str, object]:
        """The state to save, without the moving average."""
        return {
            "model": self.model.state_dict(),
            "balancer": self.balancer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
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
        if state.get("schedule"):
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
