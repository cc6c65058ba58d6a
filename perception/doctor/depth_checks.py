"""Findings about the depth and the cameras of one source: units, limits, intrinsics."""

from __future__ import annotations

from collections.abc import Iterator

from perception.data.formats.depth_maps import guess_unit
from perception.doctor.accumulators import SourceState
from perception.doctor.data_plan import DataPlan
from perception.doctor.findings import Finding, format_percent, format_quantity, sanitize_text
from perception.doctor.statistics import DepthStatistics

PLAUSIBLE_MEDIAN_DEPTH = 0.02, 1000.0
"""Plausible range of the median depth of a source, metres."""


def check_depth(state: SourceState, plan: DataPlan, task: str, statistics: DepthStatistics) -> Iterator[Finding]:
    """Yield findings about the depth of one source."""
    if statistics.num_empty == statistics.num_images:
        what = f"No depth map of '{task}' has a valid pixel."
        yield Finding(
            "error", "no_depth", state.where, what, "Correct scale and max of the reader.", statistics.num_images
        )
        return
    given = plan.get_setting(task, "limits")
    if given is not None and _parse_limits(given) is None:
        what = (
            f"tasks.{task}.limits is {sanitize_text(given, 60)}. Expected the minimum and the maximum depth in metres."
        )
        yield Finding("error", "depth_limits", state.where, what, "For example limits: [0.5, 80].")
    yield from _check_range(state, plan, task, statistics)
    low, high = statistics.median_depths.quantile(0.03), statistics.median_depths.quantile(0.97)
    if statistics.num_images >= 4 and high > 100 * low:
        what = (
            f"The median depth per image of '{task}' ranges from {format_quantity(low)} to {format_quantity(high)} m."
        )
        mend = "The source may mix two units. Make one source per unit, each with its own scale."
        yield Finding("error", "mixed_depth_units", state.where, what, mend)
    if any(abs(statistics.max_depth / scale - 65535) < 1 for scale in _get_scales(state, task)):
        what = (
            f"The maximum depth of '{task}' is {statistics.max_depth:.5g} m, "
            "stored as 65535. This value often marks invalid pixels."
        )
        mend = f"If it does: max: {statistics.max_depth * 0.999:.4g} in the reader."
        yield Finding("warning", "saturated_depth", state.where, what, mend)
    yield from _check_cameras(state, plan, task)


def _check_range(state: SourceState, plan: DataPlan, task: str, statistics: DepthStatistics) -> Iterator[Finding]:
    """Check that the depths are plausible in metres and within the limits of the task."""
    low, middle, high = (statistics.depths.quantile(share) for share in (0.01, 0.5, 0.99))
    spread = (
        f"1 % below {format_quantity(low)} m, median {format_quantity(middle)} m, 1 % above {format_quantity(high)} m."
    )
    limits = _parse_limits(plan.get_setting(task, "limits"))
    inside = 1.0
    if limits is not None:
        inside = statistics.depths.fraction_between(limits[0] * 0.985, limits[1] * 1.015)
        spread += f" The recipe's limits are {limits[0]:g} to {limits[1]:g} m: {format_percent(inside, 1)} are inside."
    advice = _suggest_scale(state, task, middle, limits)
    if not PLAUSIBLE_MEDIAN_DEPTH[0] <= middle <= PLAUSIBLE_MEDIAN_DEPTH[1]:
        what = f"The depths of '{task}' cannot be in metres: {spread}"
        yield Finding("error", "depth_unit", state.where, what, advice, statistics.num_images)
    elif inside < 0.5:
        what = f"Most depths of '{task}' are outside its limits: {spread}"
        mend = f"Correct the task's limits, or the unit. {advice}"
        severity = "error" if inside < 0.01 else "warning"
        yield Finding(severity, "depth_limits", state.where, what, mend, statistics.num_images)


def _parse_limits(given: object) -> tuple[float, float] | None:
    if not isinstance(given, (list, tuple)) or len(given) != 2:
        return None
    if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in given):
        return None
    return (float(given[0]), float(given[1])) if 0 < given[0] < given[1] else None


def _get_scales(state: SourceState, task: str) -> list[float]:
    """Metres per stored unit of the readers that label a task."""
    given = [getattr(label, "scale", None) for label in state.planned.config.labels if task in label.tasks]
    scales = [scale for one in given for scale in (one.values() if isinstance(one, dict) else [one])]
    return [float(scale) for scale in scales if isinstance(scale, (int, float)) and scale > 0]


def _suggest_scale(state: SourceState, task: str, median: float, limits: tuple[float, float] | None) -> str:
    """Advice: the scale that would make the depths plausible."""
    found = guess_unit(median, limits or (0.3, 200.0))
    if found is None:
        return "Check the unit of the depth files."
    factor, unit = found
    would = f"the median would be {format_quantity(median * factor)} m"
    for scale in _get_scales(state, task):
        return f"With scale: {scale * factor:.3g} instead of {scale:g} ({unit}?) {would}."
    return f"If they were in {unit}, {would}: scale: {factor:.3g}."


def _check_cameras(state: SourceState, plan: DataPlan, task: str) -> Iterator[Finding]:
    missing = int(state.readable.sum()) - state.num_cameras
    if state.split != "train" or missing <= 0 or not plan.get_setting(task, "canonical_focal", 1):
        return
    share = plan.get_setting(task, "default_focal", 1.0)
    what = f"{missing:,} images have no intrinsics. '{task}' assumes a focal length of {share} times their width, "
    what += "so its metres are only as accurate as this assumption."
    mend = "Add camera: {fx, fy, cx, cy} to the reader or the source, or set canonical_focal: 0 in the task."
    yield Finding("warning", "no_cameras", state.where, what, mend, missing)
