"""The training loop: a function over objects, on one process or under torchrun.

Everything random is a function of (seed, step), the data included, so a run that was killed and resumed from its newest
checkpoint equals an uninterrupted one bit for bit on the CPU, with the same number of threads and ranks.
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

from perception.config import configuration
from perception.engine import distributed, optim
from perception.engine.checkpointing import Saving
from perception.engine.evaluate import Evaluation
from perception.engine.evaluations import Assessment, due
from perception.engine.freezing import Following
from perception.engine.interrupt import Stopped, exit_code, interruptible
from perception.engine.label_check import Teaching
from perception.engine.log import Log
from perception.engine.precision import Precision, explain_out_of_memory, move, reproducible
from perception.engine.rank_watch import now_doing
from perception.engine.run_start import alone, begin, writing
from perception.engine.step import Step, Training, seed_step, take_step
from perception.mtl.balancers import Balancer
from perception.mtl.schedule import Schedule, ScheduleConfig
from perception.types import Batch, ConfigError, DataError, PerceptionError

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


UNWRITABLE = "unwritable"
"""The flag by which the ranks agree that the log cannot be written."""
EVALUATIONS, LEAST_INTERVAL = 12, 10
"""Evaluations of a run that does not say how many, and the fewest steps between two of them."""


@configuration
class TrainConfig:
    """steps: optimiser steps. batch_size: pictures a step, over all ranks.

    optimizer: "adamw", or one of timm's by name: sgd, lamb, adopt, lion, muon, nadamw, ...
    lr, weight_decay: of the optimiser; the backbone learns at ``lr * backbone_lr_scale``: slower than what begins
        without weights. Give 1 where the backbone does, too.
    balance_lr_scale: what a balancer learns by this optimiser (noise levels of `uncertainty`, scales of `imtl_l` and
        `imtl`) learns at ``lr * balance_lr_scale``. It moves by about that a step, so in a short training by too
        little to matter unless this is more than 1.
    warmup_steps: of linear warm-up; then half a cosine down to ``lr * lr_floor`` at the last step.
    clip_norm: largest gradient norm; 0 = no clipping.
    ema_decay: of the moving average that is evaluated, saved and exported; reached by a warm-up, 1 - (1 + step)^(-2/3).
    sync_batchnorm: BatchNorm in training normalises over the pictures of all ranks, not over each rank's own.
    precision: "auto" = bfloat16 where the device multiplies it in hardware.
    threads: of the CPU per process; None = torch's default.
    log_every, evaluate_every, checkpoint_every: steps; 0 = only at the end. evaluate_every: None = about 12 times a
        run, at least 10 steps apart; a see-saw of the tasks is told from the 5th evaluation on.
    quick_images: where there are more held-out pictures, evaluations on the way take so many, spread evenly over each
        source, the same ones each time: they pick the best checkpoint. The last step's weights and the best ones are
        also measured on all. 0 = every evaluation takes all.
    look_every: steps between two looks at the tasks' gradients (norms, cosines, conflicts) for the log; 0 = none.
    keep_checkpoints: how many of the newest stay, at least 2; the best one always does.
    max_skipped: so many steps in a row without finite losses and gradients end the training.
    """

    steps: Annotated[int, Field(gt=0, le=10**9)] = 1000
    batch_size: Annotated[int, Field(gt=0, le=1 << 16)] = 8
    optimizer: str = "adamw"
    lr: Amount = 3e-3
    weight_decay: Amount = 0.05
    backbone_lr_scale: Amount = 0.33
    balance_lr_scale: Amount = 1.0
    warmup_steps: Count = 100
    lr_floor: Annotated[float, Field(ge=0, le=1)] = 0.01
    clip_norm: Amount = 10.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    sync_batchnorm: bool = True
    precision: Precision = "auto"
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    log_every: Count = 10
    look_every: Count = 20
    evaluate_every: Count | None = None
    quick_images: Count = 128
    checkpoint_every: Count = 500
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    max_skipped: Positive = 10
    tensorboard: bool = True

    def __post_init__(self) -> None:
        optim.require_known(self.optimizer)

    @property
    def evaluation_interval(self) -> int:
        """Steps from one evaluation to the next; 0 = only at the end."""
        every = self.evaluate_every
        return max(LEAST_INTERVAL, math.ceil(self.steps / EVALUATIONS)) if every is None else every


@dataclass(frozen=True, slots=True)
class TrainResult:
    """step: steps done. evaluation: the last one, if any. skipped: steps left out. seconds: of training."""

    step: int
    evaluation: Evaluation | None
    skipped: int
    seconds: float


def train(
    model: Any,
    batches: Callable[[int], Iterable[Batch]],
    config: TrainConfig,
    *,
    run: Path,
    recipe: str,
    balancer: Balancer,
    schedule: Schedule | None = None,
    data: Mapping[str, Mapping[str, str]] | None = None,
    evaluate: Callable[[Any], Evaluation] | None = None,
    quick: Callable[[Any], Evaluation] | None = None,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    warnings: Sequence[str] = (),
) -> TrainResult:
    """Train ``model`` in place, on the device it is on, and write the run folder. Every rank calls this.

    batches:  first step (from 0) -> this rank's batches of that step and the following ones, at least up to
              ``config.steps``; batch n must not depend on where the iteration began
    recipe:   YAML text of the resolved recipe; a resume wants the same one, unless ``force``
    schedule: which tasks a step trains; None = all of them in every step
    data:     name of a source -> part of it -> fingerprint; a resume wants the same ones, unless ``force``
    warnings: sentences for the log and the report of a new run
    evaluate: measures the moving average (a network like ``model``); its ``score`` picks the best checkpoint, whose
              metrics go to metrics.json
    quick:    measures it on fewer pictures instead, and by its ``score`` alone checkpoints are compared; ``evaluate``
              follows at the last step

    A signal ends it at once where it waits for data or evaluates, else when the step is done; what is trained is
    saved.

    Raises CheckpointError (nothing or too much in ``run``, or another process that holds it; another recipe),
    PerceptionError (too many steps without finite losses, out of memory), FullError (no room on the disk for a
    checkpoint: at the start, or when one is due, after saving), SystemExit with 143 or 130 after SIGTERM or Ctrl-C,
    with 1 where the log cannot be written, each after saving.
    """
    if config.batch_size % distributed.world():
        raise ConfigError(
            f"train.batch_size {config.batch_size} is no multiple of the {distributed.world()} processes."
        )
    device = next(model.parameters()).device
    with reproducible(device, config.threads), interruptible() as interruption:
        training = _prepare(model, balancer, config)
        training.schedule = schedule or Schedule(ScheduleConfig(), tuple(model.tasks))
        training.schedule.require_steps(config.steps)
        follow = Following(training.schedule, model)
        training.data = {name: dict(parts) for name, parts in (data or {}).items()}
        with ExitStack() as opened:
            opened.enter_context(alone(run, resume))
            begin(training, run, recipe, resume, force)
            teaching = Teaching(model.tasks, training.data, training.taught)
            stream = opened.enter_context(closing(_exactly(batches, training.step, config.steps)))
            log = opened.enter_context(_open_log(training, run, config))
            for sentence in () if resume else warnings:
                log.event(training.step, "warning", {"text": sentence})
                log.say(f"Warning: {sentence}")
            every, steps = config.evaluation_interval, config.steps
            assess = Assessment(training, evaluate, quick, every, steps, run, log, interruption)
            save = opened.enter_context(Saving(training, run, recipe, config.keep_checkpoints, log))
            stop = assess() if resume and training.step else 0
            if training.step:  # what a signal had ended
                save(assess.best, wanted=assess.best or due(training.step, config.checkpoint_every, steps))
            while not stop and training.step < steps:
                now_doing(f"at step {training.step + 1}")
                try:
                    with interruption.abandonable() if distributed.world() == 1 else nullcontext():
                        batch = next(stream)
                except Stopped:
                    break
                losses_of, tasks = follow(training.step, batch)
                flags = {**interruption.flags, UNWRITABLE: int(bool(log.failure)), **teaching.look(batch, tasks)}
                step = _one_step(training, losses_of, tasks, move(batch, device), config, seed, flags, teaching, log)
                if not training.scores and due(training.step, every, steps):
                    teaching.require()
                stop = exit_code(step.flags) or step.flags[UNWRITABLE] or assess()
                save(assess.best, wanted=assess.best or due(training.step, config.checkpoint_every, steps))
            now_doing("at the end")
            agreed = distributed.summed({**interruption.flags, UNWRITABLE: int(bool(log.failure))})
            if stop := stop or exit_code(agreed) or agreed[UNWRITABLE]:
                raise SystemExit(save.and_say_why(stop))
            distributed.barrier()  # nobody reads the last checkpoint before it is written
            return TrainResult(training.step, assess.last, training.skipped, log.seconds)


def _prepare(model: nn.Module, balancer: Balancer, config: TrainConfig) -> Training:
    device = next(model.parameters()).device
    balancer.to(device)
    distributed.synchronise(model, wanted=config.sync_batchnorm)
    model.train()
    optimizer = optim.build(
        config.optimizer,
        model,
        balancer.parameters(),
        lr=config.lr,
        weight_decay=config.weight_decay,
        backbone_lr_scale=config.backbone_lr_scale,
        extra_lr_scale=config.balance_lr_scale,
    )
    return Training(model, balancer, optimizer, ModelEmaV3(model, decay=config.ema_decay, use_warmup=True))


def _open_log(training: Training, run: Path, config: TrainConfig) -> Log:
    with writing(run):
        return Log(
            run,
            training.step,
            config.steps,
            active=distributed.is_main(),
            seconds=training.seconds,
            tensorboard=config.tensorboard,
        )


def _exactly(batches: Callable[[int], Iterable[Batch]], first: int, steps: int) -> Generator[Batch, None, None]:
    """The batches of the steps ``first`` to ``steps``. Raises DataError where they end early."""
    if first >= steps:
        return
    number = first
    for batch in batches(first):
        yield batch
        number += 1
        if number == steps:
            return
    raise DataError(f"The data ended after {number} steps, expected {steps}. A training set must repeat without end.")


def _one_step(
    training: Training,
    losses_of: distributed.LossesOf,
    tasks: Collection[str] | None,
    batch: Batch,
    config: TrainConfig,
    seed: int,
    flags: Mapping[str, int],
    teaching: Teaching,
    log: Log,
) -> Step:
    """A step and its log events. Raises PerceptionError after too many skipped steps in a row."""
    index = training.step
    logged = due(index + 1, config.log_every, config.steps)
    lr = config.lr * optim.learning_rate(index, config.steps, config.warmup_steps, config.lr_floor)
    seed_step(seed, index)
    with explain_out_of_memory(config.batch_size, tuple(batch.images.shape)):
        step = take_step(
            training,
            losses_of,
            batch,
            lr=lr,
            clip_norm=config.clip_norm,
            precision=config.precision,
            flags=flags,
            with_weights=logged,
            look=config.look_every > 0 and index % config.look_every == 0,
            tasks=tasks,
        )
    seen, sentences = teaching.note(step.flags)
    for sentence in sentences:
        log.event(training.step, "warning", {"text": sentence})
        log.say(f"Warning: {sentence}")
    if step.problem:
        _note_skip(training, step, batch, config, log)
    else:
        training.skipped_in_a_row = 0
        if training.schedule:
            losses = {name: step.values.get(f"loss/{name}") for name in training.schedule.all}
            training.schedule.observe({name: loss for name, loss in losses.items() if loss is not None})
        training.count({**step.values, **seen, "seconds_per_step": log.lap()})
        log.advance(training.step, step.values["loss"])
    if logged:
        means = training.take_window()
        seconds = means.pop("seconds_per_step", math.nan)
        speed = config.batch_size / seconds if seconds else math.nan
        log.event(training.step, "train", {"lr": lr, **means, **step.weights, "images_per_second": round(speed, 3)})
    return step


def _note_skip(training: Training, step: Step, batch: Batch, config: TrainConfig, log: Log) -> None:
    training.skipped_in_a_row += 1
    training.skipped += 1
    ids = [id for part in distributed.everywhere(list(batch.ids)) for id in part]
    log.event(training.step, "skipped", {"reason": step.problem, "ids": ids})
    log.say(f"Warning: step {training.step} was skipped, its {step.problem}. Pictures: {', '.join(ids)}.")
    if training.skipped_in_a_row >= config.max_skipped:
        raise PerceptionError(
            f"{training.skipped_in_a_row} steps in a row had no finite loss and gradient; at step {training.step} the "
            f"{step.problem}. Look at the targets of {', '.join(ids)}, or lower train.lr (now {config.lr})."
        )
