"""The doctor's words on a terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence

from perception.doctor.diagnosis import Diagnosis
from perception.doctor.findings import SEVERITIES, Finding
from perception.doctor.summary import Bars, SourceSummary

TITLES = {"error": "MUST BE MENDED", "warning": "SUSPICIOUS", "note": "GOOD TO KNOW"}
_BAR, _MARGIN, _SHOWN = 24, 20, 4


def report_lines(diagnosis: Diagnosis, width: int | None = None) -> Iterator[str]:
    """Everything: a table of each source, the environment, the findings, the verdict. width: None = the terminal's."""
    width = width or min(160, max(60, shutil.get_terminal_size((110, 24)).columns))
    for summary in diagnosis.summaries:
        yield from source_lines(summary, width)
        yield ""
    if diagnosis.environment:
        yield _title("environment", width)
        yield from _facts(diagnosis.environment, width, 2)
        yield ""
    yield from finding_lines(diagnosis.findings, width)
    yield f"{verdict(diagnosis.findings)} ({diagnosis.seconds:.0f} s)"


def _title(name: str, width: int) -> str:
    return f"{name} {'─' * max(3, width - len(name) - 1)}"


def source_lines(summary: SourceSummary, width: int = 110) -> Iterator[str]:
    """A table of one source."""
    yield _title(summary.where, width)
    yield from _facts(summary.facts, width, 2)
    for task in summary.tasks:
        yield f"  {task.task}"
        yield from _facts(task.facts, width, 4)
        if task.bars is not None:
            yield from _bars(task.bars)


def finding_lines(findings: Sequence[Finding], width: int = 110) -> Iterator[str]:
    """The findings, numbered, under a title for each severity. They are expected with the gravest first."""
    number = 0
    for severity in SEVERITIES:
        some = [finding for finding in findings if finding.severity == severity]
        if some:
            yield f"{TITLES[severity]} ({len(some)})"
        for finding in some:
            number += 1
            yield from _finding(finding, number, width)
        if some:
            yield ""


def verdict(findings: Sequence[Finding]) -> str:
    """One sentence."""
    errors, warnings = (sum(f.severity == severity for f in findings) for severity in ("error", "warning"))
    if not errors and not warnings:
        return "Healthy: nothing to mend, nothing suspicious."
    mend = f"{errors} {'thing' if errors == 1 else 'things'} to mend" if errors else "Nothing must be mended"
    return f"{mend}, {warnings or 'nothing'} suspicious."


def _finding(finding: Finding, number: int, width: int) -> Iterator[str]:
    lead = f"{number:3d}. "
    head = f"{finding.where}: {finding.what} [{finding.kind}]"
    yield from _wrapped(head, width, lead, " " * 5)
    for example in finding.examples[:_SHOWN]:
        yield from _wrapped(example, width, " " * 7 + "- ", " " * 9)
    rest = finding.count - _SHOWN
    if len(finding.examples) > _SHOWN and rest > 0:
        yield f"{' ' * 9}and {rest:,} more"
    if finding.mend:
        yield from _wrapped(f"Mend: {finding.mend}", width, " " * 5, " " * 11)


def _facts(facts: dict[str, str], width: int, indent: int) -> Iterator[str]:
    for name, text in facts.items():
        yield from _wrapped(text, width, f"{' ' * indent}{name:<{_MARGIN}} ", " " * (indent + _MARGIN + 1))


def _bars(bars: Bars) -> Iterator[str]:
    longest = max(map(len, bars.names), default=0)
    most = max([*bars.counts, 1])
    for k, name in enumerate(bars.names):
        pictures = "" if bars.pictures is None else f"in {bars.pictures[k]:,} pictures"
        line = f"    {name:<{longest}}  {bars.counts[k]:>13,} {bars.unit:<8} {pictures:<22}"
        yield f"{line} {'█' * round(_BAR * bars.counts[k] / most) or ('▏' if bars.counts[k] else '')}".rstrip()


def _wrapped(text: str, width: int, first: str, later: str) -> Iterator[str]:
    yield from textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    ) or [first.rstrip()]
