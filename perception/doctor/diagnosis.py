"""The whole examination, from a recipe to findings."""

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

from perception.doctor import checks, environment, leakage, recipe_checks, samples
from perception.doctor.accumulators import Sample, SourceState
from perception.doctor.data_plan import Plan, read_plan
from perception.doctor.examine import Job, Ward, examine
from perception.doctor.findings import Finding, plain, worst_first
from perception.doctor.open_readers import Bar, open_all
from perception.doctor.summary import SourceSummary, summarise
from perception.doctor.worker_pool import Crew, Failure, Work
from perception.files.images import PICTURE_SUFFIXES

PICTURE_SECONDS = 30.0
SAMPLES, PAIRS = 6, 8
"""Pictures of a source, and pairs that leak, that the page shows."""
_PATIENCE = 20
_EVIDENCE = 24
_MOST_LISTED = 500_000


@dataclass
class Diagnosis:
    """findings: the gravest first. environment: label -> text; empty where it was not looked at.

    evidence: (source, picture) -> drawn, for findings and pairs. twins: some pairs of validation and training
    """

    plan: Plan
    states: list[SourceState]
    findings: list[Finding]
    summaries: list[SourceSummary]
    twins: list[leakage.Twins] = field(default_factory=list)
    evidence: dict[tuple[int, int], Sample] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """1 where something must be mended, else 0."""
        return int(any(finding.severity == "error" for finding in self.findings))

    def as_json(self) -> dict[str, Any]:
        """Plain data for doctor.json."""
        findings = [{k: v for k, v in asdict(finding).items() if k != "pictures"} for finding in self.findings]
        return {
            "recipe": str(self.plan.path),
            "healthy": not self.exit_code,
            "seconds": round(self.seconds, 1),
            "findings": findings,
            "sources": [asdict(summary) for summary in self.summaries],
            "environment": self.environment,
        }


@contextlib.contextmanager
def no_bar(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A `Bar` that shows nothing."""
    yield lambda done: None


def diagnose(
    path: Path,
    overrides: Sequence[str] = (),
    tasks: Collection[str] | None = None,
    *,
    quick: int | None = None,
    workers: int | None = None,
    seconds: float = PICTURE_SECONDS,
    bar: Bar = no_bar,
    check: Work | None = None,
    look_around: bool = True,
) -> Diagnosis:
    """Examine the data of a recipe, and the environment. Raises ConfigError where the file is no recipe.

    quick:   look at so many pictures of each source only
    workers: processes; None = one for each processor, 0 = this process, without protection from files that kill it
    seconds: that a picture may take
    check:   ``check(None, mapping)`` builds the rest of a recipe in a worker; settings of the tasks, or what is wrong
    look_around: also examine the environment
    """
    began = time.monotonic()
    plan = read_plan(path, overrides, tasks)
    workers = min(16, environment.processors()) if workers is None else workers
    around = _in_background(_look_around, plan, check) if look_around else None
    with Crew(workers, _share_of_memory(workers)) as crew:
        states = open_all(plan, crew, bar)
        opened = [state for state in states if state.source is not None]
        for position, state in enumerate(opened):
            state.position = position
            state.choose(quick)
            state.beside = _beside(state, opened)
        ward = _ward(plan, opened)
        _examine(ward, opened, crew, seconds, bar)
        with bar("compare", sum(len(state.chosen) for state in opened if state.part != "train")) as advance_to:
            leaks = leakage.find(opened, lambda done, total: advance_to(done))
        found: list[Finding] = []
        facts: dict[str, str] = {}
        if around is not None:
            found, facts = _result(around)
        found += _judged(plan, states, leaks, quick)
        diagnosis = Diagnosis(plan, opened, worst_first(found), [], _some(leaks.twins), {}, facts)
        diagnosis.summaries = [summarise(state, plan) for state in states]
        diagnosis.evidence = _evidence(diagnosis, ward, crew, seconds)
    diagnosis.seconds = time.monotonic() - began
    return diagnosis


def _judged(plan: Plan, states: Sequence[SourceState], leaks: leakage.Leakage, quick: int | None) -> list[Finding]:
    found = [*plan.findings, *leaks.findings]
    for state in states:
        found += checks.findings(state, plan)
    found += recipe_checks.findings(states, plan, quick is not None)
    if quick is not None:
        rest = sum(state.pictures - len(state.chosen) for state in states)
        what = f"Only {quick:,} pictures of each source were looked at, evenly spread; {rest:,} were not."
        found.append(Finding("note", "quick", "data", what, "Run it once without --quick.", max(1, rest)))
    return found


def _share_of_memory(workers: int) -> int | None:
    free = environment.available_memory()
    return None if free is None or not workers else max(1 << 30, int(0.8 * free / workers))


def _in_background(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(work(*arguments))
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _some(twins: list[leakage.Twins]) -> list[leakage.Twins]:
    """The pairs for the page: the closest, and those that are only just close enough."""
    return twins if len(twins) <= PAIRS else [*twins[: PAIRS // 2], *twins[-(PAIRS // 2) :]]


def _result(around: Future[Any]) -> tuple[list[Finding], dict[str, str]]:
    try:
        return around.result()
    except Exception as error:
        what = f"Looking at the environment failed: {plain(f'{type(error).__name__}: {error}')}"
        return [Finding("error", "internal_error", "environment", what, "Please report this.")], {}


def _look_around(plan: Plan, check: Work | None) -> tuple[list[Finding], dict[str, str]]:
    """The environment, and the sections of the recipe that are not about data."""
    packages, here = environment.installed(), environment.machine(Path("runs"))
    with Crew(1) as crew:
        broken = {}
        for module, reason in crew.run(environment.try_module, None, environment.MODULES, 120):
            broken[module] = reason.text if isinstance(reason, Failure) else reason
        if check is not None and environment.works(broken) and plan.tasks:
            _check_rest(plan, check, crew)
    workers = plan.data.workers if isinstance(plan.mapping["data"].get("workers", 2), int) else 0
    return environment.findings(packages, here, workers, broken), environment.facts(packages, here)


def _check_rest(plan: Plan, check: Work, crew: Crew) -> None:
    mapping = {**plan.mapping, "data": {}, "tasks": plan.tasks}
    for _, answer in crew.run(check, None, [mapping], 120):
        if isinstance(answer, Failure):
            plan.error("recipe", f"Reading the recipe failed: {answer.text}", "Please report this.")
        elif isinstance(answer, str):
            plan.error("recipe", answer)
        else:
            plan.tasks.update({task: settings for task, settings in answer.items() if task in plan.tasks})


def _ward(plan: Plan, states: Sequence[SourceState]) -> Ward:
    specs = {task: samples.spec(task, classes) for task, classes in plan.classes.items()}
    sources = tuple(state.source for state in states if state.source is not None)
    return Ward(sources, plan.classes, plan.data.size, specs)


def _examine(ward: Ward, states: Sequence[SourceState], crew: Crew, seconds: float, bar: Bar) -> None:
    """Look at all chosen pictures of all sources."""
    failures: Counter[int] = Counter()
    with bar("examine", sum(len(state.chosen) for state in states)) as advance_to:
        for done, (job, report) in enumerate(crew.run(examine, ward, _jobs(states), seconds), start=1):
            advance_to(done)
            state = states[job.source]
            if not isinstance(report, Failure):
                state.add(job, report)
                continue
            state.looked += 1
            state.trouble(report.kind, f"{state.name(job.index)}: {report.text}", job.index)
            failures[job.source] += 1
            state.given_up = failures[job.source] >= _PATIENCE and state.looked < len(state.chosen)


def _jobs(states: Sequence[SourceState]) -> Iterator[Job]:
    for s, state in enumerate(states):
        count = len(state.chosen)
        drawn = {(2 * k + 1) * count // (2 * SAMPLES) for k in range(SAMPLES)}
        for row, index in enumerate(state.chosen):
            if state.given_up:
                break
            yield Job(s, index, row, row in drawn)


def _beside(state: SourceState, states: Sequence[SourceState]) -> int:
    """Picture files in the source's folders that no source of the recipe lists."""
    assert state.source is not None
    if sum(other.pictures for other in states) > _MOST_LISTED:
        return 0
    listed = {p.path for other in states if other.source is not None for p in other.source.pictures}
    folders = {p.path.parent for p in state.source.pictures}
    suffixes = {p.path.suffix for p in state.source.pictures} & PICTURE_SUFFIXES
    count = 0
    for folder in folders:
        with contextlib.suppress(OSError):
            names = os.listdir(folder)  # noqa: PTH208
            count += sum(_suffix(name) in suffixes and folder / name not in listed for name in names)
    return count


def _suffix(name: str) -> str:
    """Of a file that is not hidden."""
    return "" if name.startswith(".") else os.path.splitext(name)[1]  # noqa: PTH122


def _evidence(diagnosis: Diagnosis, ward: Ward, crew: Crew, seconds: float) -> dict[tuple[int, int], Sample]:
    """Drawings of the pictures that findings and pairs name, as far as they can be read."""
    places = [place for pair in diagnosis.twins for place in (pair.validation, pair.training)]
    for finding in diagnosis.findings:
        places += finding.pictures[:2] if finding.kind not in ("crashed", "too_slow", "out_of_memory") else ()
    jobs = [Job(s, i, draw=True, only=True) for s, i in dict.fromkeys(places)][:_EVIDENCE]
    drawn = {}
    for job, report in crew.run(examine, ward, jobs, seconds):
        if not isinstance(report, Failure) and report.tiles:
            name = diagnosis.states[job.source].name(job.index)
            drawn[job.source, job.index] = Sample(name, report.tiles, report.words)
    return drawn
