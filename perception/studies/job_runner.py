"""Runs trainings as parallel child processes, each with an ordinary run folder; safe to interrupt.

Finished runs are not repeated, interrupted ones are resumed. On Ctrl-C and SIGTERM, every child finishes its step and
saves. The study folder stays locked while any of its processes is alive, orphans included.
"""

from __future__ import annotations

import dataclasses
import fcntl
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from perception import checkpoint, config
from perception.engine.interrupt import catch_stop_signals
from perception.engine.log import FILE
from perception.files.event_lines import parse_event
from perception.recipe import Recipe
from perception.report import read_events
from perception.types import CheckpointError, PerceptionError

POLL_SECONDS = 0.25
LOCK, OUTPUT = ".lock", "output.txt"
_STOP_TIMEOUT = 120.0
"""Seconds for a child to finish its step and save."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A training to run.

    Attributes:
        name: name for messages.
        recipe: its recipe.
        folder: its run folder.
    """

    name: str
    recipe: Recipe
    folder: Path

    @property
    def steps(self) -> int:
        """Number of steps of the recipe."""
        return self.recipe.train.steps

    @property
    def num_images(self) -> int:
        """Number of training images over all steps, as a measure of the work."""
        return self.steps * self.recipe.train.batch_size


@dataclass(slots=True)
class _TrainingProcess:
    run: TrainingRun
    process: subprocess.Popen
    output: IO[str]
    stopped: bool = False


@contextmanager
def lock_folder(folder: Path) -> Iterator[int]:
    """Create and lock ``folder``; yields the lock's descriptor, which children inherit.

    Raises:
        PerceptionError: another process uses the folder, or this runs under torchrun.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise PerceptionError("A study is one process that starts the trainings itself. Run it without torchrun.")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PerceptionError(
                f"{folder} is in use by another process, or by a training that it left running. Wait for it, stop it, "
                "or choose another folder with --out."
            ) from error
        yield file.fileno()


def train_all(
    runs: Iterable[TrainingRun],
    jobs: int,
    lock_descriptor: int,
    *,
    on_finished: Callable[[TrainingRun], None] = lambda run: None,
    should_stop: Callable[[TrainingRun], bool] = lambda run: False,
    on_progress: Callable[[Sequence[TrainingRun]], None] = lambda running: None,
    fail_fast: bool = True,
) -> dict[str, str]:
    """Train the runs, at most ``jobs`` at a time.

    Args:
        runs: iterated lazily, whenever a job is free.
        jobs: largest number of parallel trainings.
        lock_descriptor: the descriptor from `lock_folder`.
        on_finished: called for every finished run.
        should_stop: called repeatedly; True stops the run early, without ``on_finished``.
        on_progress: called repeatedly with the active runs.
        fail_fast: stop everything if a run fails before its first step, because similar runs would fail, too.

    Returns:
        Name -> error, for the failed runs.

    Raises:
        PerceptionError: a run failed before its first step (``fail_fast``).
        SystemExit: after Ctrl-C or SIGTERM, when everything is saved.
    """
    waiting, children, failures = iter(runs), [], {}
    with catch_stop_signals() as interruption:
        try:
            exhausted = False
            while children or not exhausted:
                while len(children) < jobs and not exhausted:
                    run = next(waiting, None)
                    if run is None:
                        exhausted = True
                    elif is_finished(run):
                        on_finished(run)
                    else:
                        children.append(_start_process(run, lock_descriptor))
                time.sleep(POLL_SECONDS)
                if interruption.signal_number:
                    _stop_processes(children)
                    raise SystemExit(128 + interruption.signal_number)
                for child in [child for child in children if child.process.poll() is not None]:
                    children.remove(child)
                    child.output.close()
                    if child.process.returncode == 0 and is_finished(child.run):
                        on_finished(child.run)
                    elif not child.stopped:
                        failures[child.run.name] = _describe_failure(child)
                        if fail_fast and read_step(child.run) == 0:
                            raise PerceptionError(
                                f"A training failed before its first step. {failures[child.run.name]}"
                            )
                for child in children:
                    if not child.stopped and should_stop(child.run):
                        child.stopped = True
                        child.process.send_signal(signal.SIGTERM)
                on_progress([child.run for child in children])
        finally:
            for child in children:
                child.process.kill()
                child.process.wait()
                child.output.close()
    return failures


def choose_num_jobs(threads: int | None, max_jobs: int) -> int:
    """Choose the number of parallel trainings: one per ``threads`` cores, at most ``max_jobs``; 1 with a GPU."""
    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(max_jobs, cores // (threads or 1)))


def fix_num_threads(recipe: Recipe) -> Recipe:
    """Set ``train.threads`` to 1 if it is not set, because results must not depend on the number of cores."""
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, threads=recipe.train.threads or 1))


def is_finished(run: TrainingRun) -> bool:
    """Whether a run is trained, evaluated and reported.

    Raises:
        CheckpointError: the folder holds a run of another recipe, or its recipe.yaml is damaged.
    """
    written = checkpoint.read_recipe(run.folder)
    if not written:
        return False
    if checkpoint.has_checkpoints(run.folder) and written != config.dump_yaml(run.recipe):
        raise CheckpointError(
            f"{run.folder} was trained with a recipe that differs from this study's. Choose another folder with --out, "
            "or remove it."
        )
    reported = (run.folder / "report.html").is_file() or not run.recipe.data.validation
    return read_step(run) == run.steps and checkpoint.has_checkpoints(run.folder) and reported


def read_step(run: TrainingRun) -> int:
    """Number of steps done according to the log."""
    event = _read_last_event(run.folder / FILE)
    return int(event["step"]) if event else 0


def read_last_metrics(run: TrainingRun) -> dict[str, float]:
    """Read the metrics and the "score" of the last step.

    The best checkpoint is not used, because it was selected on the held-out images.

    Raises:
        CheckpointError: the run has no evaluation of the last step.
    """
    log = run.folder / FILE
    events = [e for e in read_events(log) if e.get("kind") == "evaluation"] if log.is_file() else []
    if not events or events[-1]["step"] != run.steps:
        raise CheckpointError(f"{run.folder} holds no evaluation of step {run.steps}. Add a source to data.validation.")
    return {
        key: value if isinstance(value, (int, float)) else math.nan
        for key, value in events[-1].items()
        if "/" in key or key == "score"
    }


def _start_process(run: TrainingRun, lock_descriptor: int) -> _TrainingProcess:
    run.folder.mkdir(parents=True, exist_ok=True)
    if not checkpoint.has_checkpoints(run.folder):
        checkpoint.write_atomically(run.folder / checkpoint.RECIPE, config.dump_yaml(run.recipe))
    output = (run.folder / OUTPUT).open("a", encoding="utf-8")
    process = subprocess.Popen(
        build_command(run),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": str(run.recipe.train.threads or 1)},
        pass_fds=[lock_descriptor],
        start_new_session=True,  # Ctrl-C reaches only the parent, which forwards it
    )
    return _TrainingProcess(run, process, output)


def build_command(run: TrainingRun) -> list[str]:
    """Command that starts or resumes a run."""
    if checkpoint.has_checkpoints(run.folder):
        arguments = ["--resume", str(run.folder)]
    else:
        arguments = [str(run.folder / checkpoint.RECIPE), "--out", str(run.folder)]
    return [sys.executable, "-m", "perception.cli", "train", *arguments]


def _stop_processes(children: Sequence[_TrainingProcess]) -> None:
    """Ask every child to finish its step and save, and wait."""
    print(f"Stopping {len(children)} trainings; each one saves. Run the same command to continue.", file=sys.stderr)  # noqa: T201
    for child in children:
        child.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _STOP_TIMEOUT
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()


def _describe_failure(child: _TrainingProcess) -> str:
    """Reason of a child's failure, from its output."""
    path = child.run.folder / OUTPUT
    said = path.read_text("utf-8", "replace").strip()
    _, mark, told = f"\n{said}".rpartition("\nperception train: ")
    reason = told if mark else (said.splitlines() or [f"it ended with code {child.process.returncode}"])[-1]
    return f"{child.run.name}: {reason} (full output: {path})"


def _read_last_event(log: Path) -> dict[str, Any] | None:
    """The last complete event of a log, without reading the whole file."""
    if not log.is_file():
        return None
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - (1 << 16)))
        lines = file.read().split(b"\n")
    return next((event for event in map(parse_event, reversed(lines)) if event is not None), None)
