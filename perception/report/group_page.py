"""Task affinities as a heat map, and the grouping that they speak for, as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from perception.files.safe_write import write_whole
from perception.report.format import spaced, wide
from perception.report.page import _document, _facts, _section

_STYLE = """<style>
.heat{border-collapse:separate;border-spacing:4px;font-size:14px}
.heat th{color:var(--soft);font-weight:600}.heat th:first-child{background:var(--page)}
.heat td{padding:10px 6px;border:0;border-radius:8px;
background:color-mix(in srgb,var(--hue) calc(var(--share)*70%),var(--card))}
.heat small{display:block;color:var(--soft)}
.lead{font-size:17px;font-weight:600}
</style>"""


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page of what group.json holds."""
    title = f"Group: {result['recipe']}"
    said = f"{result['looks']} looks ahead · at most {result['networks']} networks · {result['facts']['date']}"
    parts = [
        f"<header><h1>{escape(title)}</h1><p>{escape(said)} · {escape(result['facts']['hardware'])}</p></header>",
        _section("The grouping", f"<p class=lead>{escape(result['verdict'])}</p>{_groupings(result)}{_trunks(result)}"),
        _section("Who helps whom", _heat(result)),
        _section("How it was made", _facts({**result["facts"], "recipes": ", ".join(result["recipes"])})),
    ]
    write_whole(path, _document(title, _STYLE + "".join(parts)).encode())


def _groupings(result: Mapping[str, Any]) -> str:
    tasks = [[name] for name in result["tasks"]]
    rows = [("best", result["groups"], result["score"])]
    if result["runner_up"]:
        rows.append(("runner-up", result["runner_up"]["groups"], result["runner_up"]["score"]))
    rows += [
        ("one network", [result["tasks"]], result["one_network"]),
        ("a network each", tasks, result["a_network_each"]),
    ]
    body = "".join(
        f"<tr><th>{escape(name)}<td>{escape(_words(groups))}<td>{score:+.3%}" for name, groups, score in rows
    )
    return wide(f"<thead><tr><th>grouping<th>networks<th>score<tbody>{body}") + _note(result)


def _note(result: Mapping[str, Any]) -> str:
    pairs = ", ".join(" and ".join(pair) for pair in result["never_seen_together"])
    unseen = f" Never labelled in one batch, so unknown and counted as 0: {escape(pairs)}." if pairs else ""
    return (
        "<p class=note>Score: for each task the mean affinity of the others of its network onto it, 0 alone; "
        f"summed over the tasks.{unseen}</p>"
    )


def _trunks(result: Mapping[str, Any]) -> str:
    trunks = result["trunks"]
    if not trunks:
        return ""
    return (
        f"<p>{len(result['groups'])} networks, each with its recipe, or the same as one network with a trunk for each "
        f"group, which is trained, exported and run as one ({escape(trunks['recipe'])}):</p>"
        f"<pre>{escape(trunks['line'])}</pre>"
    )


def _words(groups: Sequence[Sequence[str]]) -> str:
    return " | ".join(" + ".join(map(spaced, chosen)) for chosen in groups)


def _heat(result: Mapping[str, Any]) -> str:
    tasks, matrix, errors = result["tasks"], result["affinity"], result["standard_error"]
    others = [abs(matrix[i][j]) for i in tasks for j in tasks if i != j and matrix[i][j] is not None]
    most = max(others, default=0.0) or 1.0
    head = "".join(f"<th>{escape(spaced(name))}" for name in tasks)
    rows = "".join(
        f"<tr><th>{escape(spaced(i))}" + "".join(_cell(matrix[i][j], errors[i][j], most, i == j) for j in tasks)
        for i in tasks
    )
    return (
        f"<div class=wide><table class=heat><thead><tr><th>a step of ↓ takes from the loss of →{head}<tbody>{rows}"
        "</table></div><p class=note>Part of a task's loss (column) that one step along another task's gradient (row) "
        "takes away, on the parameters that they share; mean of the looks, ± standard error. Green helps, red harms. "
        "The diagonal is a task's effect on itself and counts in no score (TAG, Fifty et al. 2021).</p>"
    )


def _cell(value: float | None, error: float | None, most: float, own: bool) -> str:
    if value is None:
        return "<td>–"
    share = 0.0 if own else min(1.0, abs(value) / most)
    hue = "#10b981" if value > 0 else "#ef4444"
    small = "" if error is None else f"<small>± {error:.3%}</small>"
    return f'<td style="--share:{share:.3f};--hue:{hue}">{value:+.3%}{small}'
