"""Log of a training run: metrics.jsonl, TensorBoard, and a progress bar on stderr."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from perception.checkpoint import write_atomically
from perception.engine.console_lines import format_evaluation_line, format_number, format_training_line
from perception.files.event_lines import read_event_lines
from perception.files.safe_names import escape_unprintable

FILE, DAMAGED = "metrics.jsonl", "metrics.damaged.jsonl"
DEFAULT_WIDTH = 100
"""Columns of a line if stderr is not a terminal."""


@contextmanager
def progress_bar(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar with an ETA on stderr; yields a function that takes the number of finished items."""
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.update(task, completed=done)


class _PipeSafeConsole(Console):
    """A console that tolerates a closed pipe, so that a training outlives the terminal that shows it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class TrainLog:
    """Events of one run, one JSON object per line, flushed at once.

    Every event has "step" (optimizer steps done), "time" (seconds of training so far) and "kind" ("train",
    "evaluation", "quick_evaluation", "skipped"). NaN is written as null. Without a terminal, lines are printed instead
    of a bar.

    Args:
        run_folder: the run folder.
        step: steps done. Later lines of an existing file are dropped, so the file of a resumed run equals that of an
            uninterrupted one, except for times.
        total_steps: steps of the whole training.
        active: False (ranks other than 0) turns all methods into no-ops.
        seconds: training time before a resume.
        tensorboard: also write TensorBoard files.

    Attributes:
        failure: why the log cannot be written, for example because the disk is full; "" if it can.
    """

    def __init__(
        self,
        run_folder: Path,
        step: int,
        total_steps: int,
        *,
        active: bool = True,
        seconds: float = 0.0,
        tensorboard: bool = True,
    ) -> None:
        self._active, self._total_steps = active, total_steps
        self._lap_started_at = time.monotonic()
        self._started_at = self._lap_started_at - seconds
        self.failure = ""
        if not active:
            return
        run_folder.mkdir(parents=True, exist_ok=True)
        found = truncate_log(run_folder / FILE, step)
        self._file = (run_folder / FILE).open("a", encoding="utf-8")
        self._tensorboard = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(run_folder / "tensorboard"), purge_step=step + 1 if step else None)
            self._previous_excepthook, threading.excepthook = threading.excepthook, self._handle_thread_error
        self._console = _PipeSafeConsole(stderr=True)
        self._progress_bar = Progress(
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(elapsed_when_finished=False),
            TextColumn("{task.fields[text]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._progress_bar.start()
        self._progress_task = self._progress_bar.add_task("train", total=total_steps, completed=step, text="")
        self._first_step, self._opened_at = step, time.monotonic()
        if found:
            self.print_message(f"Warning: {found}")

    @property
    def seconds(self) -> float:
        """Training time so far in seconds, including the time before a resume."""
        return time.monotonic() - self._started_at

    def restart_lap(self) -> float:
        """Seconds since the last call, or since the log was opened."""
        before, self._lap_started_at = self._lap_started_at, time.monotonic()
        return self._lap_started_at - before

    def write_event(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Write one event to the file and to TensorBoard.

        Evaluations are also printed on stderr; without a progress bar, training events are, too.
        """
        if not self._active:
            return
        record = {"step": step, "time": round(self.seconds, 3), "kind": kind, **values}
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        at, columns = f"{step}/{self._total_steps}", self._console.width if self._console.is_terminal else DEFAULT_WIDTH
        with self.record_failure():
            self._file.write(
                json.dumps({key: to_json_value(value) for key, value in record.items()}, allow_nan=False) + "\n"
            )
            self._file.flush()
            if self._tensorboard is not None:
                for key, value in numbers.items():
                    self._tensorboard.add_scalar(key if kind == "train" else f"{kind}/{key}", value, step)
        if kind in ("evaluation", "quick_evaluation"):
            self.print_message(format_evaluation_line(at, kind, numbers, columns))
        elif kind == "train" and self._progress_bar.disable:
            self.print_message(format_training_line(at, numbers, self._estimate_remaining(step), columns))

    def update_progress(self, step: int, loss: float) -> None:
        """Update the progress bar."""
        if self._active:
            self._progress_bar.update(self._progress_task, completed=step, text=f"loss {format_number(loss)}")

    def print_message(self, text: str) -> None:
        """Print a message on stderr, above the bar; on a terminal, lines wrap between words."""
        if self._active:
            lines, whole = "\n".join(map(escape_unprintable, text.split("\n"))), not self._console.is_terminal
            self._console.print(lines, markup=False, highlight=False, soft_wrap=whole)

    def write_warning(self, step: int, text: str) -> None:
        """Write a sentence as an event of kind "warning", and print it."""
        self.write_event(step, "warning", {"text": text})
        self.print_message(f"Warning: {text}")

    def sync_to_disk(self) -> None:
        """Flush the log to disk, because a checkpoint must not be newer than its log."""
        if self._active:
            with self.record_failure():
                os.fsync(self._file.fileno())
                if self._tensorboard is not None:
                    self._tensorboard.flush()

    @contextmanager
    def record_failure(self) -> Iterator[None]:
        """Context that records the first OSError as `failure` instead of raising it."""
        try:
            yield
        except OSError as error:
            self.failure = self.failure or str(error)

    def _handle_thread_error(self, args: threading.ExceptHookArgs) -> None:
        """Suppress the traceback of an OSError in TensorBoard's thread; the next event reports the failure."""
        if type(args.thread).__module__.partition(".")[0] != "tensorboard" or not isinstance(args.exc_value, OSError):
            self._previous_excepthook(args)

    def _estimate_remaining(self, step: int) -> float | None:
        done = step - self._first_step
        return (time.monotonic() - self._opened_at) / done * (self._total_steps - step) if done > 0 else None

    def __enter__(self) -> TrainLog:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._active:
            self._progress_bar.stop()
            with self.record_failure():
                self._file.close()
            with self.record_failure():
                if self._tensorboard is not None:
                    threading.excepthook = self._previous_excepthook
                    self._tensorboard.close()


def truncate_log(path: Path, step: int) -> str:
    """Drop events after ``step`` and an incomplete last line; move damaged lines to another file.

    Returns:
        A sentence about the damaged lines; "" if there are none.
    """
    if not path.is_file():
        return ""
    events, damaged = read_event_lines(path)
    if damaged:
        with path.with_name(DAMAGED).open("ab") as aside:
            aside.write(b"".join(line + b"\n" for line in damaged.values()))
    write_atomically(path, b"".join(line + b"\n" for line, event in events if event["step"] <= step))
    numbers = ", ".join(str(number) for number in list(damaged)[:5]) + ", ..." * (len(damaged) > 5)
    return (
        f"{path}: line {numbers} is damaged and was moved to {DAMAGED}. The other lines were kept." if damaged else ""
    )


def to_json_value(value: object) -> Any:
    """Convert a value for JSON: numbers that are not finite become None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_metrics(path: Path, values: Mapping[str, Any]) -> None:
    """Write a flat metrics.json."""
    write_atomically(
        path, json.dumps({key: to_json_value(value) for key, value in values.items()}, indent=2, allow_nan=False) + "\n"
    )
