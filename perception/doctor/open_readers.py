"""Opening the readers of a recipe, one by one, so that a failing reader does not hide the others."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from perception.data import DATASETS, ReaderConfig
from perception.data.dataset import DatasetReader, DataSource
from perception.doctor.accumulators import SourceState
from perception.doctor.data_plan import DataPlan
from perception.doctor.findings import ISSUE_KINDS, Finding, sanitize_text
from perception.doctor.worker_pool import JobFailure, WorkerPool
from perception.types import ConfigError, DataError

ProgressFactory = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""``progress_bar(text, total)`` shows progress while it is open. It yields a function to call with the number done."""

OPEN_TIMEOUT = 900.0
"""Maximum seconds to open one reader."""


def open_planned_sources(plan: DataPlan, pool: WorkerPool, progress_bar: ProgressFactory) -> list[SourceState]:
    """Open the sources of a recipe.

    Args:
        plan: the recipe. A missing data folder is added to its findings.
        pool: workers that open the readers.
        progress_bar: shows the progress.

    Returns:
        One state per source. A source that cannot be opened has a finding with the reason.
    """
    states = [SourceState(planned) for planned in plan.sources]
    root = Path(plan.data.root)
    try:
        there = root.is_dir()
    except OSError:
        there = False
    if not there:
        what = f"No data folder at {sanitize_text(root.absolute())}."
        mend = "Set data.root in the recipe or on the command line: data.root=..."
        plan.findings.append(Finding("error", "missing_root", "data", what, mend))
        for state in states:
            state.unreadable_tasks = set(plan.tasks)
        return states
    configs = [state.planned.config.labels for state in states]
    jobs = [(s, k) for s in range(len(states)) for k, c in enumerate(configs[s]) if set(c.tasks) & set(plan.tasks)]
    opened: dict[tuple[int, int], OpenedReader] = {}
    with progress_bar("open", len(jobs)) as advance_to:
        for done, (job, answer) in enumerate(
            pool.run(open_planned_reader, ReaderContext(root, plan.classes, configs), jobs, OPEN_TIMEOUT), start=1
        ):
            advance_to(done)
            if isinstance(answer, OpenedReader):
                opened[job] = answer
            else:
                _record_failure(states[job[0]], configs[job[0]][job[1]], answer)
    for s, state in enumerate(states):
        _join_readers(state, [opened[job] for job in jobs if job[0] == s and job in opened], root)
    return states


def _record_failure(state: SourceState, config: ReaderConfig, failure: str | JobFailure) -> None:
    state.unreadable_tasks |= set(config.tasks)
    if isinstance(failure, str):
        state.findings.append(Finding("error", "cannot_open", state.where, sanitize_text(failure)))
        return
    what = f"The {config.format} labels cannot be opened: {sanitize_text(failure.text)}."
    state.findings.append(Finding("error", failure.code, state.where, what, ISSUE_KINDS[failure.code].fix))


def _join_readers(state: SourceState, opened: Sequence[OpenedReader], root: Path) -> None:
    config = state.planned.config
    for reader, reservation, said in opened:
        state.log_messages += map(sanitize_text, said)
        if reservation:
            state.findings.append(Finding("error", "cannot_open", state.where, sanitize_text(reservation)))
        for task in reader.tasks:
            found = reader.class_maps.get(task)
            mine, before = None if found is None else found.labeled_classes, state.labeled_classes.get(task, False)
            state.labeled_classes[task] = None if mine is None or before is None else mine | before
    if not opened:
        return
    try:
        state.source = DataSource(config.name, config.weight, [o.reader for o in opened], root, config.camera)
    except DataError as error:
        state.unreadable_tasks |= {task for o in opened for task in o.reader.tasks}
        state.findings.append(Finding("error", "cannot_open", state.where, sanitize_text(error)))


class ReaderContext(NamedTuple):
    """Context to open the readers of a recipe.

    Attributes:
        root: the data folder.
        classes: task -> class list.
        reader_configs: configs of the readers of each source.
    """

    root: Path
    classes: dict[str, tuple[str, ...]]
    reader_configs: list[tuple[Any, ...]]


class OpenedReader(NamedTuple):
    """An opened reader.

    Attributes:
        reader: the reader.
        missing_images_error: why it opens only if missing images are allowed; "" = it opens as configured.
        log_messages: messages that it logged.
    """

    reader: DatasetReader
    missing_images_error: str
    log_messages: tuple[str, ...]


def open_planned_reader(context: ReaderContext, job: tuple[int, int]) -> OpenedReader | str:
    """Open reader ``job`` (source, position) of a recipe. Returns the error message if this fails."""
    config: ReaderConfig = context.reader_configs[job[0]][job[1]]
    try:
        return _open_with_log(context, config)
    except OSError as error:
        return f"The {config.format} labels cannot be read: {error}. Check the disk and the permissions."
    except (DataError, ConfigError) as error:
        if getattr(config, "max_missing", 1.0) >= 1:
            return str(error)
        reason = str(error)
    try:  # allow any number of missing images, to examine the rest
        return _open_with_log(context, dataclasses.replace(config, max_missing=1.0))._replace(
            missing_images_error=reason
        )
    except (DataError, ConfigError, OSError):
        return reason


def _open_with_log(context: ReaderContext, config: ReaderConfig) -> OpenedReader:
    """Open a reader and collect its log messages instead of printing them."""
    listener = _LogCollector()
    log = logging.getLogger("perception.data")
    propagate, log.propagate = log.propagate, False
    log.addHandler(listener)
    try:
        return OpenedReader(
            DATASETS[config.format](config, context.root, dict(context.classes)), "", tuple(listener.messages)
        )
    finally:
        log.removeHandler(listener)
        log.propagate = propagate


class _LogCollector(logging.Handler):
    """Collects the first few messages."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.messages) < 5:
            self.messages.append(record.getMessage())
