"""What a training run tells: metrics.jsonl, TensorBoard, and a progress bar on stderr."""

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
from perception.engine.console_lines import evaluation_line, short, training_line
from perception.files.event_lines import read_lines
from perception.files.safe_names import printable

FILE, DAMAGED = "metrics.jsonl", "metrics.damaged.jsonl"
COLUMNS = 100
"""Of a line on a stderr that is no terminal."""


@contextmanager
def progress_bar(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with an ETA on stderr; yields the function that tells how many of ``total`` are done."""
    columns = (TextColumn(text), BarColumn(), MofNCompleteColumn(), TextColumn("ETA"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.update(task, completed=done)


class _Lasting(Console):
    """A console whose reader may go away: a training does not end with the terminal or pipe that shows it."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Log:
    """Events of one run, one JSON object a line, flushed at once.

    Every event has "step" (optimiser steps done), "time" (seconds of training so far) and "kind" ("train",
    "evaluation", "quick_evaluation", "skipped"). NaN is written as null. Opening at ``step`` drops the lines after it:
    the file of a resumed run equals that of an uninterrupted one, but for times. Where ``active`` is false (ranks other
    than 0) nothing happens. Without a terminal, lines are printed instead of a bar.

    failure: why nothing more is written, for example since the disk is full; "" while all is well
    """

    def __init__(
        self, run: Path, step: int, steps: int, *, active: bool = True, seconds: float = 0.0, tensorboard: bool = True
    ) -> None:
        self._active, self._steps = active, steps
        self._lap = time.monotonic()
        self._began = self._lap - seconds
        self.failure = ""
        if not active:
            return
        run.mkdir(parents=True, exist_ok=True)
        found = truncate(run / FILE, step)
        self._file = (run / FILE).open("a", encoding="utf-8")
        self._board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)
            self._hook, threading.excepthook = threading.excepthook, self._note_thread
        self._console = _Lasting(stderr=True)
        self._bar = Progress(
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
        self._bar.start()
        self._task = self._bar.add_task("train", total=steps, completed=step, text="")
        self._first, self._opened = step, time.monotonic()
        if found:
            self.say(f"Warning: {found}")

    @property
    def seconds(self) -> float:
        """Training time so far, the time before a resume included."""
        return time.monotonic() - self._began

    def lap(self) -> float:
        """Seconds since the last call, or since the log was opened."""
        before, self._lap = self._lap, time.monotonic()
        return self._lap - before

    def event(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        """Write one event, its numbers to TensorBoard too; an evaluation, or without a bar any, is a line on stderr."""
        if not self._active:
            return
        record = {"step": step, "time": round(self.seconds, 3), "kind": kind, **values}
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        at, columns = f"{step}/{self._steps}", self._console.width if self._console.is_terminal else COLUMNS
        with self.writing():
            self._file.write(json.dumps({key: plain(value) for key, value in record.items()}, allow_nan=False) + "\n")
            self._file.flush()
            if self._board is not None:
                for key, value in numbers.items():
                    self._board.add_scalar(key if kind == "train" else f"{kind}/{key}", value, step)
        if kind in ("evaluation", "quick_evaluation"):
            self.say(evaluation_line(at, kind, numbers, columns))
        elif kind == "train" and self._bar.disable:
            self.say(training_line(at, numbers, self._remaining(step), columns))

    def advance(self, step: int, loss: float) -> None:
        """Move the bar."""
        if self._active:
            self._bar.update(self._task, completed=step, text=f"loss {short(loss)}")

    def say(self, text: str) -> None:
        """A sentence on stderr, above the bar; a terminal gets it broken between words."""
        if self._active:
            lines, whole = "\n".join(map(printable, text.split("\n"))), not self._console.is_terminal
            self._console.print(lines, markup=False, highlight=False, soft_wrap=whole)

    def sync(self) -> None:
        """Everything logged so far is on the disk: a checkpoint must not be newer than its log."""
        if self._active:
            with self.writing():
                os.fsync(self._file.fileno())
                if self._board is not None:
                    self._board.flush()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Notes the first failure of what is written in it."""
        try:
            yield
        except OSError as error:
            self.failure = self.failure or str(error)

    def _note_thread(self, args: threading.ExceptHookArgs) -> None:
        """A failure of TensorBoard's thread is no traceback on the terminal: the next event fails by it."""
        if type(args.thread).__module__.partition(".")[0] != "tensorboard" or not isinstance(args.exc_value, OSError):
            self._hook(args)

    def _remaining(self, step: int) -> float | None:
        done = step - self._first
        return (time.monotonic() - self._opened) / done * (self._steps - step) if done > 0 else None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._active:
            self._bar.stop()
            with self.writing():
                self._file.close()
            with self.writing():
                if self._board is not None:
                    threading.excepthook = self._hook
                    self._board.close()


def truncate(path: Path, step: int) -> str:
    """Drop the events after ``step``, and a last line that a crash cut off; lines that are no event go to another file.

    Returns a sentence about these, "" where there are none.
    """
    if not path.is_file():
        return ""
    events, damaged = read_lines(path)
    if damaged:
        with path.with_name(DAMAGED).open("ab") as aside:
            aside.write(b"".join(line + b"\n" for line in damaged.values()))
    write_atomically(path, b"".join(line + b"\n" for line, event in events if event["step"] <= step))
    numbers = ", ".join(str(number) for number in list(damaged)[:5]) + ", ..." * (len(damaged) > 5)
    return f"{path}: line {numbers} is damaged and was moved to {DAMAGED}; the others stay." if damaged else ""


def plain(value: Any) -> Any:
    """A value as JSON can hold it: a number that is not finite becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_metrics(path: Path, values: Mapping[str, Any]) -> None:
    """Write a flat metrics.json."""
    write_atomically(
        path, json.dumps({key: plain(value) for key, value in values.items()}, indent=2, allow_nan=False) + "\n"
    )
