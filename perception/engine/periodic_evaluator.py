"""Evaluations during training: when they are due, how they rank checkpoints, and how a signal stops one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

from perception.engine import distributed
from perception.engine.callbacks import Callback, TrainRun
from perception.engine.evaluate import Evaluation
from perception.engine.interrupt import SignalInterrupt, exit_code
from perception.engine.log import write_metrics
from perception.engine.rank_monitor import set_activity
from perception.engine.step import StepResult
from perception.model import MultiTaskModel
from perception.nn.buffers import copy_tensors, restore_buffers

EvaluateFunction = Callable[[MultiTaskModel], Evaluation]


class PeriodicEvaluator(Callback):
    """Evaluates the moving average of the weights whenever that is due, at a resume too.

    A signal that stops an evaluation leaves the training state unchanged; the evaluation is repeated after a resume.

    Args:
        evaluate: as in `perception.engine.train.train`.
        quick_evaluate: as in `perception.engine.train.train`.
    """

    def __init__(self, evaluate: EvaluateFunction | None, quick_evaluate: EvaluateFunction | None) -> None:
        self._evaluate, self._quick_evaluate = evaluate, quick_evaluate

    def on_start(self, run: TrainRun) -> None:
        """Make up for an evaluation that a signal stopped."""
        if run.state.step and run.config.is_due(run.state.step, run.config.evaluation_interval):
            self._run(run)

    def after_step(self, run: TrainRun, result: StepResult) -> None:
        """Evaluate if it is due and the training is not about to stop."""
        if run.config.is_due(run.state.step, run.config.evaluation_interval):
            for callback in run.callbacks:
                callback.before_evaluation(run)
            if not run.stop_code:
                self._run(run)

    def _run(self, run: TrainRun) -> None:
        state = run.state
        if self._evaluate is None or state.evaluated_step == state.step:
            return
        network = state.ema.module
        before = copy_tensors(network.buffers())
        set_activity(f"evaluating at step {state.step}")
        try:
            with run.stop_request.abort_on_signal() if distributed.world_size() == 1 else nullcontext():
                found = (self._quick_evaluate or self._evaluate)(network)
                whole = self._evaluate(network) if self._quick_evaluate and state.step == run.config.steps else found
        except SignalInterrupt:
            restore_buffers(network, before)
            run.stop_code = exit_code(distributed.sum_over_ranks(run.stop_request.flags))
            return
        self._record(run, found)
        if whole is not found:
            run.log.write_event(state.step, "evaluation", {**whole.metrics, "score": whole.score})
        run.evaluation, state.evaluated_step = whole, state.step
        run.log.restart_lap()

    def _record(self, run: TrainRun, evaluation: Evaluation) -> None:
        """Log an evaluation. If it is the best so far, its metrics become the run's metrics.json.

        During training this includes quick evaluations, which add their number of images.
        """
        state, log = run.state, run.log
        kind = "quick_evaluation" if self._quick_evaluate else "evaluation"
        highest = max(state.best_score, evaluation.score)
        log.write_event(state.step, kind, {**evaluation.metrics, "score": evaluation.score, "best": highest})
        for callback in run.callbacks:
            callback.after_evaluation(run, evaluation)
        if evaluation.score > state.best_score:
            state.best_score, run.best_step = evaluation.score, state.step
            if distributed.is_main_process():
                count = {"quick_images": evaluation.num_images} if self._quick_evaluate else {}
                numbers = {"step": state.step, "score": evaluation.score, **count, **evaluation.metrics}
                with log.record_failure():
                    write_metrics(run.folder / "metrics.json", numbers)
