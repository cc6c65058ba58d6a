"""The doctor's report as text for a terminal."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator, Sequence

from perception.doctor.diagnosis import Diagnosis
from perception.doctor.findings import SEVERITIES, Finding
from perception.doctor.summary import BarChart, SourceSummary

SEVERITY_TITLES = {"error": "ERROR", "warning": "WARNING", "note": "NOTE"}
_BAR, _MARGIN, _SHOWN = 24, 20, 4


def format_report(diagnosis: Diagnosis, width: int | None = None) -> Iterator[str]:
    """Yield the lines of the full report: a table per source, the environment, the findings, the verdict.

    Args:
        diagnosis: the results to show.
        width: characters per line; None = the terminal's width.
    """
    width = width or min(160, max(60, shutil.get_terminal_size((110, 24)).columns))
    for summary in diagnosis.summaries:
        yield from format_source(summary, width)
        yield ""
    if diagnosis.environment:
        yield _format_title("environment", width)
        yield from _format_properties(diagnosis.environment, width, 2)
        yield ""
    yield from format_findings(diagnosis.findings, width)
    yield f"{summarize_findings(diagnosis.findings)} ({diagnosis.seconds:.0f} s)"


def _format_title(name: str, width: int) -> str:
    return f"{name} {'─' * max(3, width - len(name) - 1)}"


def format_source(summary: SourceSummary, width: int = 110) -> Iterator[str]:
    """Yield the table of one source."""
    yield _format_title(summary.where, width)
    yield from _format_properties(summary.properties, width, 2)
    for task in summary.tasks:
        yield f"  {task.task}"
        yield from _format_properties(task.properties, width, 4)
        if task.class_chart is not None:
            yield from _format_bar_chart(task.class_chart)


def format_findings(findings: Sequence[Finding], width: int = 110) -> Iterator[str]:
    """Yield the numbered findings under one title per severity. Expects errors first."""
    number = 0
    for severity in SEVERITIES:
        some = [finding for finding in findings if finding.severity == severity]
        if some:
            yield f"{SEVERITY_TITLES[severity]} ({len(some)})"
        for finding in some:
            number += 1
            yield from _format_finding(finding, number, width)
        if some:
            yield ""


def summarize_findings(findings: Sequence[Finding]) -> str:
    """Return the verdict as one sentence."""
    counts = {severity: sum(f.severity == severity for f in findings) for severity in ("error", "warning")}
    shown = [f"{count or 'no'} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items()]
    return f"{', '.join(shown)}.".capitalize()


def _format_finding(finding: Finding, number: int, width: int) -> Iterator[str]:
    lead = f"{number:3d}. "
    head = f"{finding.where}: {finding.message} [{finding.code}]"
    yield from _wrap_text(head, width, lead, " " * 5)
    for example in finding.examples[:_SHOWN]:
        yield from _wrap_text(example, width, " " * 7 + "- ", " " * 9)
    rest = finding.count - _SHOWN
    if len(finding.examples) > _SHOWN and rest > 0:
        yield f"{' ' * 9}and {rest:,} more"
    if finding.fix:
        yield from _wrap_text(f"Fix: {finding.fix}", width, " " * 5, " " * 11)


def _format_properties(properties: dict[str, str], width: int, indent: int) -> Iterator[str]:
    for name, text in properties.items():
        yield from _wrap_text(text, width, f"{' ' * indent}{name:<{_MARGIN}} ", " " * (indent + _MARGIN + 1))


def _format_bar_chart(chart: BarChart) -> Iterator[str]:
    longest = max(map(len, chart.names), default=0)
    most = max([*chart.counts, 1])
    for k, name in enumerate(chart.names):
        pictures = "" if chart.images is None else f"in {chart.images[k]:,} images"
        line = f"    {name:<{longest}}  {chart.counts[k]:>13,} {chart.unit:<8} {pictures:<22}"
        yield f"{line} {'█' * round(_BAR * chart.counts[k] / most) or ('▏' if chart.counts[k] else '')}".rstrip()


def _wrap_text(text: str, width: int, first: str, later: str) -> Iterator[str]:
    yield from textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=later, break_long_words=False, break_on_hyphens=False
    ) or [first.rstrip()]
