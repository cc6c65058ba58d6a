"""The complete examination: from a recipe to findings."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from perception.doctor import checks, environment, leakage, previews, recipe_checks
from perception.doctor.accumulators import LabelPreview, SourceState
from perception.doctor.data_plan import DataPlan, read_plan
from perception.doctor.findings import Finding, sanitize_text, sort_by_severity
from perception.doctor.image_examination import ImageJob, WorkerContext, examine_image
from perception.doctor.open_readers import ProgressFactory, open_planned_sources
from perception.doctor.summary import SourceSummary, summarize_source
from perception.doctor.worker_pool import JobFailure, WorkerPool, WorkFunction
from perception.files.images import IMAGE_SUFFIXES

IMAGE_TIMEOUT = 30.0
MAX_PREVIEWS, MAX_PAIRS = 6, 8
"""Numbers of images per source, and of leaked pairs, in the report."""
_MAX_FAILURES = 20
_MAX_EVIDENCE = 24
_MAX_LISTED = 500_000


@dataclass
class Diagnosis:
    """The result of an examination.

    Attributes:
        plan: the recipe that was examined.
        states: the sources that could be opened.
        findings: errors first.
        summaries: one summary per source.
        duplicate_pairs: examples of validation images that are also in training.
        evidence_previews: (source, image) -> preview, for findings and pairs.
        environment: label -> text; empty if the environment was not examined.
        seconds: duration of the examination.
    """

    plan: DataPlan
    states: list[SourceState]
    findings: list[Finding]
    summaries: list[SourceSummary]
    duplicate_pairs: list[leakage.DuplicatePair] = field(default_factory=list)
    evidence_previews: dict[tuple[int, int], LabelPreview] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """1 if there are errors, else 0."""
        return int(any(finding.severity == "error" for finding in self.findings))

    def to_json(self) -> dict[str, Any]:
        """Return plain data for doctor.json."""
        findings = [{k: v for k, v in asdict(finding).items() if k != "images"} for finding in self.findings]
        return {
            "recipe": str(self.plan.path),
            "healthy": not self.exit_code,
            "seconds": round(self.seconds, 1),
            "findings": findings,
            "sources": [asdict(summary) for summary in self.summaries],
            "environment": self.environment,
        }


@contextlib.contextmanager
def hide_progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A `ProgressFactory` that shows nothing."""
    yield lambda done: None


def diagnose(
    path: Path,
    overrides: Sequence[str] = (),
    tasks: Collection[str] | None = None,
    *,
    max_images: int | None = None,
    workers: int | None = None,
    image_timeout: float = IMAGE_TIMEOUT,
    progress_bar: ProgressFactory = hide_progress,
    check_rest: WorkFunction | None = None,
    include_environment: bool = True,
) -> Diagnosis:
    """Examine the data of a recipe, and the environment.

    Args:
        path: file of the recipe.
        overrides: "key=value" settings that replace those of the file.
        tasks: tasks to examine; None = all.
        max_images: maximum images to examine per source; None = all.
        workers: processes; None = one per CPU, 0 = this process, without protection from files that crash it.
        image_timeout: maximum seconds per image.
        progress_bar: shows the progress.
        check_rest: ``check_rest(None, mapping)`` builds the rest of a recipe in a worker. It returns the settings of
            the tasks, or an error message.
        include_environment: also examine the environment.

    Returns:
        Findings, summaries and previews.

    Raises:
        ConfigError: the file is not a recipe.
    """
    began = time.monotonic()
    plan = read_plan(path, overrides, tasks)
    workers = min(16, environment.count_cpus()) if workers is None else workers
    around = _run_in_background(_examine_environment, plan, check_rest) if include_environment else None
    with WorkerPool(workers, _memory_per_worker(workers)) as crew:
        states = open_planned_sources(plan, crew, progress_bar)
        opened = [state for state in states if state.source is not None]
        for position, state in enumerate(opened):
            state.source_index = position
            state.select_images(max_images)
            state.num_unlisted = _count_unlisted(state, opened)
        ward = _create_context(plan, opened)
        _examine_images(ward, opened, crew, image_timeout, progress_bar)
        with progress_bar(
            "compare", sum(len(state.selected_indices) for state in opened if state.split != "train")
        ) as advance_to:
            leaks = leakage.find_leakage(opened, lambda done, total: advance_to(done))
        found: list[Finding] = []
        facts: dict[str, str] = {}
        if around is not None:
            found, facts = _wait_for_environment(around)
        found += _collect_findings(plan, states, leaks, max_images)
        diagnosis = Diagnosis(plan, opened, sort_by_severity(found), [], _select_pairs(leaks.pairs), {}, facts)
        diagnosis.summaries = [summarize_source(state, plan) for state in states]
        diagnosis.evidence_previews = _draw_evidence(diagnosis, ward, crew, image_timeout)
    diagnosis.seconds = time.monotonic() - began
    return diagnosis


def _collect_findings(
    plan: DataPlan, states: Sequence[SourceState], leakage_report: leakage.LeakageReport, max_images: int | None
) -> list[Finding]:
    found = [*plan.findings, *leakage_report.findings]
    for state in states:
        found += checks.check_source(state, plan)
    found += recipe_checks.check_recipe(states, plan, max_images is not None)
    if max_images is not None:
        rest = sum(state.num_images - len(state.selected_indices) for state in states)
        what = f"Only {max_images:,} images of each source, evenly spread, were examined; {rest:,} were not."
        found.append(
            Finding("note", "partial_examination", "data", what, "Run it once without --max-images.", max(1, rest))
        )
    return found


def _memory_per_worker(workers: int) -> int | None:
    free = environment.measure_free_memory()
    return None if free is None or not workers else max(1 << 30, int(0.8 * free / workers))


def _run_in_background(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _select_pairs(pairs: list[leakage.DuplicatePair]) -> list[leakage.DuplicatePair]:
    """The pairs for the report: the closest, and those just within the threshold."""
    return pairs if len(pairs) <= MAX_PAIRS else [*pairs[: MAX_PAIRS // 2], *pairs[-(MAX_PAIRS // 2) :]]


def _wait_for_environment(future: Future[Any]) -> tuple[list[Finding], dict[str, str]]:
    try:
        return future.result()
    except Exception as error:
        what = f"Checking the environment failed: {sanitize_text(f'{type(error).__name__}: {error}')}"
        return [Finding("error", "internal_error", "environment", what, "Please report this.")], {}


def _examine_environment(plan: DataPlan, check_rest: WorkFunction | None) -> tuple[list[Finding], dict[str, str]]:
    """Check the environment, and the sections of the recipe that do not concern data."""
    packages, here = environment.list_packages(), environment.probe_machine(Path("runs"))
    with WorkerPool(1) as crew:
        broken = {}
        for module, reason in crew.run(environment.try_import, None, environment.IMPORTED_MODULES, 120):
            broken[module] = reason.text if isinstance(reason, JobFailure) else reason
        if check_rest is not None and environment.is_usable(broken) and plan.tasks:
            _check_other_sections(plan, check_rest, crew)
    workers = plan.data.workers if isinstance(plan.raw_recipe["data"].get("workers", 2), int) else 0
    return environment.check_environment(packages, here, workers, broken), environment.summarize_environment(
        packages, here
    )


def _check_other_sections(plan: DataPlan, check_rest: WorkFunction, pool: WorkerPool) -> None:
    mapping = {**plan.raw_recipe, "data": {}, "tasks": plan.tasks}
    for _, answer in pool.run(check_rest, None, [mapping], 120):
        if isinstance(answer, JobFailure):
            plan.add_error("recipe", f"Reading the recipe failed: {answer.text}", "Please report this.")
        elif isinstance(answer, str):
            plan.add_error("recipe", answer)
        else:
            plan.tasks.update({task: settings for task, settings in answer.items() if task in plan.tasks})


def _create_context(plan: DataPlan, states: Sequence[SourceState]) -> WorkerContext:
    specs = {task: previews.create_drawing_spec(task, classes) for task, classes in plan.classes.items()}
    sources = tuple(state.source for state in states if state.source is not None)
    return WorkerContext(sources, plan.classes, plan.data.size, specs)


def _examine_images(
    context: WorkerContext,
    states: Sequence[SourceState],
    pool: WorkerPool,
    image_timeout: float,
    progress_bar: ProgressFactory,
) -> None:
    """Examine the selected images of all sources."""
    failures: Counter[int] = Counter()
    with progress_bar("examine", sum(len(state.selected_indices) for state in states)) as advance_to:
        for done, (job, report) in enumerate(
            pool.run(examine_image, context, _create_jobs(states), image_timeout), start=1
        ):
            advance_to(done)
            state = states[job.source_index]
            if not isinstance(report, JobFailure):
                state.add_report(job, report)
                continue
            state.num_examined += 1
            state.add_issue(report.code, f"{state.image_name(job.image_index)}: {report.text}", job.image_index)
            failures[job.source_index] += 1
            state.aborted = failures[job.source_index] >= _MAX_FAILURES and state.num_examined < len(
                state.selected_indices
            )


def _create_jobs(states: Sequence[SourceState]) -> Iterator[ImageJob]:
    for s, state in enumerate(states):
        count = len(state.selected_indices)
        drawn = {(2 * k + 1) * count // (2 * MAX_PREVIEWS) for k in range(MAX_PREVIEWS)}
        for row, index in enumerate(state.selected_indices):
            if state.aborted:
                break
            yield ImageJob(s, index, row, row in drawn)


def _count_unlisted(state: SourceState, states: Sequence[SourceState]) -> int:
    """Count image files in the source's folders that no source of the recipe lists."""
    assert state.source is not None
    if sum(other.num_images for other in states) > _MAX_LISTED:
        return 0
    listed = {p.path for other in states if other.source is not None for p in other.source.records}
    folders = {p.path.parent for p in state.source.records}
    suffixes = {p.path.suffix for p in state.source.records} & IMAGE_SUFFIXES
    count = 0
    for folder in folders:
        with contextlib.suppress(OSError):
            names = os.listdir(folder)  # noqa: PTH208
            count += sum(_get_suffix(name) in suffixes and folder / name not in listed for name in names)
    return count


def _get_suffix(name: str) -> str:
    """Suffix of a file name; "" for a hidden file."""
    return "" if name.startswith(".") else os.path.splitext(name)[1]  # noqa: PTH122


def _draw_evidence(
    diagnosis: Diagnosis, context: WorkerContext, pool: WorkerPool, image_timeout: float
) -> dict[tuple[int, int], LabelPreview]:
    """Draw the images of findings and pairs, if they can be read."""
    places = [place for pair in diagnosis.duplicate_pairs for place in (pair.validation, pair.training)]
    for finding in diagnosis.findings:
        places += finding.images[:2] if finding.code not in ("crashed", "timeout", "out_of_memory") else ()
    jobs = [ImageJob(s, i, draw=True, draw_only=True) for s, i in dict.fromkeys(places)][:_MAX_EVIDENCE]
    drawn = {}
    for job, report in pool.run(examine_image, context, jobs, image_timeout):
        if not isinstance(report, JobFailure) and report.jpegs:
            name = diagnosis.states[job.source_index].image_name(job.image_index)
            drawn[job.source_index, job.image_index] = LabelPreview(name, report.jpegs, report.caption)
    return drawn
