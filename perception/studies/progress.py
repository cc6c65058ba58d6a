"""How far several trainings are: a bar for each and one for all on a terminal, else a line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from perception.studies.job_runner import Run, is_finished, progress

EVERY = 60.0


@contextmanager
def told(
    runs: Sequence[Run], jobs: int, expected: int = 0, closed: Collection[str] = ()
) -> Iterator[Callable[[Sequence[Run]], None]]:
    """Yields the function that is told, again and again, which runs are being trained.

    runs:     those that are known; may grow
    expected: how many there will be, where that is more; those to come are taken for as long as the known
    closed:   names of those that were given up, however far they came; may grow
    """
    console, began = Console(stderr=True), time.monotonic()
    done_before = sum(run.name in closed or is_finished(run) for run in runs)
    first = _pictures(runs, closed)
    console.print(
        f"{max(expected, len(runs))} trainings, {done_before} of them done; {jobs} at a time",
        markup=False,
        highlight=False,
    )
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
        console=console, disable=not console.is_terminal, transient=True,
    )  # fmt: skip
    whole = bar.add_task("pictures in all", total=None, text="ETA ?")
    shown: dict[str, TaskID] = {}
    last = began

    def advance(running: Sequence[Run]) -> None:
        nonlocal last
        now = time.monotonic()
        if not runs or now - last < (1.0 if console.is_terminal else EVERY):
            return
        last = now
        total = sum(run.pictures for run in runs) * max(expected, len(runs)) // len(runs)
        done = _pictures(runs, closed)
        text = f"ETA {_remaining(now - began, done - first, total - done)}"
        for name in [name for name in shown if name not in {run.name for run in running}]:
            bar.remove_task(shown.pop(name))
        for run in running:
            if run.name not in shown:
                shown[run.name] = bar.add_task(run.name, total=run.steps, text="steps")
            bar.update(shown[run.name], completed=progress(run))
        bar.update(whole, completed=done, total=total, text=text)
        if bar.disable:
            each = ", ".join(f"{run.name}: {progress(run)}/{run.steps}" for run in running)
            console.print(f"{done / total:.0%}  {text}  {each}", markup=False, highlight=False, soft_wrap=True)

    with bar:
        yield advance


def _pictures(runs: Sequence[Run], closed: Collection[str]) -> int:
    """Trained so far; of runs that were given up, all."""
    return sum(
        run.pictures if run.name in closed else min(progress(run), run.steps) * run.recipe.train.batch_size
        for run in runs
    )


def _remaining(seconds: float, done: int, left: int) -> str:
    return str(timedelta(seconds=round(seconds / done * left))) if done > 0 else "?"
