"""Trainings as child processes: several at a time, each an ordinary run folder, all of it safe to interrupt.

A run that is finished is not repeated, one that was interrupted is resumed. Ctrl-C and SIGTERM let every child finish
its step and save. The folder of a study is locked for as long as any of its processes lives, orphans included.
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
"""Seconds that a child gets to finish its step and save."""


@dataclass(frozen=True, slots=True)
class TrainingRun:
    """A training to be done. name: what people call it. folder: where it goes."""

    name: str
    recipe: Recipe
    folder: Path

    @property
    def steps(self) -> int:
        return self.recipe.train.steps

    @property
    def num_images(self) -> int:
        """How much work it is."""
        return self.steps * self.recipe.train.batch_size


@dataclass(slots=True)
class _TrainingProcess:
    run: TrainingRun
    process: subprocess.Popen
    output: IO[str]
    stopped: bool = False


@contextmanager
def lock_folder(folder: Path) -> Iterator[int]:
    """Make ``folder`` and hold it alone; yields the descriptor that children inherit. Raises PerceptionError."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise PerceptionError("A study is one process, which starts the trainings itself. Run it without torchrun.")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise PerceptionError(
                f"{folder} is in use by another process, or by a training that one left behind. Wait for it, end it, "
                "or give another folder with --out."
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
    """Train the runs, at most ``jobs`` at a time. Returns name -> what went wrong, of those that failed.

    runs:       asked for one more whenever a place is free
    lock_descriptor:       the descriptor of `lock_folder`
    on_finished:   told of every run that came to its end
    should_stop: asked again and again; True = the run is not worth going on with; it is not ``on_finished``
    on_progress:    told of the runs that are being trained, again and again
    fail_fast:  a run that fails before its first step says that the others would too

    Raises PerceptionError where one of runs that are all alike fails before its first step, SystemExit after Ctrl-C or
    SIGTERM, when all is saved.
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
    """One training for every ``threads`` cores, at most ``max_jobs``; one where there is a GPU."""
    if torch.cuda.is_available():
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(max_jobs, cores // (threads or 1)))


def fix_num_threads(recipe: Recipe) -> Recipe:
    """The recipe with its number of threads, 1 where it has none: results must not depend on the cores at hand."""
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, threads=recipe.train.threads or 1))


def is_finished(run: TrainingRun) -> bool:
    """Whether a run is trained, evaluated and reported. Raises CheckpointError where it is of another recipe, or its
    recipe.yaml is damaged."""
    written = checkpoint.read_recipe(run.folder)
    if not written:
        return False
    if checkpoint.has_checkpoints(run.folder) and written != config.dump_yaml(run.recipe):
        raise CheckpointError(
            f"{run.folder} was trained by another recipe than this study's. Give another folder with --out, or "
            "remove it."
        )
    reported = (run.folder / "report.html").is_file() or not run.recipe.data.validation
    return read_step(run) == run.steps and checkpoint.has_checkpoints(run.folder) and reported


def read_step(run: TrainingRun) -> int:
    """Steps done, as far as the log tells."""
    event = _read_last_event(run.folder / FILE)
    return int(event["step"]) if event else 0


def read_last_metrics(run: TrainingRun) -> dict[str, float]:
    """The metrics, and the "score", of the last step's weights.

    Not of the best ones: nothing is picked by looking at the held-out images.
    Raises CheckpointError where the run has none.
    """
    log = run.folder / FILE
    events = [e for e in read_events(log) if e.get("kind") == "evaluation"] if log.is_file() else []
    if not events or events[-1]["step"] != run.steps:
        raise CheckpointError(f"{run.folder} holds no evaluation of step {run.steps}. Give data.validation a source.")
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
        start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on
    )
    return _TrainingProcess(run, process, output)


def build_command(run: TrainingRun) -> list[str]:
    """What trains a run, or goes on with it."""
    if checkpoint.has_checkpoints(run.folder):
        arguments = ["--resume", str(run.folder)]
    else:
        arguments = [str(run.folder / checkpoint.RECIPE), "--out", str(run.folder)]
    return [sys.executable, "-m", "perception.cli", "train", *arguments]


def _stop_processes(children: Sequence[_TrainingProcess]) -> None:
    """Let every child finish its step and save."""
    print(f"Stopping {len(children)} trainings; each saves its step. Run the same command to go on.", file=sys.stderr)  # noqa: T201
    for child in children:
        child.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + _STOP_TIMEOUT
    for child in children:
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()


def _describe_failure(child: _TrainingProcess) -> str:
    """What a child died of."""
    path = child.run.folder / OUTPUT
    said = path.read_text("utf-8", "replace").strip()
    _, mark, told = f"\n{said}".rpartition("\nperception train: ")
    reason = told if mark else (said.splitlines() or [f"it ended with code {child.process.returncode}"])[-1]
    return f"{child.run.name}: {reason} (all it said: {path})"


def _read_last_event(log: Path) -> dict[str, Any] | None:
    """The last whole line of a log, without reading all of it."""
    if not log.is_file():
        return None
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - (1 << 16)))
        lines = file.read().split(b"\n")
    return next((event for event in map(parse_event, reversed(lines)) if event is not None), None)
