"""The evaluations of a training: when they are due, what they say of the weights, and how a signal ends one."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from perception.engine import distributed
from perception.engine.evaluate import Evaluation, task_scores
from perception.engine.interrupt import Interruption, Stopped, exit_code
from perception.engine.log import Log, write_metrics
from perception.engine.rank_watch import now_doing
from perception.engine.step import Training, copies, restore
from perception.mtl.negative_transfer import LEAST, see_saws

Measure = Callable[[Any], Evaluation]


class Assessment:
    """Evaluates the moving average of a training at the steps where that is due.

    evaluate, quick: as in `perception.engine.train.train`
    every, steps:    of the training: steps between two evaluations (0 = only at the end), and in all
    last:            the last evaluation
    """

    def __init__(
        self,
        training: Training,
        evaluate: Measure | None,
        quick: Measure | None,
        every: int,
        steps: int,
        run: Path,
        log: Log,
        interruption: Interruption,
    ) -> None:
        self._training, self._evaluate, self._quick, self._run = training, evaluate, quick, run
        self._every, self._steps, self._log, self._interruption = every, steps, log, interruption
        self._best = False
        self.last: Evaluation | None = None
        if evaluate is not None and not training.step:
            self._say_what_evaluations_tell()

    @property
    def best(self) -> bool:
        """Whether the weights of this step are the best so far."""
        return self._best and self._training.assessed == self._training.step

    def __call__(self) -> int:
        """Evaluate where it is due. Returns 0, or the exit code of a signal that ended it: then the training is as it
        was before, and the same evaluation is due after a resume."""
        training = self._training
        if (
            self._evaluate is None
            or training.assessed == training.step
            or not due(training.step, self._every, self._steps)
        ):
            return 0
        last = training.step == self._steps
        network = training.ema.module
        before = copies(network.buffers())
        now_doing(f"evaluating at step {training.step}")
        try:
            with self._interruption.abandonable() if distributed.world() == 1 else nullcontext():
                found = (self._quick or self._evaluate)(network)
                whole = self._evaluate(network) if self._quick and last else found
        except Stopped:
            restore(network, before)
            return exit_code(distributed.summed(self._interruption.flags))
        self._best = self._note(found)
        if whole is not found:
            self._log.event(training.step, "evaluation", {**whole.metrics, "score": whole.score})
        self.last, training.assessed = whole, training.step
        self._log.lap()
        return 0

    def _note(self, evaluation: Evaluation) -> bool:
        """Log an evaluation. Returns whether it is the best so far; then its metrics become the run's metrics.json, for
        as long as the run lasts also those of a quick one, which names its number of pictures."""
        training, log = self._training, self._log
        kind = "quick_evaluation" if self._quick else "evaluation"
        highest = max(training.best, evaluation.score)
        log.event(training.step, kind, {**evaluation.metrics, "score": evaluation.score, "best": highest})
        for task, value in task_scores(training.model, evaluation.metrics).items():
            training.scores.setdefault(task, []).append(value)
        for found in see_saws(training.scores):
            log.event(training.step, "see_saw", found._asdict())
            log.say(
                f"Warning: see-saw: since its best evaluation {found.falling} fell (score {found.fall:+.3f}) while "
                f"{found.rising} rose ({found.rise:+.3f}), both beyond noise. The report says what may help."
            )
        best = evaluation.score > training.best
        if best:
            training.best = evaluation.score
            if distributed.is_main():
                pictures = {"quick_images": evaluation.pictures} if self._quick else {}
                numbers = {"step": training.step, "score": evaluation.score, **pictures, **evaluation.metrics}
                with log.writing():
                    write_metrics(self._run / "metrics.json", numbers)
        return best

    def _say_what_evaluations_tell(self) -> None:
        """A line where the run has too few evaluations to tell a see-saw."""
        count = math.ceil(self._steps / (self._every or self._steps))
        tasks = self._training.model.tasks.values()  # type: ignore[operator,union-attr]
        if count < LEAST and sum(not task.auxiliary for task in tasks) > 1:  # type: ignore[union-attr]
            self._log.say(
                f"{count} evaluation{'s' * (count != 1)} in this run: whether one task falls while another rises is "
                f"told from {LEAST} on. For that, set train.evaluate_every to {max(1, self._steps // LEAST)} or less."
            )


def due(step: int, every: int, steps: int) -> bool:
    """Whether something is done at a step that is done every so many steps, and at the last one."""
    return step == steps or (every > 0 and step % every == 0)
