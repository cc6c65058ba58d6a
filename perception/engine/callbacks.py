"""Callbacks of a training: the interface, and those that log steps and detect negative transfer.

A training runs its callbacks in this order: `LabelCheck`, `StepLogger`, the user's own, `NegativeTransferCheck`,
`PeriodicEvaluator`, `CheckpointWriter`. What a user's callback changes is thus evaluated and saved in the same step.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perception.engine import distributed
from perception.engine.evaluate import Evaluation, compute_task_scores
from perception.engine.interrupt import StopRequest
from perception.engine.log import TrainLog
from perception.engine.step import StepResult
from perception.engine.train_config import TrainConfig
from perception.engine.train_state import TrainState
from perception.mtl.negative_transfer import MIN_EVALUATIONS, find_negative_transfer
from perception.types import Batch, PerceptionError


@dataclass(slots=True)
class TrainRun:
    """A training in progress, as its callbacks see it.

    Attributes:
        state: the network, and everything else that a step changes.
        config: settings of the training.
        folder: the run folder.
        log: log of the training.
        stop_request: whether a stop signal came to this rank.
        seed: seed of all randomness.
        callbacks: all callbacks of the training, in their order.
        stop_code: the exit code with which the training ends after this step, the same on all ranks; 0 = it continues.
        best_step: step of the best weights so far, if they were evaluated by this process.
        evaluation: the last evaluation by this process.
    """

    state: TrainState
    config: TrainConfig
    folder: Path
    log: TrainLog
    stop_request: StopRequest
    seed: int = 0
    callbacks: Sequence[Callback] = ()
    stop_code: int = 0
    best_step: int | None = None
    evaluation: Evaluation | None = field(default=None, repr=False)


class Callback:
    """Extends a training. Every rank calls every method; the default implementations do nothing."""

    def on_start(self, run: TrainRun) -> None:
        """Called once before the first step; on a resume, ``run.state.step`` is not 0."""

    def before_step(self, run: TrainRun, batch: Batch, tasks: Collection[str] | None) -> Mapping[str, int]:
        """Called before each step. It must not change the network or the random state.

        Args:
            run: the training; the step has the index ``run.state.step``.
            batch: this rank's batch, on the CPU.
            tasks: the tasks that the step trains; None means all.

        Returns:
            Numbers to sum over the ranks, at no extra cost: the sums are in `StepResult.flags`. Names must be unique.
        """
        return {}

    def after_step(self, run: TrainRun, result: StepResult) -> None:
        """Called after each step, also after a skipped one."""

    def before_evaluation(self, run: TrainRun) -> None:
        """Called when an evaluation is due, after `after_step`, also in a training without validation data."""

    def after_evaluation(self, run: TrainRun, evaluation: Evaluation) -> None:
        """Called after the evaluation that ranks the weights of this step."""


class StepLogger(Callback):
    """Logs means of the steps, and each skipped step; ends the training after too many skipped steps in a row."""

    def after_step(self, run: TrainRun, result: StepResult) -> None:
        """Log the step. Raises PerceptionError after ``max_skipped_steps`` skipped steps in a row."""
        state, config, log = run.state, run.config, run.log
        if result.problem:
            self._record_skip(run, result)
        else:
            state.consecutive_skipped = 0
            state.add_to_window({**result.values, "seconds_per_step": log.restart_lap()})
            log.update_progress(state.step, result.values["loss"])
        if config.is_due(state.step, config.log_every):
            means = state.pop_window_means()
            seconds = means.pop("seconds_per_step", math.nan)
            speed = round(config.batch_size / seconds if seconds else math.nan, 3)
            log.write_event(
                state.step, "train", {"lr": result.lr, **means, **result.weights, "images_per_second": speed}
            )

    def _record_skip(self, run: TrainRun, result: StepResult) -> None:
        state, most = run.state, run.config.max_skipped_steps
        state.consecutive_skipped += 1
        state.skipped_steps += 1
        ids = [id for part in distributed.all_gather(list(result.ids)) for id in part]
        run.log.write_event(state.step, "skipped", {"reason": result.problem, "ids": ids})
        run.log.print_message(f"Warning: step {state.step} was skipped: {result.problem}. Images: {', '.join(ids)}.")
        if state.consecutive_skipped >= most:
            raise PerceptionError(
                f"{state.consecutive_skipped} steps in a row had no finite loss "
                f"and gradient; at step {state.step}: {result.problem}. "
                f"Check the labels of {', '.join(ids)}, or lower train.lr (now {run.config.lr})."
            )


class NegativeTransferCheck(Callback):
    """Records each task's score at every evaluation; warns if tasks lose what others gain."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled

    def on_start(self, run: TrainRun) -> None:
        """Print a message if the run has too few evaluations to detect negative transfer."""
        steps, interval = run.config.steps, run.config.evaluation_interval
        count = math.ceil(steps / (interval or steps))
        scored = sum(not task.is_auxiliary for task in run.state.model.tasks.values())
        if self._enabled and not run.state.step and count < MIN_EVALUATIONS and scored > 1:
            run.log.print_message(
                f"{count} evaluation{'s' * (count != 1)} in this run: detecting negative transfer needs at least "
                f"{MIN_EVALUATIONS}. For that, set train.evaluate_every to {max(1, steps // MIN_EVALUATIONS)} or less."
            )

    def after_evaluation(self, run: TrainRun, evaluation: Evaluation) -> None:
        """Record the scores, and log each pair of tasks with negative transfer."""
        state = run.state
        for task, value in compute_task_scores(state.model, evaluation.metrics).items():
            state.task_scores.setdefault(task, []).append(value)
        for found in find_negative_transfer(state.task_scores):
            run.log.write_event(state.step, "negative_transfer", found._asdict())
            run.log.print_message(
                f"Warning: negative transfer: since its best evaluation {found.falling} fell (score {found.fall:+.3f}) "
                f"while {found.rising} rose ({found.rise:+.3f}), both beyond noise. See the report for remedies."
            )
