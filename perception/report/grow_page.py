"""A grown network: the old tasks before and after, and the new one, as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from perception.files.safe_write import write_whole
from perception.report.format import label, number, spaced, wide
from perception.report.page import _document, _facts, _section

METHODS = {
    "frozen": "All that the old network had was fixed; only what the new task adds was trained.",
    "distil": "All was trained; the old heads were held to what the old network says of the new pictures.",
}


def write_page(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page of what grow.json holds."""
    title = f"Grow: {', '.join(result['added'])}"
    said = f"{result['run']} · {result['facts']['date']} · {result['facts']['hardware']}"
    verdicts = "".join(f"<li>{escape(its['verdict'])}" for its in result["old"].values())
    old = "".join(_row(name, both["before"], both["after"]) for its in result["old"].values()
                  for name, both in its["metrics"].items())  # fmt: skip
    new = "".join(_row(name, value) for name, value in result["new"].items())
    parts = [
        f"<header><h1>{escape(title)}</h1><p>{escape(said)}</p></header>",
        _section("The old tasks", f"<ul>{verdicts}</ul>" if verdicts else ""),
        _section("Every old metric", _table(old, "before", "after") if old else ""),
        _section("The new task", _table(new, "value") if new else ""),
        _section("How it was made", f"<p>{METHODS[result['method']]}</p>{_facts(result['facts'])}"),
    ]
    write_whole(path, _document(title, "".join(parts)).encode())


def _table(rows: str, *columns: str) -> str:
    head = "".join(f"<th>{column}" for column in columns)
    return wide(f"<thead><tr><th>metric{head}<tbody>{rows}")


def _row(name: str, *values: float | None) -> str:
    task, _, metric = name.partition("/")
    return f"<tr><th>{escape(spaced(task))}, {escape(label(metric))}" + "".join(
        f"<td>{number(value)}" for value in values
    )
