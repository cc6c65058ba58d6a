"""Names and numbers in readable form."""

from __future__ import annotations

import math
from html import escape

from perception.metrics.metric import LOWER_IS_BETTER

METRIC_LABELS = {
    "ap": "AP",
    "ap50": "AP 50",
    "ap75": "AP 75",
    "ap_small": "AP small",
    "ap_medium": "AP medium",
    "ap_large": "AP large",
    "ar100": "AR 100",
    "map": "mAP",
    "iou": "IoU",
    "miou": "mIoU",
    "abs_rel": "abs rel",
    "sq_rel": "sq rel (m)",
    "rmse": "RMSE (m)",
    "rmse_log": "RMSE log",
    "silog": "SILog",
    "delta1": "δ < 1.25",
    "delta2": "δ < 1.25²",
    "delta3": "δ < 1.25³",
    "ause": "AUSE",
    "ece": "ECE",
    "nll": "NLL",
    "top1": "top 1",
    "top5": "top 5",
}
"""Metric or column name -> its usual spelling."""


def format_metric_name(name: str) -> str:
    """Format a metric's name: "abs_rel_aligned" -> "abs rel, aligned"."""
    plain = name.removesuffix("_aligned")
    text = METRIC_LABELS.get(plain, plain.replace("_", " "))
    return f"{text}, aligned" if plain != name else text


def render_metric_name(metric: str) -> str:
    """Render a metric's name as HTML, with an arrow in the direction of better values."""
    direction, arrow = ("lower", "↓") if metric in LOWER_IS_BETTER else ("higher", "↑")
    return f"{escape(format_metric_name(metric))} <small title='{direction} is better'>{arrow}</small>"


def format_task_name(task: str) -> str:
    """Format a task's name with spaces, so that it can wrap."""
    return task.replace("_", " ")


def render_wide_table(rows: str) -> str:
    """Render a table from its inner HTML. It scrolls horizontally if the page is narrower."""
    return f"<div class=wide><table class=classes>{rows}</table></div>"


def format_decimal(value: float | None) -> str:
    """Format a number with three decimals, fewer for large numbers; an en dash for NaN and None (NaN in JSON)."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:,.{digits}f}"
