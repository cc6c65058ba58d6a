"""The training loop: a function over objects, on one process or under torchrun.

Everything random is a function of (seed, step), the data included, so a run that was killed and resumed from its newest
checkpoint equals an uninterrupted one bit for bit on the CPU, with the same number of threads and ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from perception import checkpoint
from perception.config import configuration
from perception.engine import distributed, optim
from perception.engine.evaluate import Evaluation, task_scores
from perception.engine.following import Following
from perception.engine.interrupt import Interruption, exit_code, interruptible
from perception.engine.log import Log, write_metrics
from perception.engine.precision import Precision, explain_out_of_memory, move, reproducible
from perception.engine.step import Step, Training, seed_step, take_step
from perception.mtl.balancers import Balancer
from perception.mtl.schedule import Schedule, ScheduleConfig
from perception.mtl.see_saw import see_saws
from perception.types import Batch, CheckpointError, ConfigError, DataError, PerceptionError

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@configuration
class TrainConfig:
    """steps: optimiser steps. batch_size: pictures a step, over all ranks.

    optimizer: "adamw", or one of timm's by name: sgd, lamb, adopt, lion, muon, nadamw, ...
    lr, weight_decay: of the optimiser; the backbone learns at ``lr * backbone_lr_scale``: slower than what begins
        without weights. Give 1 where the backbone does, too.
    warmup_steps: of linear warm-up; then half a cosine down to ``lr * lr_floor`` at the last step.
    clip_norm: largest gradient norm; 0 = no clipping.
    ema_decay: of the moving average that is evaluated, saved and exported; reached by a warm-up, 1 - (1 + step)^(-2/3).
    sync_batchnorm: BatchNorm in training normalises over the pictures of all ranks, not over each rank's own.
    precision: "auto" = bfloat16 where the device multiplies it in hardware.
    threads: of the CPU per process; None = torch's default.
    log_every, evaluate_every, checkpoint_every: steps; 0 = only at the end.
    look_every: steps between two looks at the tasks' gradients (norms, cosines, conflicts) for the log; 0 = none.
    keep_checkpoints: how many of the newest stay, at least 2; the best one always does.
    max_skipped: so many steps in a row without finite losses and gradients end the training.
    """

    steps: Positive = 1000
    batch_size: Positive = 8
    optimizer: str = "adamw"
    lr: Amount = 3e-3
    weight_decay: Amount = 0.05
    backbone_lr_scale: Amount = 0.33
    warmup_steps: Count = 100
    lr_floor: Annotated[float, Field(ge=0, le=1)] = 0.01
    clip_norm: Amount = 10.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    sync_batchnorm: bool = True
    precision: Precision = "auto"
    threads: Positive | None = None
    log_every: Count = 10
    look_every: Count = 20
    evaluate_every: Count = 0
    checkpoint_every: Count = 500
    keep_checkpoints: Annotated[int, Field(ge=2)] = 2
    max_skipped: Positive = 10
    tensorboard: bool = True

    def __post_init__(self) -> None:
        optim.require_known(self.optimizer)


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
    data: Mapping[str, str] | None = None,
    evaluate: Callable[[Any], Evaluation] | None = None,
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
    data:     name of a source -> fingerprint of its files; a resume wants the same ones, unless ``force``
    warnings: sentences for the log and the report of a new run
    evaluate: measures the moving average (a network like ``model``); its ``score`` picks the best checkpoint, whose
              metrics go to metrics.json

    Raises CheckpointError (nothing or too much in ``run``, another recipe, full disk), PerceptionError (too many steps
    without finite losses, out of memory), SystemExit with 143 or 130 after SIGTERM or Ctrl-C, when the step is done and
    saved.
    """
    if config.batch_size % distributed.world():
        raise ConfigError(
            f"train.batch_size {config.batch_size} is no multiple of the {distributed.world()} processes."
        )
    device = next(model.parameters()).device
    evaluation: Evaluation | None = None
    with reproducible(device, config.threads), interruptible() as interruption:
        training = _prepare(model, balancer, config)
        training.schedule = schedule or Schedule(ScheduleConfig(), tuple(model.tasks))
        training.schedule.require_steps(config.steps)
        follow = Following(training.schedule, model)
        training.data = dict(data or {})
        _begin(training, run, recipe, resume, force)
        stream = _exactly(batches, training.step, config.steps)
        with closing(stream), _open_log(training, run, config) as log:
            for sentence in () if resume else warnings:
                log.event(training.step, "warning", {"text": sentence})
                log.say(f"Warning: {sentence}")
            for batch in stream:
                losses_of, tasks = follow(training.step, batch)
                step = _one_step(training, losses_of, tasks, move(batch, device), config, seed, interruption, log)
                stop = exit_code(step.flags)
                best = False
                if evaluate is not None and _due(training.step, config.evaluate_every, config.steps):
                    evaluation = evaluate(training.ema.module)
                    best = _note_evaluation(training, evaluation, run, log)
                    log.lap()
                if stop or best or _due(training.step, config.checkpoint_every, config.steps):
                    _save(training, run, recipe, best, config, log)
                if stop:
                    log.say(f"Stopped by a signal at step {training.step}; saved. Go on with --resume {run}.")
                    raise SystemExit(stop)
            distributed.barrier()  # nobody reads the last checkpoint before it is written
            return TrainResult(training.step, evaluation, training.skipped, log.seconds)


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
    )
    return Training(model, balancer, optimizer, ModelEmaV3(model, decay=config.ema_decay, use_warmup=True))


def _begin(training: Training, run: Path, recipe: str, resume: bool, force: bool) -> None:
    """A fresh run folder, or the state of the newest sound checkpoint."""
    if not resume:
        if checkpoint.has_checkpoints(run):
            raise CheckpointError(
                f"{run} already holds checkpoints. Go on with --resume {run}, or give another folder."
            )
        distributed.barrier()
        if distributed.is_main():
            run.mkdir(parents=True, exist_ok=True)
            checkpoint.tidy(run)
            checkpoint.write_atomically(run / checkpoint.RECIPE, recipe)
        return
    found = checkpoint.load(run, "last")
    if not force:
        checkpoint.require_same_recipe(found, recipe)
    state = checkpoint.load_train_state(found.path)
    if not force:
        _require_same_data(found.path, state.get("data", {}), training.data)
    checkpoint.fit(training.ema.module, found)
    try:
        training.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{found.path} does not fit this network and balancer: {error} Use its recipe."
        ) from error
    distributed.barrier()
    if distributed.is_main():
        checkpoint.tidy(run, found.step)
        checkpoint.write_atomically(run / checkpoint.RECIPE, recipe)


def _require_same_data(path: Path, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raise CheckpointError naming the sources whose files are not those that the run was trained on."""
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed:
        raise CheckpointError(
            f"The data of {path} has changed on disk since: source {', '.join(changed)} has other pictures, or "
            "other classes. Restore them, or resume with --force, or start a new run."
        )


def _open_log(training: Training, run: Path, config: TrainConfig) -> Log:
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
    interruption: Interruption,
    log: Log,
) -> Step:
    """A step and its log events. Raises PerceptionError after too many skipped steps in a row."""
    index = training.step
    logged = _due(index + 1, config.log_every, config.steps)
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
            flags=interruption.flags,
            with_weights=logged,
            look=config.look_every > 0 and index % config.look_every == 0,
            tasks=tasks,
        )
    if step.problem:
        _note_skip(training, step, batch, config, log)
    else:
        training.skipped_in_a_row = 0
        if training.schedule:
            losses = {name: step.values.get(f"loss/{name}") for name in training.schedule.all}
            training.schedule.observe({name: loss for name, loss in losses.items() if loss is not None})
        training.count({**step.values, "seconds_per_step": log.lap()})
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


def _note_evaluation(training: Training, evaluation: Evaluation, run: Path, log: Log) -> bool:
    """Log an evaluation. Returns whether it is the best so far; then its metrics become the run's metrics.json."""
    log.event(training.step, "evaluation", {**evaluation.metrics, "score": evaluation.score})
    for task, value in task_scores(training.model, evaluation.metrics).items():
        training.scores.setdefault(task, []).append(value)
    for found in see_saws(training.scores):
        log.event(training.step, "see_saw", found._asdict())
        log.say(
            f"Warning: see-saw: {found.falling} falls (score {found.fall:+.3f}) while {found.rising} rises "
            f"({found.rise:+.3f}), both beyond noise. The report says what may help."
        )
    best = evaluation.score > training.best
    if best:
        training.best = evaluation.score
        if distributed.is_main():
            write_metrics(
                run / "metrics.json", {"step": training.step, "score": evaluation.score, **evaluation.metrics}
            )
    return best


def _save(training: Training, run: Path, recipe: str, best: bool, config: TrainConfig, log: Log) -> None:
    if not distributed.is_main():
        return
    training.seconds = log.seconds
    log.sync()
    checkpoint.save(
        run,
        training.step,
        model=training.ema.module.state_dict(),
        train_state=training.state_dict(),
        recipe=recipe,
        best=best,
        keep=config.keep_checkpoints,
    )


def _due(step: int, every: int, steps: int) -> bool:
    return step == steps or (every > 0 and step % every == 0)
