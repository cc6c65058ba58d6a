"""Evaluations during training: when they are due, how they rank checkpoints, and how a signal stops one."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from perception.engine import distributed
from perception.engine.evaluate import Evaluation, compute_task_scores
from perception.engine.interrupt import SignalInterrupt, StopRequest, exit_code
from perception.engine.log import TrainLog, write_metrics
from perception.engine.rank_monitor import set_activity
from perception.engine.step import TrainState, copy_tensors, restore_buffers
from perception.mtl.negative_transfer import MIN_EVALUATIONS, find_negative_transfer

EvaluateFunction = Callable[[Any], Evaluation]


class PeriodicEvaluator:
    """Evaluates the moving average of the weights whenever that is due.

    Args:
        train_state: the training.
        evaluate: as in `perception.engine.train.train`.
        quick_evaluate: as in `perception.engine.train.train`.
        interval: steps between two evaluations; 0 means only at the end.
        total_steps: steps of the whole training.
        run_folder: the run folder.
        log: log of the training.
        stop_request: whether a stop signal came.

    Attributes:
        last_evaluation: the last evaluation, None before the first.
    """

    def __init__(
        self,
        train_state: TrainState,
        evaluate: EvaluateFunction | None,
        quick_evaluate: EvaluateFunction | None,
        interval: int,
        total_steps: int,
        run_folder: Path,
        log: TrainLog,
        stop_request: StopRequest,
    ) -> None:
        self._train_state, self._evaluate, self._quick_evaluate, self._run_folder = (
            train_state,
            evaluate,
            quick_evaluate,
            run_folder,
        )
        self._interval, self._total_steps, self._log, self._stop_request = interval, total_steps, log, stop_request
        self._last_was_best = False
        self.last_evaluation: Evaluation | None = None
        if evaluate is not None and not train_state.step:
            self._warn_too_few_evaluations()

    @property
    def is_best(self) -> bool:
        """Whether the weights of the current step are the best so far."""
        return self._last_was_best and self._train_state.evaluated_step == self._train_state.step

    def __call__(self) -> int:
        """Evaluate if it is due.

        Returns:
            0, or the exit code of a signal that interrupted the evaluation. In that case the training state is
            unchanged, and the evaluation is repeated after a resume.
        """
        training = self._train_state
        if (
            self._evaluate is None
            or training.evaluated_step == training.step
            or not is_due(training.step, self._interval, self._total_steps)
        ):
            return 0
        last = training.step == self._total_steps
        network = training.ema.module
        before = copy_tensors(network.buffers())
        set_activity(f"evaluating at step {training.step}")
        try:
            with self._stop_request.abort_on_signal() if distributed.world_size() == 1 else nullcontext():
                found = (self._quick_evaluate or self._evaluate)(network)
                whole = self._evaluate(network) if self._quick_evaluate and last else found
        except SignalInterrupt:
            restore_buffers(network, before)
            return exit_code(distributed.sum_over_ranks(self._stop_request.flags))
        self._last_was_best = self._log_evaluation(found)
        if whole is not found:
            self._log.write_event(training.step, "evaluation", {**whole.metrics, "score": whole.score})
        self.last_evaluation, training.evaluated_step = whole, training.step
        self._log.restart_lap()
        return 0

    def _log_evaluation(self, evaluation: Evaluation) -> bool:
        """Log an evaluation. Returns whether it is the best so far.

        If so, its metrics become the run's metrics.json. During training this includes quick evaluations, which add
        their number of images.
        """
        training, log = self._train_state, self._log
        kind = "quick_evaluation" if self._quick_evaluate else "evaluation"
        highest = max(training.best_score, evaluation.score)
        log.write_event(training.step, kind, {**evaluation.metrics, "score": evaluation.score, "best": highest})
        for task, value in compute_task_scores(training.model, evaluation.metrics).items():
            training.task_scores.setdefault(task, []).append(value)
        for found in find_negative_transfer(training.task_scores):
            log.write_event(training.step, "negative_transfer", found._asdict())
            log.print_message(
                f"Warning: negative transfer: since its best evaluation {found.falling} fell (score {found.fall:+.3f}) "
                f"while {found.rising} rose ({found.rise:+.3f}), both beyond noise. See the report for remedies."
            )
        best = evaluation.score > training.best_score
        if best:
            training.best_score = evaluation.score
            if distributed.is_main_process():
                pictures = {"quick_images": evaluation.num_images} if self._quick_evaluate else {}
                numbers = {"step": training.step, "score": evaluation.score, **pictures, **evaluation.metrics}
                with log.record_failure():
                    write_metrics(self._run_folder / "metrics.json", numbers)
        return best

    def _warn_too_few_evaluations(self) -> None:
        """Print a message if the run has too few evaluations to detect negative transfer."""
        count = math.ceil(self._total_steps / (self._interval or self._total_steps))
        tasks = self._train_state.model.tasks.values()  # type: ignore[operator,union-attr]
        if count < MIN_EVALUATIONS and sum(not task.is_auxiliary for task in tasks) > 1:  # type: ignore[union-attr]
            self._log.print_message(
                f"{count} evaluation{'s' * (count != 1)} in this run: detecting negative transfer needs at least "
                f"{MIN_EVALUATIONS}. For that, set train.evaluate_every to "
                f"{max(1, self._total_steps // MIN_EVALUATIONS)} or less."
            )


def is_due(step: int, interval: int, total_steps: int) -> bool:
    """Whether a periodic action is due at ``step``: every ``interval`` steps, and at the last step."""
    return step == total_steps or (interval > 0 and step % interval == 0)
