"""From what was counted of a source's distances and cameras to findings: units, limits, intrinsics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from perception.data.formats.depth_maps import likely_unit
from perception.doctor.accumulators import SourceState
from perception.doctor.data_plan import Plan
from perception.doctor.findings import Finding, number, percent, plain
from perception.doctor.statistics import DepthStatistics

PLAUSIBLE = 0.02, 1000.0
"""Metres between which the median of a source lies."""


def findings(state: SourceState, plan: Plan, task: str, found: DepthStatistics) -> Iterator[Finding]:
    """Findings about the depth of one source."""
    if found.empty == found.pictures:
        what = f"No depth map of '{task}' has a valid pixel."
        yield Finding("error", "no_depth", state.where, what, "Correct scale and max of the reader.", found.pictures)
        return
    given = plan.setting(task, "limits")
    if given is not None and _limits(given) is None:
        what = f"tasks.{task}.limits is {plain(given, 60)}. Expected the nearest and the farthest distance in metres."
        yield Finding("error", "depth_limits", state.where, what, "For example limits: [0.5, 80].")
    yield from _range(state, plan, task, found)
    low, high = found.medians.quantile(0.03), found.medians.quantile(0.97)
    if found.pictures >= 4 and high > 100 * low:
        what = f"The median distance of the pictures of '{task}' goes from {number(low)} to {number(high)} m."
        mend = "Two units? Make sources of one unit each, with its own scale."
        yield Finding("error", "mixed_depth_units", state.where, what, mend)
    if any(abs(found.most / scale - 65535) < 1 for scale in _scales(state, task)):
        what = f"The largest distance of '{task}' is {found.most:.5g} m, stored as 65535: often the mark of a hole."
        mend = f"If it is: max: {found.most * 0.999:.4g} in the reader."
        yield Finding("warning", "saturated_depth", state.where, what, mend)
    yield from _cameras(state, plan, task)


def _range(state: SourceState, plan: Plan, task: str, found: DepthStatistics) -> Iterator[Finding]:
    """Whether the distances can be metres, and those that the recipe trains."""
    low, middle, high = (found.metres.quantile(share) for share in (0.01, 0.5, 0.99))
    spread = f"1 % under {number(low)} m, median {number(middle)} m, 1 % over {number(high)} m."
    limits = _limits(plan.setting(task, "limits"))
    inside = 1.0
    if limits is not None:
        inside = found.metres.share(limits[0] * 0.985, limits[1] * 1.015)
        spread += f" The recipe's limits are {limits[0]:g} to {limits[1]:g} m: {percent(inside, 1)} are within."
    advice = _better_scale(state, task, middle, limits)
    if not PLAUSIBLE[0] <= middle <= PLAUSIBLE[1]:
        what = f"The distances of '{task}' cannot be metres: {spread}"
        yield Finding("error", "depth_unit", state.where, what, advice, found.pictures)
    elif inside < 0.5:
        what = f"The distances of '{task}': {spread}"
        mend = f"Correct the task's limits, or the unit. {advice}"
        severity = "error" if inside < 0.01 else "warning"
        yield Finding(severity, "depth_limits", state.where, what, mend, found.pictures)


def _limits(given: Any) -> tuple[float, float] | None:
    if not isinstance(given, (list, tuple)) or len(given) != 2:
        return None
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given):
        return None
    return (float(given[0]), float(given[1])) if 0 < given[0] < given[1] else None


def _scales(state: SourceState, task: str) -> list[float]:
    """Metres per stored unit of the readers that label a task."""
    given = [getattr(label, "scale", None) for label in state.planned.config.labels if task in label.tasks]
    scales = [scale for one in given for scale in (one.values() if isinstance(one, dict) else [one])]
    return [float(scale) for scale in scales if isinstance(scale, (int, float)) and scale > 0]


def _better_scale(state: SourceState, task: str, middle: float, limits: tuple[float, float] | None) -> str:
    """The scale that would make the distances plausible, as advice."""
    found = likely_unit(middle, limits or (0.3, 200.0))
    if found is None:
        return "Check the unit of the files."
    factor, unit = found
    would = f"the median would be {number(middle * factor)} m"
    for scale in _scales(state, task):
        return f"With scale: {scale * factor:.3g} instead of {scale:g} ({unit}?) {would}."
    return f"Were they {unit}, {would}: scale: {factor:.3g}."


def _cameras(state: SourceState, plan: Plan, task: str) -> Iterator[Finding]:
    missing = int(state.known.sum()) - state.cameras
    if state.part != "train" or missing <= 0 or not plan.setting(task, "canonical_focal", 1):
        return
    share = plan.setting(task, "default_focal", 1.0)
    what = f"{missing:,} pictures have no intrinsics: '{task}' takes {share} times their width for the focal length, "
    what += "and its metres are only as right as that."
    mend = "Give camera: {fx, fy, cx, cy} in the reader or the source, or canonical_focal: 0 in the task."
    yield Finding("warning", "no_cameras", state.where, what, mend, missing)
