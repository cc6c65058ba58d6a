"""What the doctor found, as one HTML page that needs nothing else, and as JSON."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Sequence
from datetime import date
from html import escape
from pathlib import Path

from perception.doctor.accumulators import Sample, SourceState
from perception.doctor.console_report import TITLES, verdict
from perception.doctor.diagnosis import Diagnosis
from perception.doctor.findings import SEVERITIES, Finding, plain
from perception.doctor.summary import Bars, SourceSummary, TaskSummary
from perception.files.safe_write import FullError, write_whole
from perception.report.page import _document, _section
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
.bar{text-align:right}td.pictures{padding-left:14px;color:var(--soft)}
.big.error{color:#dc2626}.big.warning{color:#d97706}.big{border:0}
</style>"""


def folder_name(diagnosis: Diagnosis) -> str:
    """The name of the recipe, as a folder can be called."""
    return re.sub(r"[^\w-]+", "_", diagnosis.plan.name)[:100] or "recipe"


def write(folder: Path, diagnosis: Diagnosis) -> str:
    """Write doctor.html and doctor.json, each whole or not at all; a line that says where.

    Raises ConfigError where that is not possible, FullError where the disk is full.
    """
    try:
        files = {PAGE: page(diagnosis), DATA: f"{json.dumps(diagnosis.as_json(), indent=2, allow_nan=False)}\n"}
        for name, text in files.items():
            write_whole(folder / name, text.encode())
    except FullError:
        raise
    except (PerceptionError, ValueError) as error:
        raise ConfigError(f"The page cannot be written to {folder}: {error} Give another folder: --out DIR.") from error
    return f"Page: {folder / PAGE}"


def page(diagnosis: Diagnosis) -> str:
    """The whole page."""
    title = f"Doctor: {plain(diagnosis.plan.name, 80)}"
    drawn = {state.where: state for state in diagnosis.states}
    said = verdict(diagnosis.findings), plain(diagnosis.plan.path, 200), date.today().isoformat()
    parts = [
        f"<header><h1>{escape(title)}</h1><p>{escape(' · '.join(said))} · {diagnosis.seconds:.0f} s</p></header>",
        _section("Summary", _cards(diagnosis)),
        *(_section(TITLES[s].capitalize(), _findings(diagnosis, s)) for s in SEVERITIES),
        _section("The same in validation and in training", _pairs(diagnosis)),
        _section("Classes", "".join(_classes(diagnosis, task) for task in diagnosis.plan.classes)),
        *(_section(summary.where, _source(summary, drawn.get(summary.where))) for summary in diagnosis.summaries),
        _section("Environment", _facts(diagnosis.environment)),
    ]
    return _document(title, _STYLE + "".join(parts))


def _cards(diagnosis: Diagnosis) -> str:
    cards = []
    for severity in SEVERITIES:
        count = sum(finding.severity == severity for finding in diagnosis.findings)
        kind = severity if count else ""
        cards.append(f"<article><h3>{TITLES[severity].lower()}</h3><p class='big {kind}'>{count}</p></article>")
    for part in ("train", "validation"):
        states = [state for state in diagnosis.states if state.part == part]
        count = sum(state.pictures for state in states)
        rows = "".join(f"<tr><th>{escape(state.where)}<td>{state.pictures:,}" for state in states)
        name = {"train": "training", "validation": "validation"}[part]
        cards.append(f"<article><h3>{name} pictures</h3><p class=big>{count:,}</p><table>{rows}</table></article>")
    return f"<div class=cards>{''.join(cards)}</div>"


def _findings(diagnosis: Diagnosis, severity: str) -> str:
    return "".join(_finding(diagnosis, f) for f in diagnosis.findings if f.severity == severity)


def _finding(diagnosis: Diagnosis, finding: Finding) -> str:
    listed = "".join(f"<li class=id>{escape(example)}</li>" for example in finding.examples)
    rest = finding.count - len(finding.examples)
    if listed and rest > 0:
        listed += f"<li class=note>and {rest:,} more</li>"
    drawn = [diagnosis.evidence[place] for place in finding.pictures if place in diagnosis.evidence]
    pictures = f"<div class=grid>{''.join(map(_sample, drawn))}</div>" if drawn else ""
    mend = f"<p>Mend: {escape(finding.mend)}</p>" if finding.mend else ""
    return (
        f"<div class='finding {finding.severity}'><p class=what>{escape(finding.where)}: {escape(finding.what)}</p>"
        f"{mend}{f'<ul>{listed}</ul>' if listed else ''}{pictures}<p class=kind>{escape(finding.kind)}</p></div>"
    )


def _pairs(diagnosis: Diagnosis) -> str:
    figures = []
    for pair in diagnosis.twins:
        both = [diagnosis.evidence.get(place) for place in (pair.validation, pair.training)]
        if all(both):
            said = "the same file" if pair.same else f"{pair.bits} of 512 bits differ"
            tiles = "".join(_sample(sample, first_only=True) for sample in both if sample)
            figures.append(f"<figure><div class=pair>{tiles}</div><figcaption>{said}</figcaption></figure>")
    note = (
        "Left: validation. Right: the training picture that looks most like it. First the closest pairs, then such as "
    )
    note = f"<p class=note>{note}are only just close enough to count.</p>"
    return f"{note}<div class=grid>{''.join(figures)}</div>" if figures else ""


def _classes(diagnosis: Diagnosis, task: str) -> str:
    """How much of each class of a task every source has."""
    columns = [
        (summary.where, found.bars)
        for summary in diagnosis.summaries
        for found in summary.tasks
        if found.task == task and found.bars is not None
    ]
    if not columns:
        return ""
    head = "".join(f"<th>{escape(where)}" for where, _ in columns)
    rows = []
    for k, name in enumerate(columns[0][1].names):
        cells = "".join(_bar_cell(bars.counts[k], max(bars.counts)) for _, bars in columns)
        absent = "" if any(bars.counts[k] for _, bars in columns) else " class=absent"
        rows.append(f"<tr{absent}><th>{escape(name)}{cells}")
    title = f"{escape(task)}, {columns[0][1].unit}"
    table = f"<table class=classes><thead><tr><th>class{head}<tbody>{''.join(rows)}</table>"
    opened = " open" if len(rows) <= 25 else ""
    return f"<details class=chart{opened}><summary>{title}</summary><div class=wide>{table}</div></details>"


def _source(summary: SourceSummary, state: SourceState | None) -> str:
    tasks = "".join(_task(task) for task in summary.tasks)
    samples = "".join(map(_sample, state.samples)) if state is not None else ""
    parts = [_facts(summary.facts), f"<div class=tasks>{tasks}</div>" if tasks else ""]
    return "".join([*parts, f"<div class=grid>{samples}</div>" if samples else ""])


def _task(task: TaskSummary) -> str:
    bars = "".join(_bars(some) for some in (task.bars, task.spread) if some is not None)
    return f"<article><h3>{escape(task.task)}</h3>{_facts(task.facts)}{bars}</article>"


def _bars(bars: Bars) -> str:
    rows = []
    for k, name in enumerate(bars.names):
        pictures = "" if bars.pictures is None else f"<td class=pictures>{bars.pictures[k]:,} pictures"
        rows.append(
            f"<tr><th>{escape(name)}{_bar_cell(bars.counts[k], max(bars.counts))} {escape(bars.unit)}{pictures}"
        )
    opened = " open" if len(rows) <= 25 else ""
    return f"<details{opened}><summary>{escape(bars.title)}</summary><table>{''.join(rows)}</table></details>"


def _bar_cell(count: int, most: int) -> str:
    return f'<td class=bar style="--share:{count / max(1, most):.3f}">{count:,}'


def _facts(facts: dict[str, str]) -> str:
    rows = "".join(f"<dt>{escape(name)}<dd>{escape(text)}" for name, text in facts.items())
    return f"<dl>{rows}</dl>" if rows else ""


def _sample(sample: Sample, first_only: bool = False) -> str:
    tiles = sample.tiles[:1] if first_only else sample.tiles
    words = f"<b>{escape(sample.words)}</b><br>" if sample.words else ""
    caption = f"{words}<span class=id>{escape(sample.name)}</span>"
    return f"<figure>{''.join(_pictures(tiles, sample.name))}<figcaption>{caption}</figcaption></figure>"


def _pictures(tiles: Sequence[bytes], name: str) -> Iterable[str]:
    for tile in tiles:
        text = base64.b64encode(tile).decode("ascii")
        yield f'<img alt="{escape(name)}" loading=lazy src="data:image/jpeg;base64,{text}">'
