"""The HTML page of a grown network: the old tasks before and after, and the new task."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from perception.files.safe_write import write_atomic
from perception.report.format import format_decimal, format_metric_name, format_task_name, render_wide_table
from perception.report.page import render_document, render_metadata, render_section

METHOD_DESCRIPTIONS = {
    "frozen": "All parameters of the old network were frozen. Only the parameters of the new task were trained.",
    "distill": "All parameters were trained. Distillation kept the old heads close to the old network's outputs.",
}


def write_grow_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page for the contents of grow.json."""
    title = f"Grow: {', '.join(result['added_tasks'])}"
    said = f"{result['run']} · {result['metadata']['date']} · {result['metadata']['hardware']}"
    verdicts = "".join(f"<li>{escape(its['verdict'])}" for its in result["old"].values())
    old = "".join(_render_row(name, both["before"], both["after"]) for its in result["old"].values()
                  for name, both in its["metrics"].items())  # fmt: skip
    new = "".join(_render_row(name, value) for name, value in result["new"].items())
    parts = [
        f"<header><h1>{escape(title)}</h1><p>{escape(said)}</p></header>",
        render_section("Old tasks", f"<ul>{verdicts}</ul>" if verdicts else ""),
        render_section("All metrics of the old tasks", _render_table(old, "before", "after") if old else ""),
        render_section("New task", _render_table(new, "value") if new else ""),
        render_section(
            "Provenance", f"<p>{METHOD_DESCRIPTIONS[result['method']]}</p>{render_metadata(result['metadata'])}"
        ),
    ]
    write_atomic(path, render_document(title, "".join(parts)).encode())


def _render_table(rows: str, *columns: str) -> str:
    head = "".join(f"<th>{column}" for column in columns)
    return render_wide_table(f"<thead><tr><th>metric{head}<tbody>{rows}")


def _render_row(name: str, *values: float | None) -> str:
    task, _, metric = name.partition("/")
    return f"<tr><th>{escape(format_task_name(task))}, {escape(format_metric_name(metric))}" + "".join(
        f"<td>{format_decimal(value)}" for value in values
    )
