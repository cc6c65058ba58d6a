"""Opening the readers of a recipe, each for itself, so that one that fails does not hide the others."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from perception.data import DATASETS
from perception.data.dataset import Reader, Source
from perception.doctor.accumulators import SourceState
from perception.doctor.data_plan import Plan
from perception.doctor.findings import TROUBLES, Finding, plain
from perception.doctor.worker_pool import Crew, Failure
from perception.types import ConfigError, DataError

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""``bar(text, total)`` shows progress while it is open; what it yields is told how many are done."""

SECONDS = 900.0
"""That one reader may take to open."""


def open_all(plan: Plan, crew: Crew, bar: Bar) -> list[SourceState]:
    """The state of every source, those that cannot be opened with a finding that says why."""
    states = [SourceState(planned) for planned in plan.sources]
    root = Path(plan.data.root)
    try:
        there = root.is_dir()
    except OSError:
        there = False
    if not there:
        what = f"There is no data folder at {plain(root.absolute())}."
        mend = "Set data.root in the recipe or on the command line: data.root=..."
        plan.findings.append(Finding("error", "no_root", "data", what, mend))
        for state in states:
            state.lost = set(plan.tasks)
        return states
    configs = [state.planned.config.labels for state in states]
    jobs = [(s, k) for s in range(len(states)) for k, c in enumerate(configs[s]) if set(c.tasks) & set(plan.tasks)]
    opened: dict[tuple[int, int], Opened] = {}
    with bar("open", len(jobs)) as advance_to:
        for done, (job, answer) in enumerate(
            crew.run(open_reader, Opening(root, plan.classes, configs), jobs, SECONDS), start=1
        ):
            advance_to(done)
            if isinstance(answer, Opened):
                opened[job] = answer
            else:
                _refused(states[job[0]], configs[job[0]][job[1]], answer)
    for s, state in enumerate(states):
        _join(state, [opened[job] for job in jobs if job[0] == s and job in opened], root)
    return states


def _refused(state: SourceState, config: Any, answer: str | Failure) -> None:
    state.lost |= set(config.tasks)
    if isinstance(answer, str):
        state.findings.append(Finding("error", "cannot_open", state.where, plain(answer)))
        return
    what = f"The {config.format} labels cannot be opened: {plain(answer.text)}."
    state.findings.append(Finding("error", answer.kind, state.where, what, TROUBLES[answer.kind].mend))


def _join(state: SourceState, opened: Sequence[Opened], root: Path) -> None:
    config = state.planned.config
    for reader, reservation, said in opened:
        state.said += map(plain, said)
        if reservation:
            state.findings.append(Finding("error", "cannot_open", state.where, plain(reservation)))
        for task in reader.tasks:
            found = reader.class_maps.get(task)
            mine, before = None if found is None else found.classes, state.labelled.get(task, False)
            state.labelled[task] = None if mine is None or before is None else mine | before
    if not opened:
        return
    try:
        state.source = Source(config.name, config.weight, [o.reader for o in opened], root, config.camera)
    except DataError as error:
        state.lost |= {task for o in opened for task in o.reader.tasks}
        state.findings.append(Finding("error", "cannot_open", state.where, plain(error)))


class Opening(NamedTuple):
    """Where the readers of a recipe look, and what for. labels: the configs of the readers, source by source."""

    root: Path
    classes: dict[str, tuple[str, ...]]
    labels: list[tuple[Any, ...]]


class Opened(NamedTuple):
    """A reader, why it opens only where missing pictures are allowed ("" = it does as it is), what it logged."""

    reader: Reader
    reservation: str
    said: tuple[str, ...]


def open_reader(opening: Opening, job: tuple[int, int]) -> Opened | str:
    """Reader ``job`` (source, position) of a recipe, or why there is none."""
    config: Any = opening.labels[job[0]][job[1]]
    try:
        return _opened(opening, config)
    except OSError as error:
        return f"The {config.format} labels cannot be read: {error}. Check the disk and the permissions."
    except (DataError, ConfigError) as error:
        if getattr(config, "allow_missing", 1.0) >= 1:
            return str(error)
        reason = str(error)
    try:  # with any number of pictures missing, so that the rest can be examined
        return _opened(opening, dataclasses.replace(config, allow_missing=1.0))._replace(reservation=reason)
    except (DataError, ConfigError, OSError):
        return reason


def _opened(opening: Opening, config: Any) -> Opened:
    """Open a reader and keep what it logs, instead of letting it go to the error stream."""
    listener = _Listener()
    log = logging.getLogger("perception.data")
    propagate, log.propagate = log.propagate, False
    log.addHandler(listener)
    try:
        return Opened(DATASETS[config.format](config, opening.root, dict(opening.classes)), "", tuple(listener.said))
    finally:
        log.removeHandler(listener)
        log.propagate = propagate


class _Listener(logging.Handler):
    """Keeps the first few messages."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.said) < 5:
            self.said.append(record.getMessage())
