"""How far several trainings are: a bar for each and one for all on a terminal, else a line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from perception.studies.children import Run, is_finished, progress

EVERY = 60.0


@contextmanager
def told(runs: Sequence[Run], jobs: int) -> Iterator[Callable[[Sequence[Run]], None]]:
    """Yields the function that is told, again and again, which runs are being trained."""
    console, began = Console(stderr=True), time.monotonic()
    total, first = sum(run.pictures for run in runs), _pictures(runs)
    left = sum(not is_finished(run) for run in runs)
    console.print(
        f"{len(runs)} trainings, {len(runs) - left} of them done; {jobs} at a time", markup=False, highlight=False
    )
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"),
        console=console, disable=not console.is_terminal, transient=True,
    )  # fmt: skip
    whole = bar.add_task("pictures in all", total=total, text="ETA ?")
    shown: dict[str, TaskID] = {}
    last = began

    def advance(running: Sequence[Run]) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < (1.0 if console.is_terminal else EVERY):
            return
        last = now
        done = _pictures(runs)
        text = f"ETA {_remaining(now - began, done - first, total - done)}"
        for name in [name for name in shown if name not in {run.name for run in running}]:
            bar.remove_task(shown.pop(name))
        for run in running:
            if run.name not in shown:
                shown[run.name] = bar.add_task(run.name, total=run.steps, text="steps")
            bar.update(shown[run.name], completed=progress(run))
        bar.update(whole, completed=done, text=text)
        if bar.disable:
            each = ", ".join(f"{run.name}: {progress(run)}/{run.steps}" for run in running)
            console.print(f"{done / total:.0%}  {text}  {each}", markup=False, highlight=False, soft_wrap=True)

    with bar:
        yield advance


def _pictures(runs: Sequence[Run]) -> int:
    """Trained so far."""
    return sum(min(progress(run), run.steps) * run.recipe.train.batch_size for run in runs)


def _remaining(seconds: float, done: int, left: int) -> str:
    return str(timedelta(seconds=round(seconds / done * left))) if done > 0 else "?"
