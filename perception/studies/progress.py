"""Progress of several trainings: bars on a terminal, otherwise one line per minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from perception.studies.job_runner import TrainingRun, is_finished, read_step

PRINT_INTERVAL = 60.0


@contextmanager
def show_progress(
    runs: Sequence[TrainingRun], jobs: int, expected_runs: int = 0, abandoned: Collection[str] = ()
) -> Iterator[Callable[[Sequence[TrainingRun]], None]]:
    """Show the progress of several trainings.

    Args:
        runs: the known runs; may grow.
        jobs: parallel trainings.
        expected_runs: final number of runs, if larger; future runs count as the mean of the known ones.
        abandoned: names of failed runs and of runs that were stopped early; may grow.

    Yields:
        A function to call repeatedly with the active runs.
    """
    console, began = Console(stderr=True), time.monotonic()
    done_before = sum(run.name in abandoned or is_finished(run) for run in runs)
    first = _count_images(runs, abandoned)
    console.print(
        f"{max(expected_runs, len(runs))} trainings, {done_before} of them done; {jobs} in parallel",
        markup=False,
        highlight=False,
    )
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
        console=console, disable=not console.is_terminal, transient=True,
    )  # fmt: skip
    whole = bar.add_task("all images", total=None, text="ETA ?")
    shown: dict[str, TaskID] = {}
    last = began

    def advance(running: Sequence[TrainingRun]) -> None:
        nonlocal last
        now = time.monotonic()
        if not runs or now - last < (1.0 if console.is_terminal else PRINT_INTERVAL):
            return
        last = now
        total = sum(run.num_images for run in runs) * max(expected_runs, len(runs)) // len(runs)
        done = _count_images(runs, abandoned)
        text = f"ETA {_format_remaining(now - began, done - first, total - done)}"
        for name in [name for name in shown if name not in {run.name for run in running}]:
            bar.remove_task(shown.pop(name))
        for run in running:
            if run.name not in shown:
                shown[run.name] = bar.add_task(run.name, total=run.steps, text="steps")
            bar.update(shown[run.name], completed=read_step(run))
        bar.update(whole, completed=done, total=total, text=text)
        if bar.disable:
            each = ", ".join(f"{run.name}: {read_step(run)}/{run.steps}" for run in running)
            console.print(f"{done / total:.0%}  {text}  {each}", markup=False, highlight=False, soft_wrap=True)

    with bar:
        yield advance


def _count_images(runs: Sequence[TrainingRun], abandoned: Collection[str]) -> int:
    """Images trained so far; abandoned runs count as complete."""
    return sum(
        run.num_images if run.name in abandoned else min(read_step(run), run.steps) * run.recipe.train.batch_size
        for run in runs
    )


def _format_remaining(seconds: float, done: int, left: int) -> str:
    return str(timedelta(seconds=round(seconds / done * left))) if done > 0 else "?"
