"""The training loop, for one process or torchrun.

All randomness, including the data, is a function of (seed, step). On the CPU, with the same number of threads and
ranks, a resumed run is therefore bit-identical to an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from perception.config import config_dataclass
from perception.engine import distributed, optim
from perception.engine.checkpointing import CheckpointWriter
from perception.engine.evaluate import Evaluation
from perception.engine.freezing import FreezeSchedule
from perception.engine.interrupt import SignalInterrupt, catch_stop_signals, exit_code
from perception.engine.label_check import LabelCheck
from perception.engine.log import TrainLog
from perception.engine.periodic_evaluator import PeriodicEvaluator, is_due
from perception.engine.precision import Precision, deterministic_mode, explain_out_of_memory, move_to_device
from perception.engine.rank_monitor import set_activity
from perception.engine.run_start import explain_write_errors, lock_run_folder, start_or_resume
from perception.engine.step import StepResult, TrainState, seed_step, take_step
from perception.mtl.balancers import Balancer
from perception.mtl.schedule import TaskSchedule, TaskScheduleConfig
from perception.types import Batch, ConfigError, DataError, PerceptionError

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]


LOG_UNWRITABLE = "unwritable"
"""Flag that tells all ranks that the log cannot be written."""
DEFAULT_EVALUATIONS, MIN_EVALUATION_INTERVAL = 12, 10
"""Default number of evaluations in a run, and the fewest steps between two of them."""


@config_dataclass
class TrainConfig:
    """Settings of a training.

    Attributes:
        steps: optimizer steps.
        batch_size: images per step, over all ranks.
        optimizer: "adamw", or one of timm's by name: sgd, lamb, adopt, lion, muon, nadamw, ...
        lr: learning rate.
        weight_decay: weight decay of the optimizer.
        backbone_lr_scale: the backbone trains at ``lr * backbone_lr_scale``, because it is pretrained. Use 1 if it
            is not.
        balance_lr_scale: parameters of the balancer (noise levels of `uncertainty`, scales of `imtl_l` and `imtl`)
            train at ``lr * balance_lr_scale``. A step changes them by about that much, so a short training needs a
            factor above 1 for them to matter.
        warmup_steps: steps of linear warm-up; then half a cosine down to ``lr * lr_floor`` at the last step.
        lr_floor: final learning rate, as a fraction of ``lr``.
        clip_norm: largest gradient norm; 0 means no clipping.
        ema_decay: decay of the moving average that is evaluated, saved and exported; warm-up 1 - (1 + step)^(-2/3).
        sync_batchnorm: in training, BatchNorm normalizes over the images of all ranks instead of each rank's own.
        precision: "auto" means bfloat16 if the device supports it in hardware.
        threads: CPU threads per process; None means torch's default.
        log_every: steps between log events; 0 means only at the end.
        log_gradients_every: steps between measurements of the tasks' gradients (norms, cosines, conflicts); 0: never.
        evaluate_every: steps between evaluations; 0 means only at the end, None about 12 times per run, at least 10
            steps apart. Negative transfer is detected from the 5th evaluation on.
        quick_images: number of held-out images for evaluations during training, spread evenly over each source and
            always the same. They select the best checkpoint. The weights of the last step and the best ones are also
            evaluated on all images. 0 means every evaluation uses all images.
        checkpoint_every: steps between checkpoints; 0 means only at the end.
        keep_checkpoints: number of newest checkpoints to keep, at least 2; the best one is always kept.
        max_skipped_steps: the training fails after this many steps in a row without finite losses and gradients.
        tensorboard: also write TensorBoard files.
    """

    steps: Annotated[int, Field(gt=0, le=10**9)] = 1000
    batch_size: Annotated[int, Field(gt=0, le=1 << 16)] = 8
    optimizer: str = "adamw"
    lr: NonNegativeFloat = 3e-3
    weight_decay: NonNegativeFloat = 0.05
    backbone_lr_scale: NonNegativeFloat = 0.33
    balance_lr_scale: NonNegativeFloat = 1.0
    warmup_steps: NonNegativeInt = 100
    lr_floor: Annotated[float, Field(ge=0, le=1)] = 0.01
    clip_norm: NonNegativeFloat = 10.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    sync_batchnorm: bool = True
    precision: Precision = "auto"
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    log_every: NonNegativeInt = 10
    log_gradients_every: NonNegativeInt = 20
    evaluate_every: NonNegativeInt | None = None
    quick_images: NonNegativeInt = 128
    checkpoint_every: NonNegativeInt = 500
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    max_skipped_steps: PositiveInt = 10
    tensorboard: bool = True

    def __post_init__(self) -> None:
        optim.require_known_optimizer(self.optimizer)

    @property
    def evaluation_interval(self) -> int:
        """Steps between two evaluations; 0 means only at the end."""
        every = self.evaluate_every
        return max(MIN_EVALUATION_INTERVAL, math.ceil(self.steps / DEFAULT_EVALUATIONS)) if every is None else every


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
    model: Any,
    batches: Callable[[int], Iterable[Batch]],
    config: TrainConfig,
    *,
    run_folder: Path,
    recipe_text: str,
    balancer: Balancer,
    schedule: TaskSchedule | None = None,
    data_fingerprints: Mapping[str, Mapping[str, str]] | None = None,
    evaluate: Callable[[Any], Evaluation] | None = None,
    quick_evaluate: Callable[[Any], Evaluation] | None = None,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    warnings: Sequence[str] = (),
) -> TrainResult:
    """Train ``model`` in place, on its device, and write the run folder. Every rank calls this.

    A stop signal acts at once during data loading and evaluation, otherwise after the current step. The training is
    then saved.

    Args:
        model: a `perception.model.MultiTaskModel`.
        batches: first step (from 0) -> this rank's batches from that step on, at least up to ``config.steps``. Batch n
            must not depend on where the iteration began.
        config: settings of the training.
        run_folder: the run folder.
        recipe_text: YAML text of the resolved recipe; must be unchanged on a resume, unless ``force``.
        balancer: combines the losses of the tasks.
        schedule: which tasks a step trains; None means all tasks in every step.
        data_fingerprints: source name -> part -> fingerprint; must be unchanged on a resume, unless ``force``.
        evaluate: evaluates the moving average (a network like ``model``). Its ``score`` selects the best checkpoint,
            whose metrics go to metrics.json.
        quick_evaluate: evaluates on fewer images; its ``score`` alone then ranks checkpoints. ``evaluate`` then
            runs at the last step.
        seed: seed of all randomness.
        resume: continue from the newest checkpoint in ``run_folder``.
        force: resume although the recipe or the data has changed.
        warnings: sentences for the log and the report of a new run.

    Raises:
        CheckpointError: ``run_folder`` holds no checkpoint (resume) or already some (fresh start), another process uses
            it, or the recipe or the data has changed.
        PerceptionError: too many steps without finite losses, or out of memory.
        DiskFullError: no disk space for a checkpoint, at the start or when one is due; in the latter case after saving.
        SystemExit: 143 or 130 after SIGTERM or Ctrl-C, 1 if the log cannot be written; each after saving.
    """
    if config.batch_size % distributed.world_size():
        raise ConfigError(
            f"train.batch_size {config.batch_size} is not a multiple of the {distributed.world_size()} processes."
        )
    device = next(model.parameters()).device
    with deterministic_mode(device, config.threads), catch_stop_signals() as interruption:
        training = _build_train_state(model, balancer, config)
        training.schedule = schedule or TaskSchedule(TaskScheduleConfig(), tuple(model.tasks))
        training.schedule.require_steps(config.steps)
        follow = FreezeSchedule(training.schedule, model)
        training.data_fingerprints = {name: dict(parts) for name, parts in (data_fingerprints or {}).items()}
        with ExitStack() as opened:
            opened.enter_context(lock_run_folder(run_folder, resume))
            start_or_resume(training, run_folder, recipe_text, resume, force)
            teaching = LabelCheck(model.tasks, training.data_fingerprints, training.label_counts)
            stream = opened.enter_context(closing(_limit_batches(batches, training.step, config.steps)))
            log = opened.enter_context(_open_log(training, run_folder, config))
            for sentence in () if resume else warnings:
                log.write_event(training.step, "warning", {"text": sentence})
                log.print_message(f"Warning: {sentence}")
            every, steps = config.evaluation_interval, config.steps
            assess = PeriodicEvaluator(training, evaluate, quick_evaluate, every, steps, run_folder, log, interruption)
            save = opened.enter_context(
                CheckpointWriter(training, run_folder, recipe_text, config.keep_checkpoints, log)
            )
            stop = assess() if resume and training.step else 0
            if training.step:  # a signal may have ended the run before this checkpoint
                save(assess.is_best, due=assess.is_best or is_due(training.step, config.checkpoint_every, steps))
            while not stop and training.step < steps:
                set_activity(f"at step {training.step + 1}")
                try:
                    with interruption.abort_on_signal() if distributed.world_size() == 1 else nullcontext():
                        batch = next(stream)
                except SignalInterrupt:
                    break
                losses_of, tasks = follow(training.step, batch)
                flags = {
                    **interruption.flags,
                    LOG_UNWRITABLE: int(bool(log.failure)),
                    **teaching.count_labels(batch, tasks),
                }
                step = _run_step(
                    training, losses_of, tasks, move_to_device(batch, device), config, seed, flags, teaching, log
                )
                if not training.task_scores and is_due(training.step, every, steps):
                    teaching.require_usable_labels()
                stop = exit_code(step.flags) or step.flags[LOG_UNWRITABLE] or assess()
                save(assess.is_best, due=assess.is_best or is_due(training.step, config.checkpoint_every, steps))
            set_activity("at the end")
            agreed = distributed.sum_over_ranks({**interruption.flags, LOG_UNWRITABLE: int(bool(log.failure))})
            if stop := stop or exit_code(agreed) or agreed[LOG_UNWRITABLE]:
                raise SystemExit(save.save_before_exit(stop))
            distributed.barrier()  # no rank reads the last checkpoint before it is written
            return TrainResult(training.step, assess.last_evaluation, training.skipped_steps, log.seconds)


def _build_train_state(model: nn.Module, balancer: Balancer, config: TrainConfig) -> TrainState:
    device = next(model.parameters()).device
    balancer.to(device)
    distributed.synchronize_batchnorm(model, enabled=config.sync_batchnorm)
    model.train()
    optimizer = optim.build_optimizer(
        config.optimizer,
        model,
        balancer.parameters(),
        lr=config.lr,
        weight_decay=config.weight_decay,
        backbone_lr_scale=config.backbone_lr_scale,
        extra_lr_scale=config.balance_lr_scale,
    )
    return TrainState(model, balancer, optimizer, ModelEmaV3(model, decay=config.ema_decay, use_warmup=True))


def _open_log(train_state: TrainState, run_folder: Path, config: TrainConfig) -> TrainLog:
    with explain_write_errors(run_folder):
        return TrainLog(
            run_folder,
            train_state.step,
            config.steps,
            active=distributed.is_main_process(),
            seconds=train_state.seconds,
            tensorboard=config.tensorboard,
        )


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


def _run_step(
    train_state: TrainState,
    loss_function: distributed.LossFunction,
    tasks: Collection[str] | None,
    batch: Batch,
    config: TrainConfig,
    seed: int,
    flags: Mapping[str, int],
    label_check: LabelCheck,
    log: TrainLog,
) -> StepResult:
    """Run a step and log it. Raises PerceptionError after too many skipped steps in a row."""
    index = train_state.step
    logged = is_due(index + 1, config.log_every, config.steps)
    lr = config.lr * optim.lr_factor(index, config.steps, config.warmup_steps, config.lr_floor)
    seed_step(seed, index)
    with explain_out_of_memory(config.batch_size, tuple(batch.images.shape)):
        step = take_step(
            train_state,
            loss_function,
            batch,
            lr=lr,
            clip_norm=config.clip_norm,
            precision=config.precision,
            flags=flags,
            with_weights=logged,
            log_gradients=config.log_gradients_every > 0 and index % config.log_gradients_every == 0,
            tasks=tasks,
        )
    seen, sentences = label_check.update(step.flags)
    for sentence in sentences:
        log.write_event(train_state.step, "warning", {"text": sentence})
        log.print_message(f"Warning: {sentence}")
    if step.problem:
        _record_skip(train_state, step, batch, config, log)
    else:
        train_state.consecutive_skipped = 0
        if train_state.schedule:
            losses = {name: step.values.get(f"loss/{name}") for name in train_state.schedule.all_tasks}
            train_state.schedule.observe({name: loss for name, loss in losses.items() if loss is not None})
        train_state.add_to_window({**step.values, **seen, "seconds_per_step": log.restart_lap()})
        log.update_progress(train_state.step, step.values["loss"])
    if logged:
        means = train_state.pop_window_means()
        seconds = means.pop("seconds_per_step", math.nan)
        speed = config.batch_size / seconds if seconds else math.nan
        log.write_event(
            train_state.step, "train", {"lr": lr, **means, **step.weights, "images_per_second": round(speed, 3)}
        )
    return step


def _record_skip(train_state: TrainState, step: StepResult, batch: Batch, config: TrainConfig, log: TrainLog) -> None:
    train_state.consecutive_skipped += 1
    train_state.skipped_steps += 1
    ids = [id for part in distributed.all_gather(list(batch.ids)) for id in part]
    log.write_event(train_state.step, "skipped", {"reason": step.problem, "ids": ids})
    log.print_message(f"Warning: step {train_state.step} was skipped: {step.problem}. Images: {', '.join(ids)}.")
    if train_state.consecutive_skipped >= config.max_skipped_steps:
        raise PerceptionError(
            f"{train_state.consecutive_skipped} steps in a row had no finite loss "
            f"and gradient; at step {train_state.step}: {step.problem}. "
            f"Check the labels of {', '.join(ids)}, or lower train.lr (now {config.lr})."
        )
