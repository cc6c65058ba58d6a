"""The HTML page of task affinities as a heat map, and of the grouping that follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from perception.files.safe_write import write_atomic
from perception.report.format import format_task_name, render_wide_table
from perception.report.page import render_document, render_metadata, render_section

_STYLE = """<style>
.heat{border-collapse:separate;border-spacing:4px;font-size:14px}
.heat th{color:var(--soft);font-weight:600}.heat th:first-child{background:var(--page)}
.heat td{padding:10px 6px;border:0;border-radius:8px;
background:color-mix(in srgb,var(--hue) calc(var(--share)*70%),var(--card))}
.heat small{display:block;color:var(--soft)}
.lead{font-size:17px;font-weight:600}
</style>"""


def write_group_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page for the contents of group.json."""
    title = f"Group: {result['recipe']}"
    said = (
        f"{result['num_measurements']} lookahead samples · at most {result['networks']} "
        f"networks · {result['metadata']['date']}"
    )
    parts = [
        f"<header><h1>{escape(title)}</h1><p>{escape(said)} · {escape(result['metadata']['hardware'])}</p></header>",
        render_section(
            "Grouping",
            f"<p class=lead>{escape(result['verdict'])}</p>{_render_groupings(result)}{_render_trunks(result)}",
        ),
        render_section("Task affinity", _render_heat_map(result)),
        render_section("Provenance", render_metadata({**result["metadata"], "recipes": ", ".join(result["recipes"])})),
    ]
    write_atomic(path, render_document(title, _STYLE + "".join(parts)).encode())


def _render_groupings(result: Mapping[str, Any]) -> str:
    tasks = [[name] for name in result["tasks"]]
    rows = [("best", result["groups"], result["score"])]
    if result["runner_up"]:
        rows.append(("runner-up", result["runner_up"]["groups"], result["runner_up"]["score"]))
    rows += [
        ("one network", [result["tasks"]], result["one_network_score"]),
        ("one network per task", tasks, result["separate_networks_score"]),
    ]
    body = "".join(
        f"<tr><th>{escape(name)}<td>{escape(_format_groups(groups))}<td>{score:+.3%}" for name, groups, score in rows
    )
    return render_wide_table(f"<thead><tr><th>grouping<th>networks<th>score<tbody>{body}") + _render_note(result)


def _render_note(result: Mapping[str, Any]) -> str:
    pairs = ", ".join(" and ".join(pair) for pair in result["never_labeled_together"])
    unseen = f" Never labeled in the same batch, so unknown and counted as 0: {escape(pairs)}." if pairs else ""
    return (
        "<p class=note>Score: sum over the tasks of the mean affinity of the other tasks in the network onto the task. "
        f"A task alone counts 0.{unseen}</p>"
    )


def _render_trunks(result: Mapping[str, Any]) -> str:
    trunks = result["trunk_recipe"]
    if not trunks:
        return ""
    return (
        f"<p>{len(result['groups'])} networks, each with its recipe. Alternative: one network with one trunk per "
        f"group, which is trained, exported and run as one model ({escape(trunks['recipe'])}):</p>"
        f"<pre>{escape(trunks['override'])}</pre>"
    )


def _format_groups(groups: Sequence[Sequence[str]]) -> str:
    return " | ".join(" + ".join(map(format_task_name, chosen)) for chosen in groups)


def _render_heat_map(result: Mapping[str, Any]) -> str:
    tasks, matrix, errors = result["tasks"], result["affinity"], result["standard_error"]
    others = [abs(matrix[i][j]) for i in tasks for j in tasks if i != j and matrix[i][j] is not None]
    most = max(others, default=0.0) or 1.0
    head = "".join(f"<th>{escape(format_task_name(name))}" for name in tasks)
    rows = "".join(
        f"<tr><th>{escape(format_task_name(i))}"
        + "".join(_render_cell(matrix[i][j], errors[i][j], most, i == j) for j in tasks)
        for i in tasks
    )
    return (
        f"<div class=wide><table class=heat><thead><tr><th>a step on ↓ reduces the loss of →{head}<tbody>{rows}"
        "</table></div><p class=note>Relative reduction of a task's loss (column) by one step along another task's "
        "gradient (row) on the shared parameters. Mean over the samples, ± standard error. Green helps, red harms. "
        "The diagonal is a task's effect on itself. No score includes it (TAG, Fifty et al. 2021).</p>"
    )


def _render_cell(value: float | None, error: float | None, maximum: float, is_diagonal: bool) -> str:
    if value is None:
        return "<td>–"
    share = 0.0 if is_diagonal else min(1.0, abs(value) / maximum)
    hue = "#10b981" if value > 0 else "#ef4444"
    small = "" if error is None else f"<small>± {error:.3%}</small>"
    return f'<td style="--share:{share:.3f};--hue:{hue}">{value:+.3%}{small}'
