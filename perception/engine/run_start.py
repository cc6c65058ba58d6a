"""Start of a training: locks the run folder, checks that all ranks share it, starts fresh or resumes a checkpoint."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

from timm.utils.model_ema import ModelEmaV3

from perception import __version__, checkpoint
from perception.engine import distributed, optim
from perception.engine.log import TrainLog
from perception.engine.train_config import TrainConfig
from perception.engine.train_state import TrainState
from perception.model import MultiTaskModel
from perception.mtl.balancer import Balancer
from perception.mtl.schedule import TaskSchedule, TaskScheduleConfig
from perception.types import CheckpointError, ConfigError

LOCK = "training.lock"
_TOKEN = ".shared-by-all-ranks"
_VISIBILITY_TIMEOUT = 15.0
"""Seconds for a file to become visible on other machines: network file systems cache for a while that it is missing."""


@contextmanager
def lock_run_folder(run_folder: Path, resume: bool) -> Iterator[None]:
    """Create the run folder, or find it for a resume, and lock it against other trainings. Every rank calls this.

    The lock is a kernel record lock: it works over NFS, forked workers do not inherit it, and it ends with the process.

    Args:
        run_folder: the run folder.
        resume: the folder must exist and hold a checkpoint.

    Yields:
        Nothing; the lock is held inside the context.

    Raises:
        CheckpointError: another process holds the lock, the folder cannot be written, or a rank cannot see it.
    """
    held = distributed.run_on_main(lambda: _acquire_lock(run_folder, resume))
    try:
        _require_shared_folder(run_folder)
        yield
    finally:
        if held is not None:
            os.close(held)


def _acquire_lock(run_folder: Path, resume: bool) -> int:
    """Lock the folder. Returns the file descriptor of the lock."""
    if resume and not run_folder.is_dir():
        raise CheckpointError(f"{run_folder} is not a folder, so there is no checkpoint to resume from.")
    path = run_folder / LOCK
    with explain_write_errors(run_folder):
        run_folder.mkdir(parents=True, exist_ok=True)
        held = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(held, 200).decode("utf-8", "replace").strip() or "another process"
        os.close(held)
        raise CheckpointError(
            f"{run_folder} is being trained by {holder}, which holds {path}. "
            "Wait until it ends, stop it, or use another folder."
        ) from None
    except OSError:
        pass  # a file system without locks
    try:
        with explain_write_errors(run_folder):
            os.truncate(held, 0)
            os.write(held, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
            checkpoint.clean_up(run_folder)
        if resume and not checkpoint.has_checkpoints(run_folder):
            raise CheckpointError(f"{run_folder} holds no checkpoint to resume from. Start again without --resume.")
    except CheckpointError:
        os.close(held)
        raise
    return held


def _require_shared_folder(run_folder: Path) -> None:
    """Raise CheckpointError if a rank does not see what rank 0 writes to the run folder."""
    if distributed.world_size() == 1:
        return
    path, token = run_folder / _TOKEN, secrets.token_hex(8)

    def put() -> None:
        with explain_write_errors(run_folder):
            checkpoint.write_atomically(path, token)

    distributed.run_on_main(put)
    token = distributed.broadcast(token)
    places = distributed.all_gather((socket.gethostname(), _has_token(path, token)))
    if distributed.is_main_process():
        with suppress(OSError):
            path.unlink(missing_ok=True)
    blind = sorted({host for host, sees in places if not sees})
    if blind:
        raise CheckpointError(
            f"{', '.join(blind)} cannot see the run folder {run_folder.absolute()} of {places[0][0]}. Every rank reads "
            "checkpoints from it. Use a folder on a file system that all machines share."
        )


def _has_token(path: Path, token: str) -> bool:
    """Whether a file holds the token, now or within the timeout."""
    deadline = time.monotonic() + _VISIBILITY_TIMEOUT
    while True:
        with suppress(OSError):
            os.listdir(path.parent)  # noqa: PTH208 - makes a network file system refresh its cache
            if path.read_text("utf-8") == token:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)


@contextmanager
def explain_write_errors(run_folder: Path) -> Iterator[None]:
    """Convert OSError while writing a run's files to CheckpointError."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"Could not write to the run folder {run_folder}: {error}. Free some space, make the folder writable, or "
            "use another one."
        ) from error


def build_train_state(
    model: MultiTaskModel,
    balancer: Balancer,
    config: TrainConfig,
    schedule: TaskSchedule | None = None,
    data_fingerprints: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
) -> TrainState:
    """Prepare the network for training, and build its optimizer and its moving average.

    Args:
        model: the network, on its device.
        balancer: moved to the same device.
        config: settings of the training.
        schedule: which tasks a step trains; None means all tasks in every step.
        data_fingerprints: source name -> part -> fingerprint.

    Raises:
        ConfigError: the batch does not divide into the ranks, or the schedule does not fit the number of steps.
    """
    if config.batch_size % distributed.world_size():
        raise ConfigError(
            f"train.batch_size {config.batch_size} is not a multiple of the {distributed.world_size()} processes."
        )
    schedule = schedule or TaskSchedule(TaskScheduleConfig(), tuple(model.tasks))
    schedule.require_steps(config.steps)
    balancer.to(next(model.parameters()).device)
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
    ema = ModelEmaV3(model, decay=config.ema_decay, use_warmup=True)
    fingerprints = {name: dict(parts) for name, parts in data_fingerprints.items()}
    return TrainState(model, balancer, schedule, optimizer, ema, fingerprints)


def open_log(state: TrainState, run_folder: Path, config: TrainConfig, warnings: Iterable[str] = ()) -> TrainLog:
    """Open the log of a run at the current step, and write ``warnings``. Raises CheckpointError if it cannot."""
    with explain_write_errors(run_folder):
        log = TrainLog(
            run_folder,
            state.step,
            config.steps,
            active=distributed.is_main_process(),
            seconds=state.seconds,
            tensorboard=config.tensorboard,
        )
    for sentence in warnings:
        log.write_warning(state.step, sentence)
    return log


def start_or_resume(train_state: TrainState, run_folder: Path, recipe_text: str, resume: bool, force: bool) -> None:
    """Prepare a fresh run folder, or load the newest valid checkpoint.

    Args:
        train_state: filled from the checkpoint on a resume.
        run_folder: the run folder.
        recipe_text: YAML text of the resolved recipe.
        resume: continue from the newest checkpoint.
        force: do not compare the recipe and the data with those of the checkpoint.

    Raises:
        CheckpointError: the folder already holds checkpoints, or the checkpoint does not match the recipe, the data or
            the network.
    """
    if not resume:
        if checkpoint.has_checkpoints(run_folder):
            raise CheckpointError(
                f"{run_folder} already holds checkpoints. Continue with --resume {run_folder}, or use another folder."
            )
        distributed.barrier()
        if distributed.is_main_process():
            with explain_write_errors(run_folder):
                checkpoint.write_atomically(run_folder / checkpoint.RECIPE, recipe_text)
        return
    found = checkpoint.load(run_folder, "last")
    if not force:
        checkpoint.require_same_recipe(found, recipe_text)
    state = checkpoint.load_train_state(found.path)
    if not force:
        _require_same_data(found, state.get("data_fingerprints"), train_state.data_fingerprints)
    checkpoint.load_into_model(train_state.ema.module, found)
    try:
        train_state.load_state_dict(state)
    except Exception as error:  # the file may hold anything instead of numbers and tensors
        raise CheckpointError(
            f"{found.path / checkpoint.STATE} does not fit this network, balancer and optimizer: "
            f"{type(error).__name__}: {error} Use the recipe of the run, or remove this checkpoint to resume from the "
            "previous one."
        ) from error
    if train_state.step != found.step:
        raise CheckpointError(
            f"{found.path / checkpoint.STATE} is of step {train_state.step}, "
            f"but {checkpoint.MANIFEST} says {found.step}. "
            "Remove this checkpoint to resume from the previous one."
        )
    distributed.barrier()
    if distributed.is_main_process():
        with explain_write_errors(run_folder):
            checkpoint.clean_up(run_folder, found.step)
            checkpoint.write_atomically(run_folder / checkpoint.RECIPE, recipe_text)


def _require_same_data(
    loaded: checkpoint.Checkpoint, saved_data: object, current_data: Mapping[str, Mapping[str, str]]
) -> None:
    """Raise CheckpointError that names the sources whose images or labels have changed since the checkpoint.

    Warn about parts that cannot be compared, because another version may read labels differently.
    """
    comparable = None if loaded.version == __version__ else ("images",)
    changes, unknown = [], set[str]()
    for name, parts in current_data.items():
        found_before = saved_data.get(name) if isinstance(saved_data, dict) else None
        old = found_before if isinstance(found_before, dict) else {}
        known = {part for part in comparable or parts if part in old}
        changed = [part for part in parts if part in known and old[part] != parts[part]]
        unknown |= set(parts) - known
        if changed:
            changes.append(f"data.{name} has other {' and '.join(changed)}")
    if changes:
        raise CheckpointError(
            f"The data of {loaded.path} has changed on disk since: {'; '.join(changes)}. Restore it, resume with "
            "--force, or start a new run."
        )
    if unknown and distributed.is_main_process():
        by = f"by perception {loaded.version}" if loaded.version else "by another version"
        warnings.warn(
            f"{loaded.path} was written {by}, so changes in the {', '.join(sorted(unknown))} of its data cannot be "
            "detected. Continue only if they have not changed.",
            stacklevel=2,
        )
