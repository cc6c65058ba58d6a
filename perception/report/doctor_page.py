"""The doctor's results as a self-contained HTML page and as JSON."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Sequence
from datetime import date
from html import escape
from pathlib import Path

from perception.doctor.accumulators import LabelPreview, SourceState
from perception.doctor.console_report import SEVERITY_TITLES, summarize_findings
from perception.doctor.diagnosis import Diagnosis
from perception.doctor.findings import SEVERITIES, Finding, sanitize_text
from perception.doctor.summary import BarChart, SourceSummary, TaskSummary
from perception.files.safe_write import DiskFullError, write_atomic
from perception.report.page import render_document, render_section
from perception.types import ConfigError, PerceptionError

PAGE, DATA = "doctor.html", "doctor.json"
_STYLE = """<style>
.finding{border-left:4px solid var(--line);padding:10px 16px;margin:0 0 12px;background:var(--card);
border-radius:0 10px 10px 0}
.finding p{margin:2px 0;overflow-wrap:anywhere}.finding ul{margin:6px 0;padding-left:20px}
.finding li{overflow-wrap:anywhere}
.error{border-left-color:#dc2626}.warning{border-left-color:#d97706}.note{border-left-color:#6b7280}
p.note{border:0}
.what{font-weight:600}.kind{font-size:12px;color:var(--soft)}
.grid{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(280px,100%),1fr));margin-top:14px}
.pair{display:grid;gap:6px;grid-template-columns:1fr 1fr}
.grid .id,.pair .id{display:block}
.cards{grid-template-columns:repeat(auto-fit,minmax(190px,1fr))}
.tasks{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));margin-top:16px}
.tasks h3{margin-bottom:8px}.tasks dl{margin-bottom:10px}
.bar{text-align:right}td.images{padding-left:14px;color:var(--soft)}
.big.error{color:#dc2626}.big.warning{color:#d97706}.big{border:0}
</style>"""


def make_folder_name(diagnosis: Diagnosis) -> str:
    """Return the name of the recipe as a valid folder name."""
    return re.sub(r"[^\w-]+", "_", diagnosis.plan.name)[:100] or "recipe"


def write_doctor_report(folder: Path, diagnosis: Diagnosis) -> str:
    """Write doctor.html and doctor.json. Each file is written atomically.

    Args:
        folder: folder for the two files.
        diagnosis: the results to write.

    Returns:
        A line with the path of the page.

    Raises:
        ConfigError: the files cannot be written.
        DiskFullError: the disk is full.
    """
    try:
        files = {PAGE: render_page(diagnosis), DATA: f"{json.dumps(diagnosis.to_json(), indent=2, allow_nan=False)}\n"}
        for name, text in files.items():
            write_atomic(folder / name, text.encode())
    except DiskFullError:
        raise
    except (PerceptionError, ValueError) as error:
        raise ConfigError(f"The page cannot be written to {folder}: {error} Give another folder: --out DIR.") from error
    return f"Page: {folder / PAGE}"


def render_page(diagnosis: Diagnosis) -> str:
    """Render the whole page."""
    title = f"Doctor: {sanitize_text(diagnosis.plan.name, 80)}"
    drawn = {state.where: state for state in diagnosis.states}
    said = summarize_findings(diagnosis.findings), sanitize_text(diagnosis.plan.path, 200), date.today().isoformat()
    parts = [
        f"<header><h1>{escape(title)}</h1><p>{escape(' · '.join(said))} · {diagnosis.seconds:.0f} s</p></header>",
        render_section("Summary", _render_cards(diagnosis)),
        *(render_section(SEVERITY_TITLES[s].capitalize(), _render_findings(diagnosis, s)) for s in SEVERITIES),
        render_section("Train/validation leakage", _render_pairs(diagnosis)),
        render_section("Classes", "".join(_render_classes(diagnosis, task) for task in diagnosis.plan.classes)),
        *(
            render_section(summary.where, _render_source(summary, drawn.get(summary.where)))
            for summary in diagnosis.summaries
        ),
        render_section("Environment", _render_properties(diagnosis.environment)),
    ]
    return render_document(title, _STYLE + "".join(parts))


def _render_cards(diagnosis: Diagnosis) -> str:
    cards = []
    for severity in SEVERITIES:
        count = sum(finding.severity == severity for finding in diagnosis.findings)
        kind = severity if count else ""
        cards.append(
            f"<article><h3>{SEVERITY_TITLES[severity].lower()}</h3><p class='big {kind}'>{count}</p></article>"
        )
    for part in ("train", "validation"):
        states = [state for state in diagnosis.states if state.split == part]
        count = sum(state.num_images for state in states)
        rows = "".join(f"<tr><th>{escape(state.where)}<td>{state.num_images:,}" for state in states)
        name = {"train": "training", "validation": "validation"}[part]
        cards.append(f"<article><h3>{name} images</h3><p class=big>{count:,}</p><table>{rows}</table></article>")
    return f"<div class=cards>{''.join(cards)}</div>"


def _render_findings(diagnosis: Diagnosis, severity: str) -> str:
    return "".join(_render_finding(diagnosis, f) for f in diagnosis.findings if f.severity == severity)


def _render_finding(diagnosis: Diagnosis, finding: Finding) -> str:
    listed = "".join(f"<li class=id>{escape(example)}</li>" for example in finding.examples)
    rest = finding.count - len(finding.examples)
    if listed and rest > 0:
        listed += f"<li class=note>and {rest:,} more</li>"
    drawn = [diagnosis.evidence_previews[place] for place in finding.images if place in diagnosis.evidence_previews]
    pictures = f"<div class=grid>{''.join(map(_render_preview, drawn))}</div>" if drawn else ""
    mend = f"<p>Fix: {escape(finding.fix)}</p>" if finding.fix else ""
    return (
        f"<div class='finding {finding.severity}'><p class=what>{escape(finding.where)}: {escape(finding.message)}</p>"
        f"{mend}{f'<ul>{listed}</ul>' if listed else ''}{pictures}<p class=kind>{escape(finding.code)}</p></div>"
    )


def _render_pairs(diagnosis: Diagnosis) -> str:
    figures = []
    for pair in diagnosis.duplicate_pairs:
        both = [diagnosis.evidence_previews.get(place) for place in (pair.validation, pair.training)]
        if all(both):
            said = "identical files" if pair.is_same_file else f"{pair.hash_distance} of 512 bits differ"
            tiles = "".join(_render_preview(sample, first_only=True) for sample in both if sample)
            figures.append(f"<figure><div class=pair>{tiles}</div><figcaption>{said}</figcaption></figure>")
    note = "Left: validation. Right: the most similar training image. The closest pairs come first, then pairs just "
    note = f"<p class=note>{note}within the threshold.</p>"
    return f"{note}<div class=grid>{''.join(figures)}</div>" if figures else ""


def _render_classes(diagnosis: Diagnosis, task: str) -> str:
    """A table of the counts per class of a task, one column per source."""
    columns = [
        (summary.where, found.class_chart)
        for summary in diagnosis.summaries
        for found in summary.tasks
        if found.task == task and found.class_chart is not None
    ]
    if not columns:
        return ""
    head = "".join(f"<th>{escape(where)}" for where, _ in columns)
    rows = []
    for k, name in enumerate(columns[0][1].names):
        cells = "".join(_render_bar_cell(bars.counts[k], max(bars.counts)) for _, bars in columns)
        absent = "" if any(bars.counts[k] for _, bars in columns) else " class=absent"
        rows.append(f"<tr{absent}><th>{escape(name)}{cells}")
    title = f"{escape(task)}, {columns[0][1].unit}"
    table = f"<table class=classes><thead><tr><th>class{head}<tbody>{''.join(rows)}</table>"
    opened = " open" if len(rows) <= 25 else ""
    return f"<details class=chart{opened}><summary>{title}</summary><div class=wide>{table}</div></details>"


def _render_source(summary: SourceSummary, state: SourceState | None) -> str:
    tasks = "".join(_render_task(task) for task in summary.tasks)
    samples = "".join(map(_render_preview, state.previews)) if state is not None else ""
    parts = [_render_properties(summary.properties), f"<div class=tasks>{tasks}</div>" if tasks else ""]
    return "".join([*parts, f"<div class=grid>{samples}</div>" if samples else ""])


def _render_task(task: TaskSummary) -> str:
    bars = "".join(_render_bar_chart(some) for some in (task.class_chart, task.distribution_chart) if some is not None)
    return f"<article><h3>{escape(task.task)}</h3>{_render_properties(task.properties)}{bars}</article>"


def _render_bar_chart(chart: BarChart) -> str:
    rows = []
    for k, name in enumerate(chart.names):
        pictures = "" if chart.images is None else f"<td class=images>{chart.images[k]:,} images"
        rows.append(
            f"<tr><th>{escape(name)}{_render_bar_cell(chart.counts[k], max(chart.counts))} "
            f"{escape(chart.unit)}{pictures}"
        )
    opened = " open" if len(rows) <= 25 else ""
    return f"<details{opened}><summary>{escape(chart.title)}</summary><table>{''.join(rows)}</table></details>"


def _render_bar_cell(count: int, maximum: int) -> str:
    return f'<td class=bar style="--share:{count / max(1, maximum):.3f}">{count:,}'


def _render_properties(properties: dict[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}<dd>{escape(text)}" for name, text in properties.items())
    return f"<dl>{rows}</dl>" if rows else ""


def _render_preview(preview: LabelPreview, first_only: bool = False) -> str:
    tiles = preview.jpegs[:1] if first_only else preview.jpegs
    words = f"<b>{escape(preview.caption)}</b><br>" if preview.caption else ""
    caption = f"{words}<span class=id>{escape(preview.name)}</span>"
    return f"<figure>{''.join(_render_images(tiles, preview.name))}<figcaption>{caption}</figcaption></figure>"


def _render_images(jpegs: Sequence[bytes], name: str) -> Iterable[str]:
    for tile in jpegs:
        text = base64.b64encode(tile).decode("ascii")
        yield f'<img alt="{escape(name)}" loading=lazy src="data:image/jpeg;base64,{text}">'
