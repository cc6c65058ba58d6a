"""The training loop, for one process or torchrun.

All randomness, including the data, is a function of (seed, step). On the CPU, with the same number of threads and
ranks, a resumed run is therefore bit-identical to an uninterrupted one.

A step is `perception.engine.step.take_step`, its gradients are `perception.engine.backward.compute_gradients`. Logging,
evaluation and checkpoints are callbacks (`perception.engine.callbacks`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from perception.engine import distributed
from perception.engine.callbacks import Callback, NegativeTransferCheck, StepLogger, TrainRun
from perception.engine.checkpointing import CheckpointWriter
from perception.engine.evaluate import Evaluation
from perception.engine.freezing import FreezeSchedule
from perception.engine.interrupt import SignalInterrupt, catch_stop_signals, exit_code
from perception.engine.label_check import LabelCheck
from perception.engine.periodic_evaluator import EvaluateFunction, PeriodicEvaluator
from perception.engine.precision import deterministic_mode, explain_out_of_memory, move_to_device
from perception.engine.rank_monitor import set_activity
from perception.engine.run_start import build_train_state, lock_run_folder, open_log, start_or_resume
from perception.engine.step import seed_step, take_step
from perception.engine.train_config import TrainConfig
from perception.model import MultiTaskModel
from perception.mtl.balancer import Balancer
from perception.mtl.schedule import TaskSchedule
from perception.types import Batch, DataError

LOG_UNWRITABLE = "unwritable"
"""Flag by which all ranks learn that the log cannot be written."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Result of a training.

    Attributes:
        step: steps done.
        evaluation: the last evaluation, if any.
        skipped_steps: steps skipped.
        seconds: training time.
    """

    step: int
    evaluation: Evaluation | None
    skipped_steps: int
    seconds: float


def train(
    model: MultiTaskModel,
    batches: Callable[[int], Iterable[Batch]],
    config: TrainConfig,
    *,
    run_folder: Path,
    recipe_text: str,
    balancer: Balancer,
    schedule: TaskSchedule | None = None,
    data_fingerprints: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    evaluate: EvaluateFunction | None = None,
    quick_evaluate: EvaluateFunction | None = None,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    warnings: Sequence[str] = (),
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Train ``model`` in place, on its device, and write the run folder. Every rank calls this.

    A stop signal acts at once during data loading and evaluation, otherwise after the current step.

    Args:
        model: the network.
        batches: first step (from 0) -> this rank's batches from there on. They must not depend on where they began.
        config: settings of the training.
        run_folder: the run folder.
        recipe_text: YAML text of the resolved recipe; must be unchanged on a resume, unless ``force``.
        balancer: combines the losses of the tasks.
        schedule: which tasks a step trains; None means all tasks in every step.
        data_fingerprints: source -> part -> fingerprint; must be unchanged on a resume, unless ``force``.
        evaluate: evaluates the moving average. Its ``score`` selects the best checkpoint.
        quick_evaluate: evaluates on fewer images. Its ``score`` then ranks instead; ``evaluate`` runs at the last step.
        seed: seed of all randomness.
        resume: continue from the newest checkpoint in ``run_folder``.
        force: resume although the recipe or the data has changed.
        warnings: sentences for the log and the report of a new run.
        callbacks: your own callbacks; their state is not saved.

    Raises:
        CheckpointError: the run folder does not fit: checkpoints (none, or some already), lock, recipe or data.
        PerceptionError: too many steps without finite losses, out of memory, or no disk space (DiskFullError).
        SystemExit: 128 + signal, or 1 if the log cannot be written; each after saving.
    """
    device = next(model.parameters()).device
    with deterministic_mode(device, config.threads), catch_stop_signals() as request, ExitStack() as opened:
        state = build_train_state(model, balancer, config, schedule, data_fingerprints)
        freezing = FreezeSchedule(state.schedule, model)
        opened.enter_context(lock_run_folder(run_folder, resume))
        start_or_resume(state, run_folder, recipe_text, resume, force)
        log = opened.enter_context(open_log(state, run_folder, config, () if resume else warnings))
        run = TrainRun(state, config, run_folder, log, request, seed)
        writer = opened.enter_context(CheckpointWriter(run, recipe_text))
        labels = LabelCheck(dict(model.tasks.items()), state.data_fingerprints, state.label_counts)
        last = (NegativeTransferCheck(evaluate is not None), PeriodicEvaluator(evaluate, quick_evaluate), writer)
        run.callbacks = (labels, StepLogger(), *callbacks, *last)
        return _train_until_stopped(run, freezing, batches, writer)


def _train_until_stopped(
    run: TrainRun, freezing: FreezeSchedule, batches: Callable[[int], Iterable[Batch]], writer: CheckpointWriter
) -> TrainResult:
    """Take all steps. Saves the run and raises SystemExit if it is to stop earlier."""
    state, steps = run.state, run.config.steps
    for callback in run.callbacks:
        callback.on_start(run)
    with closing(_limit_batches(batches, state.step, steps)) as stream:
        while not run.stop_code and state.step < steps:
            set_activity(f"at step {state.step + 1}")
            try:
                with run.stop_request.abort_on_signal() if distributed.world_size() == 1 else nullcontext():
                    batch = next(stream)
            except SignalInterrupt:
                break
            _train_on_batch(run, freezing, batch)
        set_activity("at the end")
        agreed = distributed.sum_over_ranks(_collect_stop_flags(run))
        if stop_code := run.stop_code or _find_stop_code(agreed):
            raise SystemExit(writer.save_before_exit(stop_code))
        distributed.barrier()  # no rank reads the last checkpoint before it is written
        return TrainResult(state.step, run.evaluation, state.skipped_steps, run.log.seconds)


def _train_on_batch(run: TrainRun, freezing: FreezeSchedule, batch: Batch) -> None:
    """Take a step, and call the callbacks before and after it."""
    state, config, index = run.state, run.config, run.state.step
    loss_function, tasks = freezing(index, batch)
    flags = _collect_stop_flags(run)
    for callback in run.callbacks:
        flags |= callback.before_step(run, batch, tasks)
    seed_step(run.seed, index)
    with explain_out_of_memory(config.batch_size, tuple(batch.images.shape)):
        result = take_step(
            state,
            loss_function,
            move_to_device(batch, next(state.model.parameters()).device),
            lr=config.learning_rate(index),
            clip_norm=config.clip_norm,
            precision=config.precision,
            flags=flags,
            with_weights=config.is_due(index + 1, config.log_every),
            log_gradients=config.log_gradients_every > 0 and index % config.log_gradients_every == 0,
            tasks=tasks,
        )
    if not result.problem:
        losses = result.losses
        state.schedule.observe({task: losses[task] for task in state.schedule.all_tasks if task in losses})
    run.stop_code = _find_stop_code(result.flags)
    for callback in run.callbacks:
        callback.after_step(run, result)


def _collect_stop_flags(run: TrainRun) -> dict[str, int]:
    """Why this rank wants to stop; summed over the ranks, so that all stop after the same step."""
    return {**run.stop_request.flags, LOG_UNWRITABLE: int(bool(run.log.failure))}


def _find_stop_code(flags: dict[str, int]) -> int:
    return exit_code(flags) or min(flags[LOG_UNWRITABLE], 1)


def _limit_batches(
    batches: Callable[[int], Iterable[Batch]], first_step: int, total_steps: int
) -> Generator[Batch, None, None]:
    """The batches of the steps ``first_step`` to ``total_steps``. Raises DataError if they end early."""
    if first_step >= total_steps:
        return
    number = first_step
    for batch in batches(first_step):
        yield batch
        number += 1
        if number == total_steps:
            return
    raise DataError(
        f"The data ended after {number} steps, expected {total_steps}. A training set must repeat without end."
    )
